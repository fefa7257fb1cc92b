/**
 * What a device can do, below all checking: the interface that `reference`, `cpu` and `cuda` implement.
 * Arguments are already checked (shapes, types, ranges); what only the data can tell (NaN, Inf) the driver reports.
 */
import { types } from 'node:util';
import type { BlockWeights } from '../block-weights.js';
import type { HeadWeights } from '../head.js';
import type {
  Alignment,
  Complement,
  Encoding,
  KernelArguments,
  KernelName,
  KernelResults,
} from '../kernels/kernels.js';
import type { Rotary } from '../rotary-tables.js';
import type { FloatData, FloatMatrix } from '../tensor.js';

export type MaybePromise<T> = T | Promise<T>;

/** What follows from a value that is there, or will be. */
export function after<T, R>(value: MaybePromise<T>, next: (value: T) => R): MaybePromise<R> {
  return types.isPromise(value) ? (value as Promise<T>).then(next) : next(value as T);
}

/** A value that is there, or will be; whether it fails at once or later, `failed` says with what. */
export function orElse<T>(work: () => MaybePromise<T>, failed: (error: unknown) => never): MaybePromise<T> {
  try {
    const value = work();
    return types.isPromise(value) ? (value as Promise<T>).catch(failed) : value;
  } catch (error) {
    return failed(error);
  }
}

/** Arithmetic of the matrix products, from the finest to the coarsest. */
export const PRECISIONS = ['fp32', 'fp16', 'bf16'] as const;
/** One of them; `DeviceOptions.precision` tells what each means on a device. */
export type Precision = (typeof PRECISIONS)[number];

export interface Driver {
  /** `reference`, `cpu`, `cuda:0`. */
  readonly device: string;
  /** In words: instruction set and threads, or the GPU. */
  readonly deviceDescription: string;
  /** Arithmetic of the matrix products. The reference, which computes in float64, keeps the contract of `fp32`. */
  readonly precision: Precision;
  /** Runs one kernel; with `sync` in place and at once, otherwise without blocking the event loop. */
  run<K extends KernelName>(kernel: K, args: KernelArguments[K], sync: boolean): MaybePromise<KernelResults[K]>;
  /** Packs a head's weights, which it copies first, without blocking the event loop. */
  createHead(weights: HeadWeights): Promise<DriverHead>;
  /** Packs the weights of a block head, as {@link Driver.createHead} does. */
  createBlock(weights: BlockWeights): Promise<DriverBlock>;
  /** An analysis that another encoder made the parts of. */
  createAnalysis(parts: DriverParts, sync: boolean): MaybePromise<DriverAnalysis>;
  /** Prunes each of this driver's analyses for its own request, in one go; results in order. All or nothing: an error names the first image at fault. */
  pruneAll(
    analyses: readonly DriverAnalysis[],
    requests: readonly PruneRequest[],
    sync: boolean,
  ): MaybePromise<PruneOutput[]>;
  /** Takes a call out of the queue that has not begun, by the promise that it returned, which rejects; false where it has begun. */
  cancel(call: Promise<unknown>): boolean;
  /** Frees threads and memory once the work in flight has ended. */
  dispose(): void;
}

export interface DriverHead {
  /** One analysis per image; images may differ in their number of rows. */
  analyze(images: readonly FloatMatrix[], options: AnalyzeRequest, sync: boolean): MaybePromise<DriverAnalysis[]>;
  /** Analyses and prunes each image for its own request, in one go; keeps nothing. */
  prune(
    images: readonly FloatMatrix[],
    options: Pick<AnalyzeRequest, 'encoding'>,
    requests: readonly PruneRequest[],
    sync: boolean,
  ): MaybePromise<PruneOutput[]>;
  dispose(): void;
}

export interface AnalyzeRequest {
  readonly encoding: Encoding;
  /** Also keep the attention's context (eq. 2) and its output projection. */
  readonly intermediates: boolean;
}

export interface DriverBlock {
  /** One output per sequence; sequences may differ in their number of rows. */
  analyze(images: readonly BlockStates[], encoding: Encoding, sync: boolean): MaybePromise<BlockOutput[]>;
  dispose(): void;
}

/** One sequence; BlockStates of native/block.h. N rows, without padding. */
export interface BlockStates {
  /** [N, D]. */
  readonly hidden: FloatMatrix;
  /** [N, dh] each, or null. */
  readonly rotary: Rotary | null;
  /** [N] the visual token of each patch, every one from 0 to `units` - 1 at least once; null: each patch is one. */
  readonly unit: Int32Array | null;
  readonly units: number;
  /**
   * [N, D]: where the attention is written: memory of a `HostBuffer`, and any memory in a synchronous call, as it is computed; other
   * memory once it is. Null: it is not wanted.
   */
  readonly attention: Float32Array | null;
  /** [N, D]: where the block's own attention is written, likewise. Null: it is not wanted, and nothing is computed for it. */
  readonly selfAttention: Float32Array | null;
}

/** BlockOutput of native/block.h. */
export interface BlockOutput {
  /** [N]. */
  readonly saliency: Float32Array;
  /** [units]; null without units. */
  readonly unitSaliency: Float32Array | null;
  /** With SigLIP's read-out: [N, D], [D] and [N]. */
  readonly siglip: {
    readonly embeddings: Float32Array;
    readonly global: Float32Array;
    readonly probeSaliency: Float32Array;
  } | null;
  readonly timings: AnalyzeTimings;
}

/** The parts of an analysis; AnalysisParts of native/head.h. */
export interface DriverParts {
  /** [P, E], made unit rows. */
  readonly patchEmbeddings: FloatMatrix;
  /** [E], made a unit row; null: the normalised mean of the unit patch embeddings. */
  readonly global: Float32Array | null;
  /** [P]. */
  readonly saliency: Float32Array;
  /** [P, F], what merging reads. */
  readonly features: FloatMatrix;
}

/**
 * Milliseconds per stage of an analysis; of several images in one go each has its share of the whole. A block's own attention, where it
 * is wanted, is part of the stage `saliency`.
 */
export interface AnalyzeTimings {
  /** How long the call waited for the device, behind other calls: no work, and in no other number. */
  readonly waiting: number;
  readonly normalize: number;
  readonly project: number;
  readonly attention: number;
  readonly saliency: number;
  readonly readOut: number;
}

/** Milliseconds per stage of a pruning. */
export interface PruneTimings {
  readonly align: number;
  readonly select: number;
  readonly merge: number;
}

export interface DriverAnalysis {
  /** N, P, D and E; of an analysis from parts N is P, and D is F. */
  readonly rows: number;
  readonly patches: number;
  readonly width: number;
  readonly projectionDim: number;
  /** All zero for an analysis from parts. */
  readonly timings: AnalyzeTimings;
  /** Address of the rows that the kernels read and merging will read; 0n where that is a copy on the device. */
  readonly featuresAddress: bigint;
  /** A copy of the patches' rows of A_d [P, E]. */
  patchEmbeddings(): Float32Array;
  /** A copy of v_s [E]. */
  global(): Float32Array;
  /** A copy of A_s [P]. */
  saliency(): Float32Array;
  /** Copies of the intermediates, each [N, D]; null unless they were asked for. */
  intermediates(): { context: Float32Array; attention: Float32Array } | null;
  prune(request: PruneRequest, sync: boolean): MaybePromise<PruneOutput>;
  dispose(): void;
}

/** What is asked about one image; PruneRequest of native/head.h. */
export interface PruneRequest {
  /** [T, E] float32, not normalised; null: no text, and `taskKeep` is 0 unless there is a `task`. */
  readonly text: FloatMatrix | null;
  /** Row of the text, or a vector of its own [E]. */
  readonly endOfText: number | Float32Array;
  readonly keep: number;
  /** k1, how many of `keep` the task map chooses. */
  readonly taskKeep: number;
  readonly alignment: Alignment;
  readonly lambda: number;
  /** [P] map in place of the one that the text would give, or null. */
  readonly task: Float32Array | null;
  /** [P] map in place of the analysis' own, or null. */
  readonly saliency: Float32Array | null;
  readonly merge: boolean;
  /** [P, F] rows to merge in place of the analysis' own, or null. */
  readonly features: FloatMatrix | null;
  readonly complement: Complement;
  /** [P, W] rows whose distances count for the diversity in place of those that are merged, or null. */
  readonly distances: FloatMatrix | null;
  /** Whether to return the maps, and the alignment matrices (not without a text). */
  readonly maps: boolean;
  readonly matrices: boolean;
}

/** PruneOutput of native/head.h. */
export interface PruneOutput {
  /** [K, F] in the element type of the features. */
  readonly tokens: FloatData;
  readonly indices: Int32Array;
  readonly source: Uint8Array;
  readonly assignment: Int32Array;
  readonly counts: Int32Array;
  /** The map that chose `taskKeep` tokens, null without a text and a `task`, and the one that chose the rest: [P] each, when asked for. */
  readonly maps: { readonly task: Float32Array | null; readonly saliency: Float32Array } | null;
  readonly matrices: KernelResults['align']['matrices'];
  readonly timings: AnalyzeTimings & PruneTimings;
}
