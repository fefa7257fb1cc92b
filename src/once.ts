import { checkAborted, shared } from './abort.js';

/**
 * Something that is made once, by the first who asks for it, and is then there for all; a failure is not kept. It is made to its end,
 * also when the call that asked first is aborted.
 */
export class Once<T> {
  #made: Promise<T> | null = null;

  async get(make: () => Promise<T>): Promise<T> {
    if (this.#made === null) {
      checkAborted();
      this.#made = shared(make).catch((error) => {
        this.#made = null;
        throw error;
      });
    }
    return this.#made;
  }

  /** What was made, when it is ready; null where nobody asked, and where it failed. */
  async made(): Promise<T | null> {
    return (await this.#made?.catch(() => null)) ?? null;
  }
}
