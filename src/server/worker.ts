/** A worker of a pool: opens the model, and serves. */
import { workerData } from 'node:worker_threads';
import { move, transferableSymbol, valueSymbol } from 'piscina';
import { limits } from '../limits.js';
import { memoryOf, type Outcome, type PlainResult, plainError, type Task, type WorkerData } from './messages.js';
import { Service } from './serve.js';

/** What a worker answers: how opening went, or what became of each request. */
export type WorkerCall = 'open' | readonly Task[];
type Answer = Outcome<PlainResult | null>[];

/** A model that does not open ends no worker, which would be started again and again: each call says why. */
async function open(): Promise<(call: WorkerCall) => Promise<Answer>> {
  const data = workerData as WorkerData;
  limits(data.limits);
  try {
    const service = await Service.open(data);
    return async (call) => (call === 'open' ? [{ value: null }] : moved(await service.serve(call)));
  } catch (error) {
    const failed = { error: plainError(error) };
    return async (call) => (call === 'open' ? [failed] : call.map(() => failed));
  }
}

function moved(answer: Answer): Answer {
  const memory = memoryOf(answer);
  return memory.length === 0
    ? answer
    : (move({ [transferableSymbol]: memory, [valueSymbol]: answer } as never) as never);
}

export default open();
