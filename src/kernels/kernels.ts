/**
 * The list of kernels: arguments and results of each, as every backend takes and returns them.
 * The same names stand in native/kernels.h, native/cpu, native/cuda, test and bench.
 */
import type { LinearWeights } from '../head.js';
import type { Rotary } from '../rotary-tables.js';
import type { FloatMatrix } from '../tensor.js';

/** Operands of the decoupled attention, Table 4(b) of the paper. */
export type Encoding = 'qq' | 'kk' | 'vv' | 'qk';
export const ENCODINGS: readonly Encoding[] = ['qq', 'kk', 'vv', 'qk'];

/**
 * How visual and text tokens are matched: `fcma` is eq. 3 as printed, `fcma-clamped` counts negative alpha and beta as
 * zero, `mean` is the plain mean of the cosines.
 */
export type Alignment = 'fcma' | 'fcma-clamped' | 'mean';
export const ALIGNMENTS: readonly Alignment[] = ['fcma', 'fcma-clamped', 'mean'];

export interface KernelArguments {
  layerNorm: { x: FloatMatrix; weight: Float32Array; bias: Float32Array; epsilon: number };
  rmsNorm: { x: FloatMatrix; weight: Float32Array; epsilon: number };
  linear: { x: FloatMatrix; weight: FloatMatrix; bias: Float32Array | null };
  attention: { q: FloatMatrix; k: FloatMatrix; v: FloatMatrix; heads: number };
  saliency: { q: FloatMatrix; k: FloatMatrix; heads: number; classToken: boolean; rotary: Rotary | null };
  /** `unit`: each from 0 to `units` - 1, every one at least once. */
  pool: { scores: Float32Array; unit: Int32Array; units: number };
  unitRows: { x: FloatMatrix };
  readOut: {
    context: FloatMatrix;
    out: LinearWeights;
    postNorm: LinearWeights;
    epsilon: number;
    visualProjection: FloatMatrix;
  };
  /** [D, D] each but fc1 [F, D] and fc2 [D, F]; query: [D], the probe behind its projection. */
  siglipReadOut: {
    attention: FloatMatrix;
    postNorm: LinearWeights;
    query: Float32Array;
    key: LinearWeights;
    value: LinearWeights;
    out: LinearWeights;
    norm: LinearWeights;
    fc1: LinearWeights;
    fc2: LinearWeights;
    heads: number;
    epsilon: number;
  };
  align: {
    visual: FloatMatrix;
    text: FloatMatrix;
    endOfText: Float32Array;
    global: Float32Array;
    alignment: Alignment;
    lambda: number;
    matrices: boolean;
  };
  topK: { scores: Float32Array; k: number; excluded: Uint8Array | null };
  select: { task: Float32Array | null; saliency: Float32Array | null; keep: number; taskKeep: number };
  merge: { features: FloatMatrix; kept: Int32Array };
  /** `seeds`: distinct, may be none. */
  farthestPoints: { x: FloatMatrix; seeds: Int32Array; count: number };
  dpp: { x: FloatMatrix; relevance: Float32Array; blend: number; count: number };
}

/** Matrices of eq. 3, each [P, T]; the last two are null for the alignment `mean`. */
export interface AlignmentMatrices {
  readonly similarity: Float32Array;
  readonly visualAlignment: Float32Array | null;
  readonly textAlignment: Float32Array | null;
}

export interface KernelResults {
  layerNorm: Float32Array;
  rmsNorm: Float32Array;
  linear: Float32Array;
  attention: Float32Array;
  saliency: Float32Array;
  pool: Float32Array;
  unitRows: Float32Array;
  readOut: { attention: Float32Array; embeddings: Float32Array };
  siglipReadOut: { embeddings: Float32Array; global: Float32Array; saliency: Float32Array };
  align: { task: Float32Array; matrices: AlignmentMatrices | null };
  topK: Int32Array;
  select: { indices: Int32Array; source: Uint8Array };
  merge: { tokens: Float32Array; assignment: Int32Array; counts: Int32Array };
  farthestPoints: Int32Array;
  dpp: Int32Array;
}

export type KernelName = keyof KernelArguments;
