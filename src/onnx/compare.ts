import { DataType } from './proto.js';

/** Largest difference, relative to the largest magnitude wanted; infinite for unequal lengths. */
export function relativeError(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
  if (got.length !== wanted.length) return Number.POSITIVE_INFINITY;
  let difference = 0;
  let magnitude = 0;
  for (let i = 0; i < wanted.length; i++) {
    difference = Math.max(difference, Math.abs(got[i] - wanted[i]));
    magnitude = Math.max(magnitude, Math.abs(wanted[i]));
  }
  return difference / magnitude;
}

/** Differences that rounding explains: float32 sums in another order, float16 weights and sums, quantised weights. */
const TOLERANCE = { float: 1e-4, half: 2e-2, quantized: 3e-1 };

/** The relative error that rounding explains in values of an element type (TensorProto.DataType). */
export function toleranceOf(type: number, isQuantized: boolean): number {
  if (isQuantized) return TOLERANCE.quantized;
  return type === DataType.float ? TOLERANCE.float : TOLERANCE.half;
}
