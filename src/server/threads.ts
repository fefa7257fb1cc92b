/** How the cores of a machine are shared out between workers. */
import { availableParallelism } from 'node:os';
import type { InferenceSession } from 'onnxruntime-common';
import { integer } from '../tensor.js';
import { atRest } from '../vision/session.js';

/** More workers than these gain little, and each holds the weights once. */
const MOST_WORKERS = 4;
const MOST_CORES = 1024;

/** Workers, and the threads that each of them has for the pruner and for each session: no two of these work at one time. */
export interface Threads {
  readonly workers: number;
  readonly threads: number;
}

/**
 * @param cores that the pool may use; default: the available ones
 * @param workers default: one for each core, at most 4
 * @throws DesapError `ERR_VALUE`
 */
export function shareCores(cores = availableParallelism(), workers?: number): Threads {
  integer('cores', cores, 1, MOST_CORES);
  const count = integer('workers', workers ?? Math.min(cores, MOST_WORKERS), 1, MOST_CORES);
  return { workers: count, threads: Math.max(1, Math.floor(cores / count)) };
}

/** Session options with that many threads, which rest when nothing runs. */
export function sessionOf(threads: number, given?: InferenceSession.SessionOptions): InferenceSession.SessionOptions {
  return atRest({ intraOpNumThreads: threads, interOpNumThreads: 1, ...given });
}
