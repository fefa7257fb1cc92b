import type { PruneResult, TextEmbeddings } from '../index.js';
import type { ModelInputs, ModelSession } from './model.js';
import type { CallOptions } from './options.js';

/** What the language model gets of one image: K rows of its width W, and which tokens they stand for. */
export interface KeptTokens extends Pick<PruneResult, 'indices' | 'source' | 'assignment' | 'counts'> {
  /** [K, W]. */
  readonly features: Float32Array;
}

/** One encoded image. */
export interface SeenImage extends Disposable {
  /** P: visual tokens that the prompt has for it. */
  readonly tokens: number;
  prune(question: TextEmbeddings | null, options: CallOptions & { keep: number }): Promise<KeptTokens>;
}

/** What differs between kinds of models. */
export interface VisionFamily {
  /** Stands in for the model's vision session: all tokens, as the plain session gives them. Releasing it frees everything. */
  readonly session: ModelSession;
  /** Whether a call with these options looks at the question. */
  asks(options: CallOptions): boolean;
  encodeQuestion(question: string): Promise<TextEmbeddings>;
  /** Encodes the images of one call, in their order. */
  see(inputs: ModelInputs): Promise<SeenImage[]>;
}
