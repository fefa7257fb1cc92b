/** Milliseconds by part of a whole. Parts do not overlap. */
export class Stopwatch<Part extends string> {
  readonly #spent = new Map<Part, number>();

  /** Runs a part, and adds what it takes. */
  readonly timed = async <T>(part: Part, work: () => T | Promise<T>): Promise<T> => {
    const start = performance.now();
    try {
      return await work();
    } finally {
      this.#spent.set(part, this.spent(part) + performance.now() - start);
    }
  };

  /** What a part took so far. */
  readonly spent = (part: Part): number => this.#spent.get(part) ?? 0;
}
