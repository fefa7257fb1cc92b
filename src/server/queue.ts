import { DesapError } from '../errors.js';

/** What a queue has to know of a request. */
export interface Queued {
  /** Goes to a worker by itself. */
  readonly isAlone: boolean;
  /** Whose it is; those of nobody are one client's. */
  readonly client: string | undefined;
}

/** Requests of clients that have turns, those of one in the order of their arrival, no more of all than a limit. */
export class Queue<T extends Queued> {
  /** The client whose turn it is comes first. */
  readonly #clients = new Map<string | undefined, Set<T>>();
  #size = 0;

  constructor(private readonly limit: number) {}

  get size(): number {
    return this.#size;
  }

  /** The one whose turn it is. */
  get first(): T | undefined {
    const [own = []] = this.#clients.values();
    const [first] = own;
    return first;
  }

  /**
   * Lets a request wait. A full queue has no place for it, unless another client has more than one more of them in it: then its last one goes.
   * @returns the one that has to go
   * @throws DesapError `ERR_BUSY`
   */
  push(request: T): T | undefined {
    const dropped = this.#size < this.limit ? undefined : this.#tooMany(request);
    if (dropped) this.remove(dropped);
    const own = this.#clients.get(request.client) ?? new Set();
    this.#clients.set(request.client, own.add(request));
    this.#size++;
    return dropped;
  }

  /** Takes a request out; false where it does not wait. */
  remove(request: T): boolean {
    const own = this.#clients.get(request.client);
    if (!own?.delete(request)) return false;
    if (own.size === 0) this.#clients.delete(request.client);
    this.#size--;
    return true;
  }

  /** Takes out those that go to a worker together: the first, and up to `most` in all that follow it at once. */
  take(most: number): T[] {
    const taken: T[] = [];
    for (let first = this.first; first !== undefined; first = this.first) {
      if (taken.length > 0 && (taken.length >= most || first.isAlone || taken[0].isAlone)) break;
      taken.push(first);
      this.remove(first);
      this.#passTurn(first.client);
    }
    return taken;
  }

  /** Behind all others: it had its turn. */
  #passTurn(client: string | undefined): void {
    const own = this.#clients.get(client);
    if (own === undefined) return;
    this.#clients.delete(client);
    this.#clients.set(client, own);
  }

  /** The last request of the client that has most. */
  #tooMany({ client }: T): T {
    const most = [...this.#clients.values()].reduce((a, b) => (b.size > a.size ? b : a), new Set<T>());
    if (most.size > (this.#clients.get(client)?.size ?? 0) + 1) return [...most][most.size - 1];
    throw this.busy();
  }

  /** The error of a request that finds no place. */
  busy(): DesapError {
    return new DesapError('ERR_BUSY', `the queue is full: ${this.limit} requests wait, and this one was not taken`);
  }
}
