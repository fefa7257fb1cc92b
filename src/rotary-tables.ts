import { mismatch, notFinite } from './errors.js';
import { matrix, type TensorLike } from './tensor.js';

/**
 * Tables of a rotary position embedding, [N, dh] each, dh even: rot(x) = x cos + turn(x) sin for the columns of each head,
 * turn([a, b]) = [-b, a] by halves.
 */
export interface Rotary {
  readonly cos: Float32Array;
  readonly sin: Float32Array;
}

interface Extents {
  readonly rows: number;
  readonly cols: number;
  readonly valid?: number;
}

/**
 * Both tables, checked.
 *
 * @param names what the caller knows them by
 * @param want rows, of which the first `valid` are read, and columns of a head
 * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_NOT_FINITE`, with the name; `ERR_VALUE` for one without the other
 */
export function rotaryTables(
  { cos, sin }: { readonly cos?: TensorLike; readonly sin?: TensorLike },
  names: { readonly cos: string; readonly sin: string },
  want: Extents,
): Rotary {
  if (want.cols % 2 !== 0)
    throw mismatch('ERR_VALUE', names.cos, `tables for heads of ${want.cols} columns`, 'heads of an even width');
  return { cos: table(names.cos, cos, names.sin, want), sin: table(names.sin, sin, names.cos, want) };
}

function table(name: string, given: TensorLike | undefined, other: string, want: Extents): Float32Array {
  if (given === undefined) throw mismatch('ERR_VALUE', name, `nothing beside ${other}`, 'both tables, or none');
  const { data, half, rows, cols } = matrix(name, given, want);
  if (half) throw mismatch('ERR_DTYPE', name, 'float16', 'float32');
  const read = data.subarray(0, (want.valid ?? rows) * cols) as Float32Array;
  const bad = read.findIndex((value) => !Number.isFinite(value));
  if (bad >= 0) throw notFinite(name, Math.floor(bad / cols));
  return read;
}
