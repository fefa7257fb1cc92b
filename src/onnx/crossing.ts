/** Values that cross a cut tower beside its hidden states, and what becomes of them when rows are dropped or come twice. */
import { DesapError } from '../errors.js';
import type { StateExtents } from './tower-cut.js';

/** What `new ort.Tensor(type, data, dims)` takes, of any type. */
export interface AnyTensor {
  readonly type: string;
  readonly data: ArrayLike<unknown>;
  readonly dims: readonly number[];
}

/** What a value says of the rows. */
export type CrossingKind =
  /** Axes that count them: those of tables and masks. */
  | { readonly kind: 'axes'; readonly axes: readonly number[] }
  /** Integers from 0 to the count, ascending: where windows or frames end. */
  | { readonly kind: 'bounds' }
  /** Integers that sum up to the count: how long windows or frames are. */
  | { readonly kind: 'lengths' }
  /** Entries that are the count: a shape. */
  | { readonly kind: 'entries'; readonly entries: readonly number[] };

/** A value at some trials, with the extents of the states there. */
export interface SeenCrossing extends StateExtents {
  readonly tensor: AnyTensor;
}

/** The rows of each item that stay: item `of[i]` of the run keeps `rows[i]`, ascending, rows may come twice. */
export interface Chosen {
  readonly of: readonly number[];
  readonly rows: readonly Int32Array[];
}

/** Tells what a value says of the rows, by what was seen: what is as large by chance is so in one trial, and told by numbers later. */
export function crossingKind(seen: readonly SeenCrossing[]): CrossingKind {
  const everywhere = (holds: (one: SeenCrossing) => boolean) => seen.every(holds);
  const [{ tensor }] = seen;
  const isCount = ({ items, rows }: StateExtents, value: number) => value === rows || value === items * rows;
  const axes = [...tensor.dims.keys()].filter((axis) => everywhere((one) => isCount(one, one.tensor.dims[axis])));
  if (axes.length > 0) return { kind: 'axes', axes };
  if (!everywhere((one) => isIntegers(one.tensor))) return { kind: 'entries', entries: [] };
  const isLast = (one: SeenCrossing) => isCount(one, integersOf(one.tensor).at(-1) ?? 0);
  const isAscending = (values: readonly number[]) => values.every((value, i) => i === 0 || value >= values[i - 1]);
  if (everywhere((one) => integersOf(one.tensor)[0] === 0 && isAscending(integersOf(one.tensor)) && isLast(one)))
    return { kind: 'bounds' };
  const count = Math.min(...seen.map((one) => one.tensor.data.length));
  const entries = Array.from({ length: count }, (_, entry) => entry).filter((entry) =>
    everywhere((one) => isCount(one, integersOf(one.tensor)[entry])),
  );
  if (entries.length > 0 || tensor.dims.length === 0) return { kind: 'entries', entries };
  const isLengths = (values: readonly number[], one: SeenCrossing) =>
    values.every((value) => value > 0) && isCount(one, sumOf(values));
  return everywhere((one) => isLengths(integersOf(one.tensor), one))
    ? { kind: 'lengths' }
    : { kind: 'entries', entries };
}

const isIntegers = ({ type, dims }: AnyTensor) => (type === 'int64' || type === 'int32') && dims.length <= 1;

const integersOf = ({ data }: AnyTensor): number[] => Array.from(data as ArrayLike<bigint | number>, Number);

/**
 * A value for the rows that stay.
 *
 * @param name of the model, for messages
 * @throws DesapError `ERR_GRAPH` where the items of a run share a value and keep rows of their own
 */
export function crossed(
  name: string,
  kind: CrossingKind,
  { tensor, items, rows }: SeenCrossing,
  { of, rows: chosen }: Chosen,
): AnyTensor {
  // Rows of all items, counted through.
  const flat = Int32Array.from(of.flatMap((item, i) => Array.from(chosen[i], (row) => item * rows + row)));
  const count = (value: number) => (value === rows ? chosen[0].length : flat.length);
  if (kind.kind === 'axes') return onAxes(name, kind.axes, { tensor, items, rows }, { of, rows: chosen, flat });
  if (kind.kind === 'entries') {
    if (kind.entries.length === 0) return tensor;
    const values = integersOf(tensor);
    for (const entry of kind.entries) values[entry] = count(values[entry]);
    return integers(tensor, values);
  }
  const values = integersOf(tensor);
  const ends = kind.kind === 'bounds' ? values : values.map((_, i) => sumOf(values.slice(0, i + 1)));
  const before = ends.map((end) => flat.reduce((kept, row) => kept + Number(row < end), 0));
  if (kind.kind === 'bounds') return integers(tensor, [...new Set(before)]);
  return integers(
    tensor,
    before.map((end, i) => end - (before[i - 1] ?? 0)).filter((length) => length > 0),
  );
}

const sumOf = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0);

/** Integers in the type that a tensor has; a vector stays a vector of as many as there are. */
function integers({ type, dims }: AnyTensor, values: readonly number[]): AnyTensor {
  const data = type === 'int64' ? BigInt64Array.from(values, BigInt) : Int32Array.from(values);
  return { type, data, dims: dims.length === 0 ? [] : [values.length] };
}

function onAxes(
  name: string,
  axes: readonly number[],
  { tensor, items, rows }: SeenCrossing,
  { of, rows: chosen, flat }: Chosen & { readonly flat: Int32Array },
): AnyTensor {
  const isFlat = items > 1 && axes.some((axis) => tensor.dims[axis] === items * rows);
  if (isFlat || items === 1) return along(tensor, axes, isFlat ? flat : chosen[0]);
  const isOwn = !axes.includes(0) && tensor.dims[0] === items;
  const isShared = chosen.every((one) => one.join() === chosen[0].join());
  if (!isOwn && isShared) return along(tensor, axes, chosen[0]);
  if (!isOwn && (axes.includes(0) || tensor.dims[0] !== 1))
    throw new DesapError(
      'ERR_GRAPH',
      `${name}: got a value [${tensor.dims.join(', ')}] that ${items} tiles share, of which each keeps rows of its own, wanted one of each tile`,
    );
  const parts = of.map((item, i) => along(isOwn ? itemOf(tensor, item) : tensor, axes, chosen[i]));
  const length = sumOf(parts.map(({ data }) => data.length));
  const data = new (typed(tensor).constructor as new (length: number) => TypedArray)(length);
  let at = 0;
  for (const part of parts) {
    data.set(part.data as never, at);
    at += part.data.length;
  }
  return { type: tensor.type, data, dims: [of.length, ...parts[0].dims.slice(1)] };
}

type TypedArray = Float32Array | Int32Array | Uint8Array | Uint16Array | BigInt64Array;

const typed = ({ data }: AnyTensor) => data as TypedArray;

/** The part of one item, along the first axis. */
function itemOf({ type, data, dims: [items, ...others] }: AnyTensor, item: number): AnyTensor {
  const size = data.length / items;
  return { type, data: typed({ type, data, dims: [] }).subarray(item * size, (item + 1) * size), dims: [1, ...others] };
}

/** Rows along axes, one axis after the other. */
function along(tensor: AnyTensor, axes: readonly number[], rows: Int32Array): AnyTensor {
  return axes.reduce((from, axis) => {
    const { type, dims } = from;
    const data = typed(from);
    const size = dims.slice(axis + 1).reduce((product, extent) => product * extent, 1);
    const outer = dims.slice(0, axis).reduce((product, extent) => product * extent, 1);
    const own = new (data.constructor as new (length: number) => TypedArray)(outer * rows.length * size);
    for (let o = 0, at = 0; o < outer; o++)
      for (const row of rows) {
        const start = (o * dims[axis] + row) * size;
        own.set(data.subarray(start, start + size) as never, at);
        at += size;
      }
    return { type, data: own, dims: dims.map((extent, i) => (i === axis ? rows.length : extent)) };
  }, tensor);
}
