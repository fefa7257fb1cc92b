import { type MaybePromise, orElse, type PruneRequest } from './devices/driver.js';
import { describe, invalid, mismatch, notFinite } from './errors.js';
import { ALIGNMENTS, type Alignment, COMPLEMENTS, type Complement } from './kernels/kernels.js';
import { type OptionNames, options, reading } from './options.js';
import {
  boolean,
  type FloatMatrix,
  finite,
  integer,
  isArray,
  matrix,
  oneOf,
  type TensorLike,
  vector,
  widened,
} from './tensor.js';

/** Embeddings of a text's tokens in the space that it shares with the image: S of the paper, before L2 normalisation, no padding. */
export interface TextEmbeddings {
  /** [T, E] (or [1, T, E]). */
  readonly embeddings: TensorLike;
  /** Row of the end-of-text token, or that vector itself [E]; default: the last row. */
  readonly endOfText?: number | Float32Array;
}

/** A text as {@link ImageAnalysis.prune} takes it: its embeddings, the last row being the end-of-text token's unless it says another. */
export type Text = TensorLike | TextEmbeddings;

/** Options of {@link ImageAnalysis.prune}. One of `keep` and `keepRatio` says how many visual tokens to keep. */
export interface PruneOptions {
  /** K: how many, from 1 to P. */
  keep?: number;
  /** The share of P to keep: above 0, at most 1; K is rounded half up, and at least 1. */
  keepRatio?: number;
  /** Share of K that the task map chooses; `complement` says what chooses the rest. From 0 to 1, default 0.5. */
  taskShare?: number;
  /**
   * What chooses the rest: the largest of the saliency map (`saliency`, the default, as printed in the paper), or the rows that differ
   * most from all that are chosen (`diversity`: the row whose smallest cosine distance to all chosen so far is largest, one after the
   * other; where the task map chooses none, the first is the row with the largest sum of distances). Equal distances: the lower index.
   */
  complement?: Complement;
  /** [P, W] rows whose distances count for `complement: 'diversity'`; default: the rows that are merged. */
  distances?: TensorLike;
  /** How text and image are matched; default `fcma` (eq. 3 as printed). docs/accuracy.md tells what each was measured to cost. */
  alignment?: Alignment;
  /** lambda of eq. 3; default 0.1, at most 1e6 in magnitude. */
  lambda?: number;
  /** false returns the kept tokens as they are instead of merging the others into them; default true. */
  merge?: boolean;
  /** A task map [P] in place of the one that the text gives: the text and its alignment have no say then, and it may be null. */
  task?: Float32Array | TensorLike;
  /** A saliency map [P] in place of the analysis' own, for example of another layer. */
  saliency?: Float32Array | TensorLike;
  /** [P, F] rows to merge in place of the analysis' own, for example projected features. */
  features?: TensorLike;
  /** Return both maps; default false. */
  maps?: boolean;
  /** Return the matrices of eq. 3; default false. They need a text. */
  matrices?: boolean;
}

export const PRUNE_OPTIONS: OptionNames<PruneOptions> = {
  keep: true,
  keepRatio: true,
  taskShare: true,
  complement: true,
  distances: true,
  alignment: true,
  lambda: true,
  merge: true,
  task: true,
  saliency: true,
  features: true,
  maps: true,
  matrices: true,
};

/**
 * What is asked of a device, from what a caller gave: every value checked, every default filled in. The names of the options were
 * checked before.
 *
 * @param argument what the caller knows the text by
 */
export function pruneRequest(
  argument: string,
  text: Text | null,
  given: PruneOptions,
  { patches, projectionDim }: { readonly patches: number; readonly projectionDim: number },
): PruneRequest {
  const keep = keepCount(given, patches);
  const { taskShare, ...how } = pruneChoices(given);
  const task = given.task === undefined ? null : vector('task', given.task, patches);
  if (text === null && task === null && taskShare > 0)
    throw invalid('ERR_VALUE', argument, text, `the embeddings of a text, or taskShare: 0, which asks for none`);
  if (text === null && how.matrices) throw mismatch('ERR_VALUE', 'matrices', 'true without a text', 'false, or a text');
  if (given.distances !== undefined && how.complement !== 'diversity')
    throw mismatch('ERR_VALUE', 'distances', `rows beside complement: '${how.complement}'`, "complement: 'diversity'");
  const asked = text === null ? null : checkText(argument, text, projectionDim);
  const aligned = task === null || how.matrices ? asked : null;
  return {
    ...(aligned ?? { text: null, endOfText: 0 }),
    keep,
    taskKeep: shareOf(keep, taskShare),
    task,
    saliency: given.saliency === undefined ? null : vector('saliency', given.saliency, patches),
    features: given.features === undefined ? null : matrix('features', given.features, { rows: patches }),
    distances: given.distances === undefined ? null : matrix('distances', given.distances, { rows: patches }),
    ...how,
  };
}

type Choices = Omit<PruneOptions, 'keep' | 'keepRatio' | 'task' | 'saliency' | 'features' | 'distances'>;

/**
 * The options that can be judged before there is an image, with their defaults.
 * @throws DesapError `ERR_VALUE`
 */
export function pruneChoices({ taskShare, complement, alignment, lambda, merge, maps, matrices }: Choices) {
  return {
    taskShare: finite('taskShare', taskShare ?? 0.5, 0, 1),
    complement: oneOf('complement', complement ?? 'saliency', COMPLEMENTS),
    alignment: oneOf('alignment', alignment ?? 'fcma', ALIGNMENTS),
    lambda: finite('lambda', lambda ?? 0.1, -1e6, 1e6),
    merge: boolean('merge', merge ?? true),
    maps: boolean('maps', maps ?? false),
    matrices: boolean('matrices', matrices ?? false),
  };
}

function checkText(argument: string, text: Text, cols: number): Pick<PruneRequest, 'text' | 'endOfText'> {
  const { embeddings, endOfText } = textEmbeddings(argument, text);
  const rows = singlePrecision(matrix(argument, embeddings, { cols }));
  if (endOfText === undefined) return { text: rows, endOfText: rows.rows - 1 };
  const last =
    typeof endOfText === 'number'
      ? integer('endOfText', endOfText, 0, rows.rows - 1)
      : vector('endOfText', endOfText, cols);
  return { text: rows, endOfText: last };
}

/** More may come with a text's embeddings: its ids and words, and how it was filtered. */
const TEXT: OptionNames<TextEmbeddings & Record<'ids' | 'words' | 'filtered', unknown>> = {
  ...{ embeddings: true, endOfText: true },
  ...{ ids: true, words: true, filtered: true },
};

/**
 * A text as its embeddings and their end.
 * @throws DesapError `ERR_VALUE` for an unknown name
 */
export function textEmbeddings(argument: string, text: Text): TextEmbeddings {
  const isNamed = typeof text === 'object' && reading(argument, () => 'embeddings' in text || 'tokens' in text);
  if (isNamed) return options(argument, text as TextEmbeddings, TEXT, { tokens: 'embeddings' });
  return { embeddings: text as TensorLike };
}

/** How many of a count a share is, rounded half up. */
export function shareOf(count: number, share: number): number {
  return Math.floor(count * share + 0.5);
}

/**
 * K of P patches. Without a number of patches: checks what can be judged before there is an image.
 * @throws DesapError `ERR_VALUE`
 */
export function keepCount({ keep, keepRatio }: PruneOptions, patches = Number.POSITIVE_INFINITY): number {
  if (keep !== undefined && keepRatio !== undefined)
    throw mismatch('ERR_VALUE', 'keepRatio', `${describe(keepRatio)} beside keep: ${describe(keep)}`, 'one of the two');
  if (keepRatio !== undefined) {
    if (typeof keepRatio !== 'number' || !(keepRatio > 0 && keepRatio <= 1))
      throw invalid('ERR_VALUE', 'keepRatio', keepRatio, 'a share above 0 and at most 1');
    return Math.max(1, shareOf(patches, keepRatio));
  }
  if (typeof keep === 'number' && Number.isInteger(keep) && keep >= 1 && keep <= patches) return keep;
  const count = patches < Number.POSITIVE_INFINITY ? `from 1 to ${patches}` : 'of at least 1';
  const share = typeof keep === 'number' && keep > 0 && keep < 1;
  throw invalid('ERR_VALUE', 'keep', keep, `a count ${count}, or keepRatio${share ? `: ${keep}` : ''}`);
}

function singlePrecision(x: FloatMatrix): FloatMatrix {
  return x.half ? { ...x, data: widened(x), half: false } : x;
}

export function isList<T>(given: T | readonly T[]): given is readonly T[] {
  return isArray(given);
}

/** Prunes several images for one text: what is wrong with it is wrong for no image in particular. */
export function withSharedText<T>(prune: () => MaybePromise<T>): MaybePromise<T> {
  return orElse(prune, (error) => {
    const { argument, row } = error as { argument?: string; row?: number };
    throw (argument === 'text' || argument === 'endOfText') && row !== undefined ? notFinite(argument, row) : error;
  });
}
