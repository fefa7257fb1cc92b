/** Which parts of the code ran, as V8 counts them: a file that reaches a new one is worth changing further. */
import { type Profiler, Session } from 'node:inspector';

/** Parts of the package and of the packages that read files for it. */
const WATCHED = /\/src\/|\/node_modules\/(@huggingface|@bufbuild)\//;

export class Coverage {
  readonly #session = new Session();
  readonly #seen = new Set<string>();

  constructor() {
    this.#session.connect();
    this.#session.post('Profiler.enable');
    this.#session.post('Profiler.startPreciseCoverage', { callCount: true, detailed: true });
  }

  /** Blocks that ran at least once. */
  get blocks(): number {
    return this.#seen.size;
  }

  /** Whether a block ran since the last call that never ran before. */
  grown(): boolean {
    const before = this.#seen.size;
    for (const { url, functions } of this.#taken())
      if (WATCHED.test(url))
        for (const { ranges } of functions)
          for (const { startOffset, endOffset, count } of ranges)
            if (count > 0)
              this.#seen.add(`${url}:${startOffset}:${endOffset}:${Math.min(4, Math.floor(Math.log2(count)))}`);
    return this.#seen.size > before;
  }

  #taken(): Profiler.ScriptCoverage[] {
    let result: Profiler.ScriptCoverage[] = [];
    // In this process the answer comes before post returns.
    this.#session.post('Profiler.takePreciseCoverage', (error, taken) => {
      if (error) throw error;
      result = taken.result;
    });
    return result;
  }
}
