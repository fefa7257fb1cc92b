import type { InferenceSession } from 'onnxruntime-common';
import { DesapError, invalid, mismatch } from '../errors.js';
import type { AnalyzeOptions, DeviceOptions, PruneOptions, PruneResult, Pruner, TextEmbeddings } from '../index.js';
import type { LongText } from '../vision/clip-text.js';
import type { Positions } from '../vision/compact.js';
import type { HookedModel } from './model.js';

/** A question as the text tower is to see it, or its tokens already encoded. */
export type Query = string | TextEmbeddings;

/** Visual tokens to keep of an image: a count, a fraction below 1, or `all`: the model's own path. */
export type Keep = number | 'all';

/** What one call of the model can be told: `generate({ ..., desap: { keep: 32 } })`. */
export interface CallOptions extends Pick<PruneOptions, 'taskShare' | 'alignment' | 'lambda' | 'merge'> {
  /** For each image, or one entry for each image in the order of the prompts. */
  keep?: Keep | readonly Keep[];
  /** For each sequence, or one entry for each sequence; default: the last user turn of the prompt. */
  query?: Query | readonly Query[];
  /**
   * Whether the language model sees kept tokens renumbered (`compact`, the default) or at their own places. Models with
   * M-RoPE (Qwen-VL) always keep their own.
   */
  positions?: Positions;
  /** Is told what was kept, before the language model runs. */
  onPruned?: (images: readonly PrunedImage[]) => void;
}

/** Options of `attach`; those of {@link CallOptions} are the defaults of every call. */
export interface AttachOptions extends CallOptions, DeviceOptions, Pick<AnalyzeOptions, 'encoding'> {
  keep: Keep | readonly Keep[];
  /** LLaVA: CLIP folder of the same vision tower, for the pruning head and the text tower. Qwen-VL takes none. */
  clipFolder?: string;
  /**
   * LLaVA: a pruner that is open already, in place of the head of the CLIP folder (which then needs no `vision_model.onnx`; with
   * queries that are encoded already it is not needed at all). Qwen-VL: only its device is used. It stays the caller's.
   */
  pruner?: Pruner;
  /**
   * The folder that the model was loaded from, or its id under `env.localModelPath` or `env.cacheDir` of Transformers.js.
   * Default: the name in the model's config.
   */
  modelDir?: string;
  /** What happens to questions longer than the CLIP text tower's context; default `segment`. */
  longText?: LongText;
  /** Session options of ONNX Runtime for the sessions that are opened in place of the model's vision session. */
  session?: InferenceSession.SessionOptions;
}

/** What was kept of one image. */
export interface PrunedImage extends Pick<PruneResult, 'indices' | 'source' | 'assignment' | 'counts'> {
  /** Which sequence of the batch it belongs to. */
  readonly sequence: number;
}

/**
 * The options of one call.
 * @throws DesapError `ERR_VALUE`; `ERR_GRAPH` for original positions that the decoder is not told
 */
export function callOptions(model: HookedModel, defaults: CallOptions, given: unknown): CallOptions {
  if (given !== undefined && (typeof given !== 'object' || given === null))
    throw invalid('ERR_VALUE', 'desap', given, 'an object, for example { keep: 32 }');
  // An option that is undefined is not given.
  const own = Object.entries(given ?? {}).filter(([, value]) => value !== undefined);
  const options: CallOptions = { ...defaults, ...Object.fromEntries(own) };
  const { keep, positions } = options;
  const isKeep = (one: unknown) => one === 'all' || (typeof one === 'number' && one > 0);
  if (!(Array.isArray(keep) ? keep.length > 0 && keep.every(isKeep) : isKeep(keep)))
    throw invalid('ERR_VALUE', 'keep', keep, "a count, a fraction below 1, 'all', or one of them for each image");
  if (positions !== undefined && positions !== 'compact' && positions !== 'original')
    throw invalid('ERR_VALUE', 'positions', positions, 'compact | original');
  if (positions === 'compact' && model.get_rope_index)
    throw invalid('ERR_VALUE', 'positions', positions, 'original: tokens keep their places in this model');
  if (positions === 'original' && !model.sessions.decoder_model_merged.inputNames.includes('position_ids'))
    throw new DesapError(
      'ERR_GRAPH',
      'positions: got original, wanted compact: this decoder has no input position_ids',
    );
  return options;
}

/**
 * The entry for one of several: the value itself, or its place in a list.
 * @throws DesapError `ERR_VALUE` when a list has another length
 */
export function entryOf<T>(argument: string, value: T | readonly T[], index: number, count: number): T {
  if (!isList(value)) return value;
  if (value.length === count) return value[index];
  throw mismatch('ERR_VALUE', argument, `${value.length} entries`, `${count}, or a single value`);
}

function isList<T>(value: T | readonly T[]): value is readonly T[] {
  return Array.isArray(value);
}
