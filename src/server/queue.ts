import { DesapError } from '../errors.js';

/** Requests in the order of their arrival, no more than a limit. */
export class Queue<T extends { readonly isAlone: boolean }> {
  readonly #waiting = new Set<T>();

  constructor(private readonly limit: number) {}

  get size(): number {
    return this.#waiting.size;
  }

  /** The one that waits longest. */
  get first(): T | undefined {
    const [first] = this.#waiting;
    return first;
  }

  /** @throws DesapError `ERR_BUSY` */
  push(request: T): void {
    if (this.#waiting.size >= this.limit)
      throw new DesapError('ERR_BUSY', `the queue is full: ${this.limit} requests wait, and this one was not taken`);
    this.#waiting.add(request);
  }

  /** Takes a request out; false where it does not wait. */
  remove(request: T): boolean {
    return this.#waiting.delete(request);
  }

  /** Takes out those that go to a worker together: the first, and up to `most` in all that follow it at once. */
  take(most: number): T[] {
    const taken: T[] = [];
    for (const request of this.#waiting) {
      if (taken.length > 0 && (taken.length >= most || request.isAlone || taken[0].isAlone)) break;
      taken.push(request);
    }
    for (const request of taken) this.#waiting.delete(request);
    return taken;
  }
}
