import { types } from 'node:util';
import { invalid, mismatch } from './errors.js';
import { field } from './options.js';
import { dimsOf, isTensor, plain, type TensorLike } from './tensor.js';

/** The visual token that each patch goes into, [N]. */
export type Units = Int32Array | BigInt64Array | TensorLike;

/**
 * Units of the first `rows` patches: each is from 0 on, and none is without a patch. Entries behind belong to padding, and are not read.
 *
 * @param length entries that there have to be; at least `rows`
 * @throws DesapError `ERR_DTYPE`, `ERR_SHAPE`; `ERR_VALUE` with the entry, or with the unit that has no patch
 */
export function unitsOf(
  argument: string,
  from: Units,
  rows: number,
  length = rows,
): { readonly unit: Int32Array; readonly units: number } {
  const given: unknown = isTensor(from) ? field(argument, from, 'data') : from;
  if (!types.isInt32Array(given) && !types.isBigInt64Array(given))
    throw invalid('ERR_DTYPE', argument, given, 'an Int32Array or a BigInt64Array');
  const data: Int32Array | BigInt64Array = plain(given);
  const dims = isTensor(from) ? dimsOf(argument, from) : [data.length];
  if (data.length !== length || dims.reduce((product, extent) => product * extent, 1) !== length)
    throw mismatch(
      'ERR_SHAPE',
      argument,
      `${data.length} elements for dims [${dims.join(', ')}]`,
      `${length} elements, one per patch`,
    );
  const unit = Int32Array.from(data.subarray(0, rows) as ArrayLike<number | bigint>, Number);
  const patches = new Int32Array(rows);
  let units = 0;
  unit.forEach((u, patch) => {
    if (u < 0 || u >= rows || BigInt(u) !== BigInt(data[patch]))
      throw invalid('ERR_VALUE', `${argument}[${patch}]`, data[patch], `a unit from 0 to ${rows - 1}`);
    patches[u]++;
    units = Math.max(units, u + 1);
  });
  const empty = patches.subarray(0, units).indexOf(0);
  if (empty >= 0)
    throw mismatch(
      'ERR_VALUE',
      argument,
      `no patch for unit ${empty}`,
      `a patch for each of the units 0 to ${units - 1}`,
    );
  return { unit, units };
}
