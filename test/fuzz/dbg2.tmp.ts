import { readFileSync } from 'node:fs';
import { TARGETS } from './targets.js';

try {
  await TARGETS[process.argv[2]].read(new Uint8Array(readFileSync(process.argv[3])));
  console.log('read');
} catch (e) {
  console.log((e as Error).stack);
}
process.exit();
