/** Rows of a run that stay where a tower drops some: the others have no place in what the kernels read, and zeros in what they write. */
import type { Sequence } from './block-family.js';

export interface Staying {
  /** Dims of the hidden states of all rows. */
  readonly dims: readonly number[];
  /** Of each sequence: its rows that stay among all rows of the run, ascending. */
  readonly rows: readonly Int32Array[];
  /** All rows of each sequence, and those that stay among those that stay. */
  readonly all: readonly Sequence[];
  readonly sequences: readonly Sequence[];
}

/** @param rows of each sequence, among all rows of the run, ascending */
export function stayingRows(dims: readonly number[], all: readonly Sequence[], rows: readonly Int32Array[]): Staying {
  let firstRow = 0;
  const sequences = rows.map(({ length: patches }) => {
    const sequence = { firstRow, patches };
    firstRow += patches;
    return sequence;
  });
  return { dims, rows, all, sequences };
}

/** Rows of `width` numbers of all sequences at their places among all rows, with zeros between. */
export function spread(
  { dims, rows }: Staying,
  values: Float32Array,
  width: number,
  into?: Float32Array,
): Float32Array {
  const count = dims.slice(0, -1).reduce((product, extent) => product * extent, 1);
  const all = into ?? new Float32Array(count * width);
  all.fill(0);
  let at = 0;
  for (const own of rows)
    for (const row of own) {
      all.set(values.subarray(at, at + width), row * width);
      at += width;
    }
  return all;
}

/** The same for one sequence, among its own rows. */
export function spreadSequence({ rows, all }: Staying, t: number, values: Float32Array, width = 1): Float32Array {
  const { firstRow, patches } = all[t];
  const own = new Float32Array(patches * width);
  for (const [i, row] of rows[t].entries())
    own.set(values.subarray(i * width, (i + 1) * width), (row - firstRow) * width);
  return own;
}
