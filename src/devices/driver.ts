/**
 * What a device can do, below all checking: the interface that `reference`, `cpu` and `cuda` implement.
 * Arguments are already checked (shapes, types, ranges); what only the data can tell (NaN, Inf) the driver reports.
 */

import type { HeadWeights } from '../head.js';
import type { Alignment, Encoding, KernelArguments, KernelName, KernelResults } from '../kernels/kernels.js';
import type { FloatData, FloatMatrix } from '../tensor.js';

export type MaybePromise<T> = T | Promise<T>;

/** Arithmetic of the matrix products, from the finest to the coarsest. */
export const PRECISIONS = ['strict', 'fast', 'bf16'] as const;
export type Precision = (typeof PRECISIONS)[number];

export interface Driver {
  readonly kind: 'reference' | 'cpu' | 'cuda';
  /** In words: instruction set and threads, or the card. */
  readonly description: string;
  /** Arithmetic of the matrix products. */
  readonly precision: 'float64' | 'float32' | Precision;
  /** Runs one kernel; with `sync` in place and at once, otherwise without blocking the event loop. */
  run<K extends KernelName>(kernel: K, args: KernelArguments[K], sync: boolean): MaybePromise<KernelResults[K]>;
  /** Packs a head's weights, which it copies first, without blocking the event loop. */
  createHead(weights: HeadWeights): Promise<DriverHead>;
  /** Frees threads and memory once the work in flight has ended. */
  dispose(): void;
}

export interface DriverHead {
  /** One analysis per image; images may differ in their number of rows. */
  analyze(images: readonly FloatMatrix[], options: AnalyzeRequest, sync: boolean): MaybePromise<DriverAnalysis[]>;
  /** Analyses and prunes each image for its own request, in one go; keeps nothing. */
  prune(
    images: readonly FloatMatrix[],
    requests: readonly PruneRequest[],
    options: PruneAllRequest,
    sync: boolean,
  ): MaybePromise<PruneAllOutput[]>;
  dispose(): void;
}

export interface AnalyzeRequest {
  readonly encoding: Encoding;
  /** Also keep the attention's context and its projection (steps 2 of the specification). */
  readonly intermediates: boolean;
}

export interface PruneAllRequest {
  readonly encoding: Encoding;
  /** Whether to return A_s. */
  readonly maps: boolean;
}

/** Milliseconds per stage of an analysis; of several images in one go each has its share of the whole. */
export interface AnalyzeTimings {
  readonly normalize: number;
  readonly project: number;
  readonly attention: number;
  readonly saliency: number;
  readonly readOut: number;
}

/** Milliseconds per stage of a pruning. */
export interface PruneTimings {
  readonly align: number;
  readonly topK: number;
  readonly merge: number;
}

export interface DriverAnalysis {
  /** N, P and D. */
  readonly tokens: number;
  readonly patches: number;
  readonly width: number;
  readonly timings: AnalyzeTimings;
  /** Address of the hidden states that the kernels read and merging will read; 0n where that is a copy on the device. */
  readonly featuresAddress: bigint;
  /** A copy of A_d [N, E]. */
  embedding(): Float32Array;
  /** A copy of A_s [P]. */
  saliency(): Float32Array;
  /** Copies of the intermediates, each [N, D]; null unless they were asked for. */
  intermediates(): { context: Float32Array; attention: Float32Array } | null;
  prune(request: PruneRequest, sync: boolean): MaybePromise<PruneOutput>;
  dispose(): void;
}

export interface PruneRequest {
  /** [T, E] float32, not normalised. */
  readonly text: FloatMatrix;
  /** End-of-text vector [E], or null: row `endOfText` of the text. */
  readonly query: Float32Array | null;
  readonly endOfText: number;
  readonly keep: number;
  /** k1, how many of `keep` the task map chooses. */
  readonly taskKeep: number;
  readonly alignment: Alignment;
  readonly lambda: number;
  /** [P] map in place of the analysis' own, or null. */
  readonly saliency: Float32Array | null;
  readonly merge: boolean;
  /** [P, F] rows to merge in place of the hidden states' patch rows, or null. */
  readonly features: FloatMatrix | null;
  /** Whether to return the alignment matrices. */
  readonly matrices: boolean;
}

export interface PruneOutput {
  /** [K, F] in the element type of the features. */
  readonly tokens: FloatData;
  readonly indices: Int32Array;
  readonly source: Uint8Array;
  readonly assignment: Int32Array;
  readonly counts: Int32Array;
  /** A_t [P]. */
  readonly task: Float32Array;
  readonly matrices: KernelResults['align']['matrices'];
  readonly timings: PruneTimings;
}

export interface PruneAllOutput extends PruneOutput {
  readonly timings: AnalyzeTimings & PruneTimings;
  /** A_s [P], when asked for. */
  readonly saliency: Float32Array | null;
}

/** How a driver reports data at fault: `argument` is its name for the input, `row` the first bad row or element. */
export interface DriverError extends Error {
  readonly code?: string;
  readonly argument?: string;
  readonly row?: number;
  /** Which image of the call, where there are several. */
  readonly image?: number;
}
