/** Calls as events, for whoever measures: `tracingChannel('desap:call')` of `node:diagnostics_channel`. */
import { tracingChannel } from 'node:diagnostics_channel';

/**
 * The message of each event of a call. `start` and `end` enclose the synchronous part; `asyncEnd` says that the call has ended, and `error`
 * comes before it where it failed. Calls that a call makes on its way lie between its events.
 */
export interface CallEvent {
  /** Class and method: `Pruner.prune`, `VisionModel.encode`, `VisionPool.prune`. */
  readonly call: string;
  /**
   * Milliseconds by stage, once the call has ended well: those of its result, of several results their sums. `waiting` is no work. A call
   * whose result has none, such as `VisionModel.encode`, leaves them out.
   */
  timings?: Readonly<Record<string, number>>;
  /** What went wrong. */
  readonly error?: unknown;
}

const channel = tracingChannel<string, CallEvent>('desap:call');

/** Runs a call, and tells it to those who listen. */
export async function traced<T>(call: string, work: () => Promise<T>): Promise<T> {
  if (!channel.hasSubscribers) return work();
  const event: CallEvent = { call };
  const run = async () => {
    const result = await work();
    const timings = timingsOf(result);
    if (timings !== null) event.timings = timings;
    return result;
  };
  return channel.tracePromise(run, event) as Promise<T>;
}

/** The timings of a result, or of several; null where it has none. */
function timingsOf(result: unknown): Record<string, number> | null {
  const all = [result].flat().flatMap((one) => (one as { timings?: object } | null)?.timings ?? []);
  if (all.length === 0) return null;
  const sums: Record<string, number> = {};
  for (const timings of all)
    for (const [stage, milliseconds] of stagesOf(timings)) sums[stage] = (sums[stage] ?? 0) + milliseconds;
  return sums;
}

/** Stages, and the stages within them; the outer one of two with the same name. */
function stagesOf(timings: object): Map<string, number> {
  const stages = new Map<string, number>();
  for (const inner of Object.values(timings))
    if (typeof inner === 'object') for (const [stage, value] of stagesOf(inner)) stages.set(stage, value);
  for (const [stage, value] of Object.entries(timings)) if (typeof value === 'number') stages.set(stage, value);
  return stages;
}
