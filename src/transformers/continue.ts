import { invalid, mismatch } from '../errors.js';
import { type CacheMap, columnsOf, dropped, pickColumns, slotsOf } from './cache-map.js';
import { type HookedModel, type ModelCache, type ModelInputs, type ModelTensor, make } from './model.js';
import type { CallOptions } from './options.js';
import { originalPositions } from './prefill.js';
import { behindDropped, rotaryPositions } from './rotary.js';
import { isVisual } from './visual-ids.js';

/**
 * The inputs of a call that goes on with a shortened cache: only what the cache does not hold, and the mask that fits it.
 * The caller gives the whole sequence, or new tokens with a mask for all.
 *
 * @throws DesapError `ERR_SHAPE`, `ERR_VALUE` when the ids are not those of the cached prompt and more
 */
export function continued(model: HookedModel, inputs: ModelInputs, map: CacheMap, options: CallOptions): ModelInputs {
  const ids = inputs.input_ids as ModelTensor;
  const past = (inputs.past_key_values as ModelCache).get_seq_length();
  const isOriginal = options.positions === 'original' && !model.get_rope_index;
  if (inputs.attention_mask?.dims[1] === past + ids.dims[1]) {
    // The caller counts as the cache does.
    return isOriginal && !inputs.position_ids ? withOriginalPositions(inputs, past, map) : inputs;
  }
  const columns = columnsSoFar(model, inputs, map, past);
  const next = behindCache(inputs, map, past, columns);
  const hasImages = ((next.input_ids as ModelTensor).data as BigInt64Array).some(isVisual(model));
  if (!hasImages) Object.assign(next, { pixel_values: undefined, pixel_values_videos: undefined });
  if (model.get_rope_index) return rotaryBehindCache(model, inputs, next, hasImages);
  return isOriginal ? withOriginalPositions(next, past, map) : next;
}

/**
 * Columns of the sequence, its new ones counted.
 * @throws DesapError `ERR_SHAPE` when the ids are neither all of it nor what the cache lacks
 */
function columnsSoFar(model: HookedModel, inputs: ModelInputs, map: CacheMap, past: number): number {
  const ids = inputs.input_ids as ModelTensor;
  const [rows, given] = ids.dims;
  const done = columnsOf(map, past);
  if (rows === map.slots.length) {
    if (given > done && dropsOnly(ids, map, isVisual(model))) return given;
    if (inputs.attention_mask?.dims[1] === done + given && !model.get_rope_index) return done + given;
  }
  throw mismatch(
    'ERR_SHAPE',
    'input_ids',
    `[${ids.dims.join(', ')}]`,
    `the whole sequence: the ${done} tokens that past_key_values was made from (its prompt was pruned), and more`,
  );
}

/** Whether what a cache has lost is visual tokens in these ids too, or marks of tiles that went with them. */
function dropsOnly(
  ids: ModelTensor,
  { slots, columns: covered, marks }: CacheMap,
  visual: (id: bigint) => boolean,
): boolean {
  const [, columns] = ids.dims;
  return slots.every((row, r) => {
    const kept = new Set(row);
    for (let column = 0; column < covered; column++)
      if (!kept.has(column) && !marks?.[r].has(column) && !visual((ids.data as BigInt64Array)[r * columns + column]))
        return false;
    return true;
  });
}

/** The ids that the cache does not hold, and the mask of its slots and of these. */
function behindCache(inputs: ModelInputs, map: CacheMap, past: number, columns: number): ModelInputs {
  const ids = inputs.input_ids as ModelTensor;
  const rows = map.slots.length;
  const fresh = lastColumns(rows, columns, columns - columnsOf(map, past));
  const mask = (inputs.attention_mask?.data as BigInt64Array | undefined) ?? new BigInt64Array(rows * columns).fill(1n);
  if (mask.length !== rows * columns)
    throw mismatch('ERR_SHAPE', 'attention_mask', `${mask.length} elements`, `${rows * columns}, one per token so far`);
  const isWhole = ids.dims[1] === columns;
  const own = isWhole ? pickColumns(ids.data as BigInt64Array, columns, fresh, 0n) : (ids.data as BigInt64Array);
  const slots = map.slots.map((_, row) => Int32Array.from([...slotsOf(map, row, past), ...fresh[row]]));
  return {
    ...inputs,
    input_ids: make(ids, own, [rows, fresh[0].length]),
    attention_mask: make(ids, pickColumns(mask, columns, slots, 0n), [rows, slots[0].length]),
  };
}

/** The last `count` of some columns, for each sequence. */
function lastColumns(rows: number, columns: number, count: number): Int32Array[] {
  const last = Int32Array.from({ length: count }, (_, i) => columns - count + i);
  return new Array(rows).fill(last);
}

function withOriginalPositions(inputs: ModelInputs, past: number, map: CacheMap): ModelInputs {
  const ids = inputs.input_ids as ModelTensor;
  return { ...inputs, position_ids: make(ids, originalPositions(inputs, past, map), ids.dims) };
}

/**
 * M-RoPE positions of the new tokens, counted over the whole sequence.
 * @throws DesapError `ERR_VALUE` for images behind the cache, and without the grids of those in it
 */
function rotaryBehindCache(model: HookedModel, whole: ModelInputs, next: ModelInputs, hasImages: boolean): ModelInputs {
  if (hasImages)
    throw mismatch('ERR_VALUE', 'pixel_values', 'an image behind a pruned cache', 'images in the first turn');
  if (!whole.image_grid_thw && !whole.video_grid_thw)
    throw invalid('ERR_VALUE', 'image_grid_thw', whole.image_grid_thw, 'the grids of the images of the first turn');
  const [positions, deltas] = rotaryPositions(model, whole);
  const columns = (whole.input_ids as ModelTensor).dims[1];
  const { dims } = next.input_ids as ModelTensor;
  const fresh = lastColumns(dims[0], columns, dims[1]);
  const places = pickColumns(positions.data as BigInt64Array, columns, fresh, 1n);
  const lost = columns - (next.attention_mask as ModelTensor).dims[1];
  return { ...next, position_ids: make(positions, places, [3, ...dims]), rope_deltas: behindDropped(deltas, lost) };
}

/** The original place of the next token of each sequence, [B, 1]. */
export function nextPositions({ attention_mask }: ModelInputs, map: CacheMap): ModelTensor {
  const mask = attention_mask as ModelTensor;
  const [rows, columns] = mask.dims;
  const data = BigInt64Array.from({ length: rows }, (_, row) => {
    const attended = (mask.data as BigInt64Array).subarray(row * columns, (row + 1) * columns);
    return attended.reduce((sum, bit) => sum + bit, BigInt(dropped(map, row) - 1));
  });
  return make(mask, data, [rows, 1]);
}
