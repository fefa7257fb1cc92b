/** How much arithmetic the head is, once what exact algebra spares is left out. */

export interface HeadShape {
  /** N, with the class token. */
  readonly rows: number;
  /** D. */
  readonly width: number;
  /** H. */
  readonly heads: number;
  /** E. */
  readonly projectionDim: number;
  /** T. */
  readonly text: number;
  /** K. */
  readonly keep: number;
  readonly classToken: boolean;
}

/** Rows of the blocks on the diagonal of Q Q^T, of which symmetry spares nothing. */
const SYMMETRIC_BLOCK = 96;

/**
 * Floating-point operations of one image and one question. What depends on the question alone (the text's own projection),
 * norms, exponentials and eq. 3 are not counted: below 2 % together.
 */
export function headWork({ rows: N, width: D, heads: H, text: T, keep: K, classToken }: HeadShape): number {
  const P = N - Number(classToken);
  const queriesAndValues = 4 * N * D ** 2;
  // Keys only as W_k^T q of the class token: [D, D] once, then N scores per head. Without a class token: all keys, all scores.
  const saliency = classToken ? 2 * D ** 2 + 2 * N * D * H : 2 * N * D ** 2 + 2 * N ** 2 * D;
  // Q Q^T is symmetric: half of it, and half of the blocks on the diagonal.
  const scores = N * (N + SYMMETRIC_BLOCK) * D;
  const context = 2 * N ** 2 * D;
  // Output projection, norm and visual projection fold into one [D, D] matrix with one more column.
  const readOut = 2 * N * D ** 2;
  const similarity = 2 * N * D * (T + 1);
  const merge = 2 * P * D * K;
  return queriesAndValues + saliency + scores + context + readOut + similarity + merge;
}
