import type { Tensor } from '../tensor.js';
import type { KeptPatches } from '../vision/compact.js';
import type { VisionModel } from '../vision/vision-model.js';

/** What a continuation is told of one request. */
export interface Continued {
  /** The rows for the image tokens of the prompt, [1, K, W]. */
  readonly features: Tensor;
  /** Which visual tokens they stand for, for `compact`. */
  readonly kept: KeptPatches;
  /** The question, where it came as a text. */
  readonly question: string | null;
  /** What the caller gave for it (`input`), as a structured clone. */
  readonly input: unknown;
  /** Ends when the request does. */
  readonly signal: AbortSignal;
}

/**
 * What follows pruning in a worker, for example the language model: a module's default export makes it, once in each worker.
 * Each piece that it yields goes to {@link VisionPool.stream} as a structured clone.
 */
export type Continuation = (request: Continued) => AsyncIterable<unknown>;

/** The default export of a continuation's module. `threads` are those that its sessions may have. */
export type OpenContinuation = (about: {
  readonly vision: VisionModel;
  readonly model: string;
  readonly threads: number;
}) => Continuation | Promise<Continuation>;
