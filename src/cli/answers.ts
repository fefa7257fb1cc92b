import type { PrunedFeatures } from '../vision/vision-model.js';

/** An answer, whichever way it came about. */
export interface Answered {
  readonly text: string;
  /** Generated token ids. */
  readonly ids: readonly number[];
  /** Visual tokens that the language model saw. */
  readonly tokens: number;
  /** Tokens of the whole prompt, the visual ones included. */
  readonly promptTokens: number;
  /** Milliseconds of each part. */
  readonly timings: object;
  /** What was kept and why; absent where nothing was pruned. */
  readonly pruned?: Pick<PrunedFeatures, 'indices' | 'source' | 'dropped' | 'tileCounts' | 'looked' | 'task'>;
}
