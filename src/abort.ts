/**
 * Calls that a signal ends. The signal of a call holds for all that the call does on its way: whoever begins a piece of work asks
 * {@link checkAborted} first, and work that waits in a queue is taken out by {@link onAbort}. Nobody hands signals on.
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import { DesapError, invalid, messageOf } from './errors.js';
import { field, type OptionNames, options } from './options.js';

/** What every asynchronous call takes. */
export interface Abortable {
  /**
   * Ends the call with `ERR_ABORTED`, whose `cause` is the signal's reason; `AbortSignal.timeout(ms)` is a deadline. What has not begun is
   * taken out of the queue; what has begun ends by itself, and its result is let go.
   */
  signal?: AbortSignal;
}

export const ABORTABLE: OptionNames<Abortable> = { signal: true };

/** The signals of the calls that are under way here, the innermost first. */
interface Calls {
  readonly signal: AbortSignal;
  readonly outer: Calls | undefined;
}

const calls = new AsyncLocalStorage<Calls | undefined>();

/**
 * Runs a call that a signal may end.
 *
 * @param discard frees a result that nobody gets any more
 * @throws DesapError `ERR_ABORTED`; `ERR_VALUE` for what is no signal
 */
export async function abortable<T>(
  signal: AbortSignal | undefined,
  work: () => Promise<T>,
  discard: (result: T) => unknown = () => {},
): Promise<T> {
  if (signal === undefined) return work();
  if (checkSignal(signal).aborted) throw abortedBy(signal);
  const result = calls.run({ signal, outer: calls.getStore() }, work);
  return new Promise<T>((resolve, reject) => {
    const abort = () => {
      reject(abortedBy(signal));
      result.then(discard, () => {});
    };
    const ended = whenAborted(signal, abort);
    result.then(resolve, reject).finally(ended);
  });
}

/**
 * The signal of a call that takes nothing else in its last argument.
 * @throws DesapError `ERR_VALUE`
 */
export function signalOf(argument: string, given: Abortable | undefined): AbortSignal | undefined {
  return options(argument, given, ABORTABLE).signal;
}

/**
 * To be asked before work begins.
 * @throws DesapError `ERR_ABORTED` within a call that was ended
 */
export function checkAborted(): void {
  for (let call = calls.getStore(); call; call = call.outer) if (call.signal.aborted) throw abortedBy(call.signal);
}

/**
 * Does something when a call is ended that this is part of.
 * @returns forgets it
 */
export function onAbort(abort: () => void): () => void {
  const forget: (() => void)[] = [];
  for (let call = calls.getStore(); call; call = call.outer) forget.push(whenAborted(call.signal, abort));
  return () => {
    for (const one of forget) one();
  };
}

/** What is to be done when a signal ends, and its listener that does it. */
const ends = new WeakMap<AbortSignal, { readonly all: Set<() => void>; readonly listener: () => void }>();

/**
 * One listener serves all calls of a signal: a server may have one signal for all of its requests, and Node takes more than ten listeners
 * for a leak.
 * @returns forgets it, and the last one takes the listener away
 */
function whenAborted(signal: AbortSignal, abort: () => void): () => void {
  const { all, listener } = ends.get(signal) ?? listened(signal);
  const mine = () => abort();
  all.add(mine);
  return () => {
    if (!all.delete(mine) || all.size > 0) return;
    ends.delete(signal);
    signal.removeEventListener('abort', listener);
  };
}

function listened(signal: AbortSignal) {
  const all = new Set<() => void>();
  const listener = () => {
    for (const abort of all) abort();
  };
  signal.addEventListener('abort', listener);
  const own = { all, listener };
  ends.set(signal, own);
  return own;
}

/** Work that others wait for too: no call's signal ends it. */
export function shared<T>(work: () => Promise<T>): Promise<T> {
  return calls.run(undefined, work);
}

function checkSignal(signal: AbortSignal): AbortSignal {
  const isSignal =
    typeof signal === 'object' &&
    signal !== null &&
    typeof field('signal', signal, 'aborted') === 'boolean' &&
    typeof field('signal', signal, 'addEventListener') === 'function';
  if (isSignal) return signal;
  throw invalid('ERR_VALUE', 'signal', signal, 'an AbortSignal');
}

/** The error of a call that a signal ended. */
export function abortedBy({ reason }: AbortSignal): DesapError {
  return new DesapError('ERR_ABORTED', `the call was aborted: ${messageOf(reason)}`, { cause: reason });
}
