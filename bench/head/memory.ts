/**
 * Native memory that the head needs while one image is in flight: how much the resident memory of a fresh process grows over a
 * call, at its largest. Linux only, for the numbers of /proc.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Pruner } from '../../src/index.js';
import { randomHead } from '../../test/support.js';
import { tensor } from '../data.js';
import type { HeadShape } from './work.js';

const CHILD = '--memory';

/** Megabytes for an image of this shape on two threads; null where there is no /proc. */
export async function scratchMegabytes(shape: HeadShape): Promise<number | null> {
  if (!existsSync('/proc/self/clear_refs')) return null;
  // Large blocks are mapped and unmapped one by one: memory that an earlier block left behind would hide what the call needs.
  const env = { ...process.env, MALLOC_MMAP_THRESHOLD_: '65536' };
  const child = fork(fileURLToPath(import.meta.url), [CHILD, JSON.stringify(shape)], { env });
  const exit = once(child, 'exit');
  const [megabytes] = await Promise.race([once(child, 'message'), once(child, 'disconnect')]);
  const [code] = await exit;
  if (megabytes === undefined)
    throw new Error(`the process that measures memory ended without a result (exit code ${code})`);
  return megabytes as number;
}

/** Resident memory now, or at its largest, in MB. */
function resident(field: 'VmRSS' | 'VmHWM'): number {
  return Number(new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) / 1024;
}

async function child(shape: HeadShape): Promise<number> {
  const { rows, width, projectionDim, text, keep } = shape;
  const pruner = await Pruner.load(randomHead(1, shape), { device: 'cpu', threads: 2 });
  const [hidden, question] = [tensor(1, rows, width), tensor(2, text, projectionDim)];
  // Touches code, stacks and JavaScript; its own scratch is that of two rows.
  pruner.pruneSync(tensor(3, 2, width), question, { keep: 1 });
  const before = resident('VmRSS');
  writeFileSync('/proc/self/clear_refs', '5'); // the largest so far begins anew
  pruner.pruneSync(hidden, question, { keep });
  return resident('VmHWM') - before;
}

const [mode, shape] = process.argv.slice(2);
if (mode === CHILD) process.send!(await child(JSON.parse(shape)));
