// Refuses to pack the package without what it has to hold: JavaScript, and an addon for each platform.
//
//   npm pack
//   DESAP_PACK_WITHOUT=darwin-x64,darwin-arm64 npm pack      without these platforms
//   DESAP_PACK_WITHOUT=all npm pack                          without any addon: everybody compiles, or computes in JavaScript
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { faultOf } from './check.mjs';
import { CROSS, TARGETS } from './targets.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

function refuse(code, message) {
  console.error(`prepack: ${code}: ${message}`);
  process.exit(1);
}

const without = process.env.DESAP_PACK_WITHOUT?.split(',').filter(Boolean) ?? [];
const unknown = without.filter((name) => name !== 'all' && !(name in TARGETS));
if (unknown.length > 0)
  refuse(
    'ERR_VALUE',
    `DESAP_PACK_WITHOUT: got ${unknown.join()}, wanted all or some of ${Object.keys(TARGETS).join()}`,
  );

if (!existsSync(join(root, 'dist/index.js'))) refuse('ERR_FILE', 'dist/index.js is missing; make it: npm run build:ts');
// The compiler leaves what it wrote of sources that have moved since.
const stale = readdirSync(join(root, 'dist'), { recursive: true }).find(
  (file) => file.endsWith('.js') && !existsSync(join(root, 'src', file.replace(/js$/, 'ts'))),
);
if (stale) refuse('ERR_FILE', `dist/${stale} has no source any more; remove dist, and make it again: npm run build:ts`);

const faults = Object.keys(TARGETS)
  .filter((name) => !without.includes(name) && !without.includes('all'))
  .map((name) => ({ name, fault: faultOf(name, join(root, 'prebuilds', TARGETS[name].file)) }))
  .filter(({ fault }) => fault !== null);
if (faults.length > 0) {
  const lines = faults.map(({ name, fault }) => `  prebuilds/${TARGETS[name].file} ${fault}`);
  const names = faults.map(({ name }) => name);
  refuse(
    'ERR_FILE',
    `the package has to hold an addon for each platform:\n${lines.join('\n')}\n` +
      `Make them: npm run package:native (${CROSS.join(', ')}), and on a Mac npm run package:native -- --host.\n` +
      `Without them: DESAP_PACK_WITHOUT=${names.join()} npm pack`,
  );
}
