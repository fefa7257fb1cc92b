import type { Builder } from './format/builder.js';
import type { Graph } from './search/graph.js';
import type { Attention, Axes, Operand } from './search/last-attention.js';

/** Where heads are apart: the extents that make any rank four axes (B is what is left), how these become [B, L, H, D], and which are B and H. */
const APART: Readonly<
  Record<Exclude<Axes, 'BLW'>, { extents: readonly number[]; perm: number[]; batch: [number, number] }>
> = {
  BHLD: { extents: [Number.NaN, -3, -2, -1], perm: [0, 2, 1, 3], batch: [0, -2] },
  BHDL: { extents: [Number.NaN, -3, -2, -1], perm: [0, 3, 1, 2], batch: [0, -2] },
  LBHD: { extents: [0, Number.NaN, -2, -1], perm: [1, 0, 2, 3], batch: [1, -1] },
  DBHL: { extents: [0, Number.NaN, -2, -1], perm: [1, 3, 2, 0], batch: [1, -1] },
};
const OPEN = -1;

/** What an attention over all tokens of a segment says. */
export interface Attended {
  /** Weights [S, H, l, l] of S segments of l tokens. */
  readonly weights: string;
  /** Values by these weights, laid out as the attention's own result. */
  readonly context: string;
}

/**
 * Nodes for `softmax(q kᵀ / sqrt(D)) v` in float32, segment by segment, in place of an attention of the graph.
 *
 * @param attention what to compute; its context says how the result is laid out
 * @param segments int64 [1]: equal segments that the sequence falls into; null: as many as the operands have sequences
 */
export function attend(
  builder: Builder,
  graph: Graph,
  { q, k, v, heads, context }: Attention,
  segments: string | null,
): Attended {
  const rows = apart(builder, q, heads);
  const segmented = (tokens: string) => {
    const parts =
      segments === null
        ? tokens
        : builder.reshape(tokens, segments, builder.integers(OPEN), builder.extents(tokens, 2, 3));
    return builder.transpose(builder.float(parts), 0, 2, 1, 3);
  };
  const [queries, keys, values] = [rows, apart(builder, k, heads), apart(builder, v, heads)].map(segmented);
  const root = builder.add('Sqrt', [builder.float(builder.extents(rows, 3))]);
  const scaled = builder.add('Div', [queries, root]);
  const scores = builder.add('MatMul', [scaled, builder.transpose(keys, 0, 1, 3, 2)]);
  const weights = builder.add('Softmax', [scores], { axis: { i: -1 } });
  const product = builder.transpose(builder.add('MatMul', [weights, values]), 0, 2, 1, 3);
  const typed = builder.cast(product, graph.elementType(context));
  return { weights, context: laidOut(builder, typed, q, rows) };
}

/** An operand as [B, L, H, D]. */
function apart(builder: Builder, { value, axes }: Operand, heads: number | null): string {
  if (axes === 'BLW') {
    const count = builder.integers(heads as number);
    const extent = builder.add('Div', [builder.extents(value, -1), count]);
    return builder.reshape(value, builder.integers(OPEN), builder.extents(value, -2), count, extent);
  }
  const { extents: kept, perm } = APART[axes];
  const extents = kept.map((axis) => (Number.isNaN(axis) ? builder.integers(OPEN) : builder.extents(value, axis)));
  return builder.transpose(builder.reshape(value, ...extents), ...perm);
}

/** Segments [S, l, H, D] in the axes of an attention's result, given its queries as they are and as [B, L, H, D]. */
function laidOut(builder: Builder, segments: string, { value, axes }: Operand, rows: string): string {
  if (axes === 'BLW') return builder.reshape(segments, builder.add('Shape', [value]));
  const whole = builder.transpose(builder.reshape(segments, builder.add('Shape', [rows])), 0, 2, 1, 3);
  const [start, end] = APART[axes].batch;
  const batch = builder.add('Slice', [builder.add('Shape', [value]), builder.integers(start), builder.integers(end)]);
  return builder.reshape(whole, batch, builder.extents(rows, 1, 3));
}
