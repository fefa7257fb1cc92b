import { mismatch } from '../errors.js';
import { floatToHalf } from '../tensor.js';
import type { PrunedFeatures } from '../vision/vision-model.js';
import { append, type CacheMap, dropped, pack, pickColumns } from './cache-map.js';
import { embedText } from './embeddings.js';
import { type ModelInputs, type ModelTensor, make } from './model.js';
import type { CallOptions } from './options.js';
import { type Attached, promptImages } from './prompt-images.js';
import { askAhead, pruneImages } from './prune-images.js';

/** A shortened prefill: what the model's own `forward` takes, and where the slots of its cache come from. */
export interface Prefill {
  readonly inputs: Required<Pick<ModelInputs, 'inputs_embeds' | 'attention_mask'>> & Pick<ModelInputs, 'position_ids'>;
  readonly map: CacheMap;
}

/**
 * Encodes and prunes the images of a prompt, and puts the language model's input together without the dropped tokens. The
 * caller's tensors are read, never written.
 *
 * @param inputs a prompt with images; with a cache, the part of the prompt that is not in it
 * @param before where the slots of the cache come from; null when it holds the whole prompt so far
 */
export async function prefill(
  attached: Attached,
  inputs: ModelInputs,
  options: CallOptions,
  before: CacheMap | null,
): Promise<Prefill> {
  const { model } = attached;
  const ids = inputs.input_ids as ModelTensor;
  const [rows, columns] = ids.dims;
  const questions = await askAhead(attached, inputs, options);
  const images = await promptImages(attached, inputs);
  try {
    const kept = await pruneImages(attached, inputs, images, options, questions);
    const stays = new Uint8Array(rows * columns).fill(1);
    const marks = Array.from({ length: rows }, (): number[] => []);
    for (const [i, { sequence, columns: own, tiles }] of images.entries()) {
      for (const column of own) stays[sequence * columns + column] = 0;
      for (const index of kept[i].indices) stays[sequence * columns + own[index]] = 1;
      // The marks of tiles that were left out go with them.
      const { looked } = kept[i];
      if (looked && tiles) marks[sequence].push(...tiles.leaving(looked.taken));
    }
    for (const [row, own] of marks.entries()) for (const column of own) stays[row * columns + column] = 0;
    const slots = pack(stays, rows, columns);
    const past = inputs.past_key_values?.get_seq_length() ?? 0;
    const embeds = await embedText(model, ids);
    for (const [i, { sequence, columns: own }] of images.entries()) placeFeatures(embeds, sequence, own, kept[i]);
    const short = pickRows(embeds, slots);
    attached.further?.note(short, slots, images, kept);
    return {
      inputs: {
        inputs_embeds: short,
        attention_mask: shortMask(inputs, slots, past, columns),
        position_ids: shortPositions(inputs, options, slots, past, before),
      },
      map: append(before, past, slots, columns, marks),
    };
  } finally {
    for (const { encoded } of images) encoded.dispose();
  }
}

/** Writes the features of the kept tokens over their placeholders. */
function placeFeatures(embeds: ModelTensor, sequence: number, columns: readonly number[], kept: PrunedFeatures): void {
  const [, length, width] = embeds.dims;
  const { indices } = kept;
  const features = kept.features.data as Float32Array;
  if (features.length !== indices.length * width)
    throw mismatch('ERR_SHAPE', 'image_features', `rows of ${features.length / indices.length}`, `rows of ${width}`);
  for (const [k, index] of indices.entries()) {
    const row = features.subarray(k * width, (k + 1) * width);
    const at = (sequence * length + columns[index]) * width;
    if (embeds.type === 'float16') half(embeds).set(Uint16Array.from(row, floatToHalf), at);
    else (embeds.data as Float32Array).set(row, at);
  }
}

/** The bits of a float16 tensor, whichever array class the runtime has for it. */
function half({ data }: ModelTensor): Uint16Array {
  return new Uint16Array(data.buffer, data.byteOffset, data.length);
}

/** Rows [rows, slots, W] of a tensor [rows, columns, W] in slot order; zeros in padding. */
function pickRows(embeds: ModelTensor, slots: readonly Int32Array[]): ModelTensor {
  const [rows, columns, width] = embeds.dims;
  const length = slots[0].length;
  const source = embeds.type === 'float16' ? half(embeds) : (embeds.data as Float32Array);
  const picked = new (source.constructor as typeof Float32Array)(rows * length * width);
  for (let row = 0; row < rows; row++)
    for (let slot = 0; slot < length; slot++) {
      const column = slots[row][slot];
      if (column < 0) continue;
      const from = (row * columns + column) * width;
      picked.set(source.subarray(from, from + width) as Float32Array, (row * length + slot) * width);
    }
  return make(embeds, picked, [rows, length, width]);
}

function shortMask(inputs: ModelInputs, slots: readonly Int32Array[], past: number, columns: number): ModelTensor {
  const ids = inputs.input_ids as ModelTensor;
  const rows = slots.length;
  const length = past + slots[0].length;
  const mask = new BigInt64Array(rows * length).fill(1n);
  const given = inputs.attention_mask?.data as BigInt64Array | undefined;
  if (given && given.length !== rows * (past + columns))
    throw mismatch('ERR_SHAPE', 'attention_mask', `${given.length} elements`, `${rows * (past + columns)}`);
  for (let row = 0; row < rows; row++)
    for (let slot = 0; slot < length; slot++) {
      const column = slot < past ? slot : slots[row][slot - past] < 0 ? -1 : past + slots[row][slot - past];
      mask[row * length + slot] = column < 0 ? 0n : (given?.[row * (past + columns) + column] ?? 1n);
    }
  return make(ids, mask, [rows, length]);
}

/** Position ids that the model cannot count out of the shortened mask: given ones, and original ones. */
function shortPositions(
  inputs: ModelInputs,
  { positions }: CallOptions,
  slots: readonly Int32Array[],
  past: number,
  before: CacheMap | null,
): ModelTensor | null {
  const ids = inputs.input_ids as ModelTensor;
  const [rows, columns] = ids.dims;
  const given = inputs.position_ids;
  if (!given && positions !== 'original') return null;
  const data = given ? (given.data as BigInt64Array) : originalPositions(inputs, past, before);
  const dims = given ? given.dims : [rows, columns];
  return make(ids, pickColumns(data, columns, slots, 1n), [...dims.slice(0, -1), slots[0].length]);
}

/** Places [rows, columns] among all tokens that are not padding, those that the cache has lost included. */
export function originalPositions(inputs: ModelInputs, past: number, before: CacheMap | null): BigInt64Array {
  const [rows, columns] = (inputs.input_ids as ModelTensor).dims;
  const mask = inputs.attention_mask?.data as BigInt64Array | undefined;
  const data = new BigInt64Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    let next = BigInt(dropped(before, row));
    for (let column = -past; column < columns; column++) {
      const attended = mask?.[row * (past + columns) + past + column] ?? 1n;
      if (column >= 0) data[row * columns + column] = attended === 0n ? 1n : next;
      next += attended;
    }
  }
  return data;
}
