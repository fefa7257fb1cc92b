/** `npm run fuzz -- [target...] [--minutes 10] [--seed 1]`: fuzzes the readers of files, and leaves what it finds in out/fuzz. */
import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { runFuzzer } from './fuzzer.js';
import { TARGETS } from './targets.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { minutes: { type: 'string', default: '10' }, seed: { type: 'string', default: String(Date.now() % 1e6) } },
});
const names = positionals.length > 0 ? positionals : Object.keys(TARGETS);
const unknown = names.filter((name) => !(name in TARGETS));
if (unknown.length > 0) throw new Error(`got ${unknown.join(', ')}, wanted some of ${Object.keys(TARGETS).join(', ')}`);

let found = 0;
for (const name of names) {
  const options = { seed: Number(values.seed), seconds: 60 * Number(values.minutes), runs: Number.POSITIVE_INFINITY };
  const { summary, findings } = await runFuzzer(name, options);
  console.log(`${name}, seed ${values.seed}: ${JSON.stringify(summary)}, ${findings.length} findings`);
  for (const { kind, message, bytes } of findings) {
    const path = join('out/fuzz', name, `${kind}-${createHash('sha256').update(bytes).digest('hex').slice(0, 12)}`);
    mkdirSync(join('out/fuzz', name), { recursive: true });
    writeFileSync(path, bytes);
    console.log(`\n${kind}: ${path} (${bytes.length} bytes)\n${message}\n`);
  }
  found += findings.length;
}
process.exitCode = found > 0 ? 1 : 0;
