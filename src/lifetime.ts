import { AsyncLocalStorage } from 'node:async_hooks';
import { abortable } from './abort.js';
import { DesapError } from './errors.js';

/** A call of an object, and the one on whose way it was made. */
interface Call {
  readonly life: Lifetime;
  readonly outer: Call | undefined;
}

/** One for all objects: before version 24, Node goes through every storage that was ever used for each promise that is made. */
const calls = new AsyncLocalStorage<Call>();

/**
 * Whether an object with asynchronous calls may still be used, and which of its calls are under way: what it holds is freed
 * once, after the last of them. A call that another call makes on its way belongs to that one, and is let through to its end.
 */
export class Lifetime {
  readonly #running = new Set<Promise<unknown>>();
  #ended: Promise<void> | null = null;
  #freed = false;

  /** @param what the name of the object in messages */
  constructor(private readonly what: string) {}

  /** @throws DesapError `ERR_DISPOSED` after {@link Lifetime.end} */
  check(): void {
    if (this.#ended && (this.#freed || !this.#isWithin()))
      throw new DesapError('ERR_DISPOSED', `${this.what}: used after dispose()`);
  }

  /**
   * Runs a call of the object, which `signal` may end. Rejects with `ERR_DISPOSED` after {@link Lifetime.end}.
   * @param discard frees a result that nobody gets any more
   */
  async call<T>(work: () => Promise<T>, signal?: AbortSignal, discard?: (result: T) => unknown): Promise<T> {
    this.check();
    return abortable(signal, () => this.#track(work), discard);
  }

  /** A call that was aborted is under way to the end of what it has begun. */
  async #track<T>(work: () => Promise<T>): Promise<T> {
    const result = calls.run({ life: this, outer: calls.getStore() }, work);
    this.#running.add(result);
    try {
      return await result;
    } finally {
      this.#running.delete(result);
    }
  }

  /**
   * Refuses further calls, waits for those under way, and then frees what the object holds: at once where none is. Safe to call
   * again; every call gets the one promise.
   */
  end(free: () => unknown): Promise<void> {
    this.#ended ??= this.#drain(free);
    return this.#ended;
  }

  /** Whether what runs now is on the way of a call of the object. */
  #isWithin(): boolean {
    for (let call = calls.getStore(); call !== undefined; call = call.outer) if (call.life === this) return true;
    return false;
  }

  async #drain(free: () => unknown): Promise<void> {
    while (this.#running.size > 0) await Promise.allSettled(this.#running);
    this.#freed = true;
    await free();
  }
}
