/** The process that reads the changed files of one target: it may crash or hang, and its parent says with what. */
import { writeFileSync } from 'node:fs';
import { Coverage } from './coverage.js';
import { fuzz } from './loop.js';
import { TARGETS } from './targets.js';

const [name, seed, seconds, most, current] = process.argv.slice(2);
const end = performance.now() + Number(seconds) * 1000;
let told = 0;

const summary = await fuzz(
  TARGETS[name],
  Number(seed),
  (runs) => performance.now() > end || runs >= Number(most),
  {
    begins: (bytes) => {
      writeFileSync(current, bytes);
      if (performance.now() - told < 1000) return;
      told = performance.now();
      process.send?.({ alive: true });
    },
    found: ({ bytes, ...finding }) =>
      process.send?.({ finding: { ...finding, base64: Buffer.from(bytes).toString('base64') } }),
  },
  new Coverage(),
);
process.send?.({ summary }, () => process.exit());
