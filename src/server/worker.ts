/** A worker of a pool: opens the model, and serves. */
import { parentPort, threadId, workerData } from 'node:worker_threads';
import { move, transferableSymbol, valueSymbol } from 'piscina';
import { limits } from '../limits.js';
import {
  memoryOf,
  type Opened,
  type Outcome,
  type PlainError,
  type PlainResult,
  plainError,
  type Task,
  type WorkerData,
} from './messages.js';
import { Service } from './serve.js';

/** What a worker answers: how opening went, or what became of each request. */
export type WorkerCall = 'open' | readonly Task[];
type Answer = Outcome<PlainResult | null>[];

/** A model that does not open ends no worker, which would be started again and again: requests get the reason, and each tries once more. */
async function start(): Promise<(call: WorkerCall) => Promise<Answer>> {
  const data = workerData as WorkerData;
  limits(data.limits);
  const open = async () => {
    const opened = await Service.open(data).then(
      (service) => ({ service, fault: null }),
      (error) => ({ service: null, fault: plainError(error) }),
    );
    parentPort?.postMessage({ thread: threadId, fault: opened.fault?.message ?? null } satisfies Opened);
    return opened;
  };
  let now = await open();
  return async (call) => {
    if (call === 'open') return [now.fault ? { error: now.fault } : { value: null }];
    if (now.service === null) now = await open();
    const { service, fault } = now;
    return service ? moved(await service.serve(call)) : call.map(() => ({ error: unopened(fault as PlainError) }));
  };
}

/** No fault of the request. */
function unopened({ message, stack }: PlainError): PlainError {
  return { code: 'ERR_WORKER_LOST', message: `the worker that took another's place: ${message}`, stack };
}

function moved(answer: Answer): Answer {
  const memory = memoryOf(answer);
  return memory.length === 0
    ? answer
    : (move({ [transferableSymbol]: memory, [valueSymbol]: answer } as never) as never);
}

export default start();
