import type { InferenceSession, Tensor } from 'onnxruntime-common';
import type { DeviceOptions } from '../../index.js';
import type { KeptPatches, Positions } from '../../vision/compact.js';
import type { PrunedFeatures, VisionPruneOptions } from '../../vision/llava.js';
import type { PromptForm } from './prompt.js';

export interface LlavaOptions extends DeviceOptions {
  /** CLIP folder of the same vision tower (and text tower); without it only `keep: 'all'` works. */
  clip?: string;
  /** Default of the option `keep` of every answer: a count, a fraction below 1, or `all` (the default). */
  keep?: number | 'all';
  /** Prompt with `{image}` and `{question}`; default: what the folder's chat template writes. */
  prompt?: PromptForm;
  /** Session options of ONNX Runtime, for every session; default: its own, with threads that do not spin between runs. */
  session?: InferenceSession.SessionOptions;
}

export interface AnswerOptions extends Omit<VisionPruneOptions, 'keep'> {
  /** Visual tokens to keep, or `all`: the model's own path, without pruning. */
  keep?: number | 'all';
  /** Default `compact`. `original` needs a decoder with the input `position_ids`. */
  positions?: Positions;
  /** Default: the folder's `max_new_tokens`, else 128. */
  maxNewTokens?: number;
}

/** Milliseconds. `vision` is the tower (without pruning: the projector too); `prune` is everything that DeSAP adds. */
export interface AnswerTimings {
  readonly vision: number;
  readonly prune: number;
  readonly projector: number;
  readonly prefill: number;
  readonly decode: number;
}

export interface Answer {
  readonly text: string;
  /** Generated token ids. */
  readonly ids: readonly number[];
  /** Visual tokens that the language model saw. */
  readonly tokens: number;
  /** Tokens of the whole prompt, the visual ones included. */
  readonly promptTokens: number;
  readonly timings: AnswerTimings;
  /** What was kept and why; absent for `keep: 'all'`. */
  readonly pruned?: PrunedFeatures;
}

/** What {@link Llava.complete} adds to a prompt in place of the image. */
export interface VisualTokens {
  /** Projected features, float32 [K, W] or [1, K, W]. */
  readonly features: Tensor;
  /** Which patches they stand for; default: all of them. */
  readonly kept?: KeptPatches;
}
