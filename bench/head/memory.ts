/**
 * Native memory that the head needs while one image is in flight: how much the resident memory of a fresh process grows over a
 * call, at its largest. Linux only, for the numbers of /proc.
 */
import { existsSync } from 'node:fs';
import { Pruner } from '../../src/index.js';
import { randomHead } from '../../test/support.js';
import { tensor } from '../data.js';
import { beginAnew, inProcess, MAPPED, resident } from '../own-process.js';
import type { HeadShape } from './work.js';

const CHILD = '--memory';

/** Megabytes for an image of this shape on two threads; null where there is no /proc. */
export async function scratchMegabytes(shape: HeadShape): Promise<number | null> {
  if (!existsSync('/proc/self/clear_refs')) return null;
  return inProcess(import.meta.url, [CHILD, JSON.stringify(shape)], 'memory of the head', MAPPED);
}

async function child(shape: HeadShape): Promise<number> {
  const { rows, width, projectionDim, text, keep } = shape;
  const pruner = await Pruner.load(randomHead(1, shape), { device: 'cpu', threads: 2 });
  const [hidden, question] = [tensor(1, rows, width), tensor(2, text, projectionDim)];
  // Touches code, stacks and JavaScript; its own scratch is that of two rows.
  pruner.pruneSync(tensor(3, 2, width), question, { keep: 1 });
  const before = resident('VmRSS');
  beginAnew();
  pruner.pruneSync(hidden, question, { keep });
  return resident('VmHWM') - before;
}

const [mode, shape] = process.argv.slice(2);
if (mode === CHILD) process.send!(await child(JSON.parse(shape)));
