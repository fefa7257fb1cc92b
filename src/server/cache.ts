/** What a worker keeps for later requests, the longest unused going first. */

/** A value that is in use until it is let go. */
export interface Lease<T> {
  readonly value: T;
  release(): void;
}

interface Entry<T> {
  readonly value: T;
  readonly bytes: number;
  users: number;
  isKept: boolean;
}

/** Values by key, no more bytes of them than a limit; none for a limit of 0. A value that goes is freed once nobody uses it. */
export class Cache<T> {
  readonly #entries = new Map<string, Entry<T>>();
  #bytes = 0;

  /** @param bytes what may be kept */
  constructor(
    private readonly bytes: number,
    private readonly size: (value: T) => number,
    private readonly free: (value: T) => void = () => {},
  ) {}

  /** Whether anything is kept. */
  get isOn(): boolean {
    return this.bytes > 0;
  }

  /** The value of a key, or else the one that is made. Two that ask at one time may both make it. */
  async get(key: () => string, make: () => Promise<T>): Promise<Lease<T>> {
    if (!this.isOn) return this.#lease(this.#entry(await make()));
    const name = key();
    const found = this.#entries.get(name);
    if (found !== undefined) {
      // Behind all others: it was used last.
      this.#entries.delete(name);
      this.#entries.set(name, found);
      return this.#lease(found);
    }
    const entry = this.#entry(await make());
    const lease = this.#lease(entry);
    if (entry.bytes <= this.bytes) this.#keep(name, entry);
    return lease;
  }

  #keep(name: string, entry: Entry<T>): void {
    this.#drop(name);
    entry.isKept = true;
    this.#entries.set(name, entry);
    this.#bytes += entry.bytes;
    for (const oldest of this.#entries.keys()) {
      if (this.#bytes <= this.bytes) return;
      this.#drop(oldest);
    }
  }

  #drop(name: string): void {
    const entry = this.#entries.get(name);
    if (entry === undefined) return;
    this.#entries.delete(name);
    this.#bytes -= entry.bytes;
    entry.isKept = false;
    if (entry.users === 0) this.free(entry.value);
  }

  #entry(value: T): Entry<T> {
    return { value, bytes: this.size(value), users: 0, isKept: false };
  }

  #lease(entry: Entry<T>): Lease<T> {
    entry.users++;
    let isHeld = true;
    const release = () => {
      if (!isHeld) return;
      isHeld = false;
      if (--entry.users === 0 && !entry.isKept) this.free(entry.value);
    };
    return { value: entry.value, release };
  }
}
