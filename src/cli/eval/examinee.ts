/** Whoever answers: a model with its language model, whichever runs it. */
import type { Positions } from '../../vision/compact.js';
import type { Budget, VisionTimings } from '../../vision/vision-model.js';
import type { How } from './methods.js';
import type { EvalQuestion } from './questions.js';

/** Milliseconds by part. */
export type Parts = Readonly<Record<string, number>>;

/** One answer. */
export interface Reply {
  readonly text: string;
  /** Visual tokens that the language model saw. */
  readonly tokens: number;
  readonly parts: Parts;
}

/** A picture that was encoded, once for all that is asked about it. */
export interface Sight {
  /** The answer with all visual tokens. */
  whole(question: EvalQuestion): Promise<Reply>;
  /** The answers with pruned tokens, one for each form of positions. */
  pruned(
    question: EvalQuestion,
    how: How & Budget,
    positions: readonly (Positions | undefined)[],
  ): Promise<readonly Reply[]>;
  dispose(): void;
}

export interface Examinee {
  /** Where the kernels run, in words. */
  readonly device: string;
  /** Opens an image file. */
  see(image: string): Promise<Sight>;
  dispose(): Promise<void>;
}

/** Parts of a pruning behind the image's encoding. Merging is told apart from the choice before it. */
export function partsOf({ stages, analyze, text, prune, projector }: VisionTimings): Parts {
  return { analyze, text, select: Math.max(0, prune - stages.merge), merge: stages.merge, projector };
}
