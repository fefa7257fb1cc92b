import type { LinearWeights } from './head.js';

/** A linear layer whose bias may be missing: `weight` [out, in] row-major, `bias` [out] or null. */
export interface OptionalBias {
  readonly weight: Float32Array;
  readonly bias: Float32Array | null;
}

/**
 * SigLIP's pooling head: a learned probe attends over the normalised rows of the encoder, and a residual MLP follows. D = width of the
 * block, F = `mlpWidth`.
 */
export interface SiglipHead {
  /** F. */
  readonly mlpWidth: number;
  /** Layer norm behind the encoder, [D]. */
  readonly postNorm: LinearWeights;
  /** [D]. */
  readonly probe: Float32Array;
  /** The probe's attention, each [D, D] with bias [D]. */
  readonly q: LinearWeights;
  readonly k: LinearWeights;
  readonly v: LinearWeights;
  readonly out: LinearWeights;
  /** Layer norm in front of the MLP, [D]. */
  readonly norm: LinearWeights;
  /** [F, D] and [D, F]. */
  readonly fc1: LinearWeights;
  readonly fc2: LinearWeights;
}

/**
 * The last block of an encoder without class token: what decoupled attention and saliency need of it, and, where the encoder is SigLIP's,
 * its pooling head. D = `width`.
 */
export interface BlockWeights {
  /** D, the width of the hidden states. */
  readonly width: number;
  /** H, attention heads; divides D. */
  readonly heads: number;
  /** The norm in front of the attention: `layer`, or `rms` (x / sqrt(mean(x^2) + epsilon) * weight). */
  readonly norm: 'layer' | 'rms';
  /** Epsilon of every norm. */
  readonly epsilon: number;
  /** [D]; without bias for `rms`. */
  readonly norm1: OptionalBias;
  /** Projections of the attention, each [D, D]; q is not pre-scaled by 1/sqrt(dh). */
  readonly q: OptionalBias;
  readonly k: OptionalBias;
  readonly v: OptionalBias;
  readonly out: OptionalBias;
  /** SigLIP's read-out; null: the rows behind `out` go into a connector outside. */
  readonly siglip: SiglipHead | null;
}
