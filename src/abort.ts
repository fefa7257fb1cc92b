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
    const forget = listen(signal, abort);
    result.then(resolve, reject).finally(forget);
  });
}

/**
 * Opens what a signal may end. When it does, the step under way ends by itself, and what is open by then is closed.
 *
 * @param open asks {@link checkAborted} between its steps, and closes what it has opened where one fails
 * @throws DesapError `ERR_ABORTED`, once nothing is open; `ERR_VALUE` for what is no signal
 */
export async function opening<T>(
  signal: AbortSignal | undefined,
  open: () => Promise<T>,
  close: (opened: T) => unknown,
): Promise<T> {
  if (signal === undefined) return open();
  if (checkSignal(signal).aborted) throw abortedBy(signal);
  const opened = await calls.run({ signal, outer: calls.getStore() }, open);
  if (!signal.aborted) return opened;
  await close(opened);
  throw abortedBy(signal);
}

/** What opening a model takes. */
export interface AbortableOpening {
  /**
   * Ends the opening with `ERR_ABORTED`, whose `cause` is the signal's reason, as soon as its step under way has ended and all that it had
   * opened is closed. It says nothing about the calls of the model.
   */
  signal?: AbortSignal;
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
  for (let call = calls.getStore(); call; call = call.outer) forget.push(listen(call.signal, abort));
  return () => {
    for (const one of forget) one();
  };
}

/** What is to be done when a signal aborts. */
interface Listeners {
  readonly aborts: Set<() => void>;
  readonly fire: () => void;
}

/** One listener for each signal: a server's calls share one for its shutdown, and Node warns of a leak from eleven listeners on. */
const listening = new WeakMap<AbortSignal, Listeners>();

/** @returns forgets it */
function listen(signal: AbortSignal, abort: () => void): () => void {
  const { aborts, fire } = listening.get(signal) ?? begun(signal);
  const own = () => abort();
  aborts.add(own);
  return () => {
    if (!aborts.delete(own) || aborts.size > 0) return;
    signal.removeEventListener('abort', fire);
    listening.delete(signal);
  };
}

function begun(signal: AbortSignal): Listeners {
  const aborts = new Set<() => void>();
  const listeners = {
    aborts,
    fire: () => {
      for (const abort of aborts) abort();
    },
  };
  listening.set(signal, listeners);
  signal.addEventListener('abort', listeners.fire, { once: true });
  return listeners;
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
    typeof field('signal', signal, 'addEventListener') === 'function' &&
    typeof field('signal', signal, 'removeEventListener') === 'function';
  if (isSignal) return signal;
  throw invalid('ERR_VALUE', 'signal', signal, 'an AbortSignal');
}

/** The error of a call that a signal ended. */
export function abortedBy({ reason }: AbortSignal): DesapError {
  return new DesapError('ERR_ABORTED', `the call was aborted: ${messageOf(reason)}`, { cause: reason });
}
