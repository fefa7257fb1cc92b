import type { InferenceSession } from 'onnxruntime-common';
import { ABORTABLE, type Abortable } from '../abort.js';
import { DesapError, invalid, mismatch } from '../errors.js';
import type { TextEmbeddings } from '../index.js';
import type { Chooser } from '../methods/method.js';
import { isRival, rivalOf } from '../methods/rival.js';
import { type OptionNames, options } from '../options.js';
import { pruneChoices, textEmbeddings } from '../prune-request.js';
import { oneOf } from '../tensor.js';
import { POSITIONS, type Positions } from '../vision/compact.js';
import { VISION_MODEL_OPTIONS, type VisionModelOptions } from '../vision/families.js';
import { checkDistances, over, withoutPreset } from '../vision/vision-choices.js';
import type { Allocation, Budget, PrunedFeatures, VisionPruneOptions } from '../vision/vision-model.js';
import { decoderOf, type HookedModel } from './model.js';

/** A question in words, or its embeddings. */
export type Question = string | TextEmbeddings;

/** How many visual tokens to keep of an image. `all` takes the model's own path. */
export type Keep = number | 'all';

/** What one call of the model can be told: `generate({ ..., desap: { keep: 32 } })`. */
export interface CallOptions
  extends Pick<
    VisionPruneOptions,
    'preset' | 'taskShare' | 'complement' | 'distances' | 'alignment' | 'lambda' | 'merge' | 'method' | 'methodOptions'
  > {
  /**
   * Visual tokens to keep, of what `allocation` says: a number, or a list with one entry for each image in the order of the prompts.
   */
  keep?: Keep | readonly Keep[];
  /**
   * What `keep` is of: each tile of an image (a video: all its frames together), which is the default; each image, whose tiles share it;
   * or a prompt, whose images share it, and a list then has one entry for each prompt. Shares go by what the question finds, or without
   * one by what stands out; each tile keeps at least one token.
   */
  allocation?: Allocation | 'prompt';
  /** In place of `keep`: the share of an image's visual tokens, above 0 and up to 1, rounded half up, at least one token. */
  keepRatio?: number | readonly number[];
  /** The question of each sequence, or a list with one entry for each sequence. Default: the last user turn of the prompt. */
  question?: Question | readonly Question[];
  /**
   * The language model sees the kept tokens renumbered (`compact`, the default) or at their own places (`original`). Models with
   * M-RoPE (Qwen-VL) always keep the places.
   */
  positions?: Positions;
  /** Is told what was kept, before the language model runs. */
  onPruned?: (images: readonly PrunedImage[]) => void;
}

/** Options of `openVisionModel`, without those that each call has and those that follow from the loaded model. */
export type OpeningOptions = Omit<VisionModelOptions, 'keep' | 'keepRatio' | 'dtype' | 'embedQuestion' | 'ort'>;

/** Options of `attach`: `keep` or `keepRatio` is needed. Those of {@link CallOptions} are the defaults of every call. */
export interface AttachOptions extends CallOptions, OpeningOptions {
  /**
   * The folder that the model was loaded from, or its id under `env.localModelPath` or `env.cacheDir` of Transformers.js.
   * Default: the name in the model's config.
   */
  model?: string;
  /**
   * Session options of ONNX Runtime for the sessions that are opened in place of the model's vision session; default: the device that
   * it runs on.
   */
  session?: InferenceSession.SessionOptions;
}

/** What was kept of one image. */
export interface PrunedImage
  extends Pick<
    PrunedFeatures,
    'indices' | 'source' | 'assignment' | 'counts' | 'choice' | 'dropped' | 'tileCounts' | 'looked' | 'task'
  > {
  /** Which sequence of the batch it belongs to. */
  readonly sequence: number;
}

const CALL_NAMES: OptionNames<CallOptions> = {
  ...{ keep: true, keepRatio: true, allocation: true, question: true, positions: true, onPruned: true },
  ...{ preset: true, taskShare: true, complement: true, distances: true },
  ...{ alignment: true, lambda: true, merge: true, method: true, methodOptions: true },
};
const { keep, keepRatio, dtype, embedQuestion, ort, ...OPENING_NAMES } = VISION_MODEL_OPTIONS;
const RENAMED = { clipFolder: 'clip', modelDir: 'model', query: 'question' };

/** The options of `attach`, by what they are for. */
export interface Attached {
  /** Those of every call. */
  readonly defaults: CallOptions;
  /** `model`. */
  readonly folder: string | undefined;
  readonly opening: OpeningOptions;
}

/**
 * Checks the options of `attach`, and tells apart what they are for.
 * @throws DesapError `ERR_VALUE`; `ERR_GRAPH` for original positions where the decoder takes none
 */
export function attachOptions(model: HookedModel, given: AttachOptions): Attached {
  const { model: folder, ...others } = options(
    'options',
    given,
    { ...CALL_NAMES, ...OPENING_NAMES, model: true },
    RENAMED,
  );
  const those = (names: object) =>
    Object.fromEntries(Object.entries(others).filter(([name]) => Object.hasOwn(names, name)));
  return { defaults: checked(model, withoutPreset(those(CALL_NAMES))), folder, opening: those(OPENING_NAMES) };
}

/**
 * The options of one call, with the defaults where it gives none.
 * @throws DesapError `ERR_VALUE`; `ERR_GRAPH` for original positions where the decoder takes none
 */
export function callOptions(model: HookedModel, defaults: CallOptions, desap: unknown): CallOptions {
  const names = { ...CALL_NAMES, ...ABORTABLE };
  const { signal: _, ...own } = options('desap', desap as (CallOptions & Abortable) | undefined, names, RENAMED);
  const given = withoutPreset<CallOptions>(own);
  // One says how much to keep in place of the other.
  const { keep, keepRatio } = given;
  const whole = over({ ...defaults, ...(given.method !== undefined && OF_METHODS) }, given);
  const isSaid = keep !== undefined || keepRatio !== undefined || rival(whole)?.isAdaptive === true;
  return checked(model, isSaid ? { ...whole, keep, keepRatio } : whole);
}

/** What another method has no part in: defaults of one say nothing about the other. */
const OF_METHODS = {
  ...{ taskShare: undefined, complement: undefined, distances: undefined },
  ...{ alignment: undefined, lambda: undefined, merge: undefined, methodOptions: undefined },
};

/** How the tokens are chosen, without how many. */
export function howOf(options: CallOptions) {
  const { taskShare, complement, distances, alignment, lambda, merge, method, methodOptions } = options;
  const own = { taskShare, complement, distances, alignment, lambda, merge };
  return { ...own, method, methodOptions } satisfies VisionPruneOptions;
}

/** The method in place of DeSAP's own; null for that. */
export function rival(options: CallOptions): Chooser | null {
  const how: VisionPruneOptions = howOf(options);
  return isRival(how) ? rivalOf(how) : null;
}

function checked(model: HookedModel, given: CallOptions): CallOptions {
  const { keep, keepRatio, allocation, question, positions, onPruned } = given;
  if (keep !== undefined && keepRatio !== undefined)
    throw mismatch('ERR_VALUE', 'keepRatio', 'keep beside it', 'one of the two');
  const isAdaptive = rival(given)?.isAdaptive === true;
  if (isAdaptive) {
    if ((keep ?? keepRatio) !== undefined)
      throw mismatch(
        'ERR_VALUE',
        'keep',
        `a budget beside method: '${given.method}'`,
        'none: it says how many are kept',
      );
  } else if (keepRatio === undefined)
    each('keep', keep, isKeep, "a count of visual tokens or 'all' (or keepRatio, a share)");
  else each('keepRatio', keepRatio, isRatio, 'a share of the visual tokens, above 0 and up to 1');
  if (allocation !== undefined) oneOf('allocation', allocation, ALLOCATIONS);
  if (question !== undefined) each('question', question, isQuestion, 'a text, or its embeddings');
  for (const one of isList(question) ? question : [question])
    if (typeof one === 'object') textEmbeddings('question', one);
  pruneChoices(given);
  checkDistances(given);
  if (onPruned !== undefined && typeof onPruned !== 'function')
    throw invalid('ERR_VALUE', 'onPruned', onPruned, 'a function');
  checkPositions(model, positions);
  return given;
}

const ALLOCATIONS = ['tile', 'image', 'prompt'] as const;
const isKeep = (one: unknown) => one === 'all' || (Number.isSafeInteger(one) && (one as number) > 0);
const isRatio = (one: unknown) => typeof one === 'number' && one > 0 && one <= 1;
const isQuestion = (one: unknown) =>
  typeof one === 'string' || (typeof one === 'object' && one !== null && 'embeddings' in one);

/** Checks a value, or each entry of a list. */
function each(argument: string, value: unknown, isGood: (one: unknown) => boolean, wanted: string): void {
  const bad = Array.isArray(value) ? value.findIndex((one) => !isGood(one)) : -1;
  if (bad >= 0) throw invalid('ERR_VALUE', `${argument}[${bad}]`, (value as unknown[])[bad], wanted);
  if (Array.isArray(value) ? value.length === 0 : !isGood(value))
    throw invalid('ERR_VALUE', argument, value, `${wanted}, or a list of them`);
}

function checkPositions(model: HookedModel, positions: Positions | undefined): void {
  if (positions === undefined) return;
  oneOf('positions', positions, POSITIONS);
  if (positions === 'compact' && model.get_rope_index)
    throw invalid('ERR_VALUE', 'positions', positions, "'original': tokens keep their places in this model");
  if (positions === 'original' && !decoderOf(model).inputNames.includes('position_ids'))
    throw new DesapError(
      'ERR_GRAPH',
      "positions: got 'original', wanted 'compact': this decoder has no input position_ids",
    );
}

/**
 * How much to keep of one of several images, or prompts.
 * @throws DesapError `ERR_VALUE` when a list has another length
 */
export function amountOf(options: CallOptions, index: number, count: number): Budget {
  const { keep, keepRatio } = options;
  if (rival(options)?.isAdaptive) return {};
  if (keepRatio !== undefined) return { keepRatio: entryOf('keepRatio', keepRatio, index, count) };
  const amount = entryOf('keep', keep ?? 'all', index, count);
  return amount === 'all' ? { keepRatio: 1 } : { keep: amount };
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
