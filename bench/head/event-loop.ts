/** How long an asynchronous call keeps the event loop from everything else. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { HostBuffer, Pruner } from '../../src/index.js';
import type { Tensor } from '../../src/tensor.js';
import { head } from '../data.js';
import { type Spread, spread } from '../harness.js';
import type { Question } from './contestants.js';

export interface Blocked {
  /** Where the hidden states lay. */
  readonly memory: string;
  /** Milliseconds until the call returned its promise: checks, and a copy of memory that is not native. */
  readonly call: Spread;
  /** Milliseconds of the turn of the event loop in which the promise was fulfilled: results become JavaScript objects. */
  readonly completion: Spread;
  readonly both: Spread;
}

const CALLS = 60;

/** Measures calls one by one. The kernels run on one thread, so that on two cores the event loop has one for itself. */
export async function eventLoopBlocked({ hidden, text, keep }: Question): Promise<Blocked[]> {
  using pruner = await Pruner.load(head(), { device: 'cpu', threads: 1 });
  using buffer = HostBuffer.forTensor('float32', hidden.dims, { pinned: false });
  const native = buffer.tensor('float32', hidden.dims);
  (native.data as Float32Array).set(hidden.data as Float32Array);
  const results: Blocked[] = [];
  for (const [memory, input] of [
    ['HostBuffer', native],
    ['Float32Array', hidden],
  ] as const) {
    const samples: { call: number; completion: number }[] = [];
    for (let i = 0; i < CALLS; i++) samples.push(await one(() => pruner.prune(input as Tensor, text, { keep })));
    results.push({
      memory,
      call: spread(samples.map(({ call }) => call)),
      completion: spread(samples.map(({ completion }) => completion)),
      both: spread(samples.map(({ call, completion }) => call + completion)),
    });
  }
  return results;
}

/**
 * A chain of immediates turns the event loop without rest while the call is under way; a turn without work takes microseconds.
 * The last turn, from one immediate to the next, is the one in which the addon hands over its results.
 */
async function one(call: () => Promise<unknown>): Promise<{ call: number; completion: number }> {
  let done = false;
  const start = performance.now();
  const pending = call().then(() => {
    done = true;
  });
  const returned = performance.now();
  let [before, now] = [returned, returned];
  while (!done) {
    await nextTurn();
    [before, now] = [now, performance.now()];
  }
  await pending;
  return { call: returned - start, completion: now - before };
}
