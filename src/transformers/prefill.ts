import { types } from 'node:util';
import { mismatch } from '../errors.js';
import type { TextEmbeddings } from '../index.js';
import { floatToHalf } from '../tensor.js';
import {
  type EncodedImage,
  INPUT_NAMES,
  type InputNames,
  type PrunedFeatures,
  type VisionModel,
} from '../vision/vision-model.js';
import { append, type CacheMap, dropped, pack, pickColumns } from './cache-map.js';
import { type HookedModel, imageTokenId, type ModelInputs, type ModelTensor, type ModelTensorClass } from './model.js';
import { amountOf, type CallOptions, entryOf, type PrunedImage, type Question } from './options.js';
import type { Questions } from './question/question.js';

/** The parts of an attached model that a prefill works with. */
export interface Attached {
  readonly model: HookedModel;
  readonly vision: VisionModel;
  readonly questions: () => Promise<Questions>;
}

/** A shortened prefill: what the model's own `forward` takes, and where the slots of its cache come from. */
export interface Prefill {
  readonly inputs: Required<Pick<ModelInputs, 'inputs_embeds' | 'attention_mask'>> & Pick<ModelInputs, 'position_ids'>;
  readonly map: CacheMap;
}

/** What callers of the model know its inputs by. */
const NAMES: InputNames = { ...INPUT_NAMES, pixelValues: 'pixel_values', imageGridThw: 'image_grid_thw' };

interface Image {
  readonly sequence: number;
  readonly encoded: EncodedImage;
  /** Columns of its tokens. */
  readonly columns: readonly number[];
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
  const { model, vision } = attached;
  const ids = inputs.input_ids as ModelTensor;
  const [rows, columns] = ids.dims;
  const { pixel_values, image_grid_thw } = inputs;
  const encoded = await vision.encode(
    { pixelValues: pixel_values as ModelTensor, imageGridThw: image_grid_thw ?? undefined },
    NAMES,
  );
  try {
    const images = assign(ids, imageTokenId(model), encoded);
    const kept = await pruneAll(attached, inputs, images, options);
    const stays = new Uint8Array(rows * columns).fill(1);
    for (const [i, { sequence, columns: own }] of images.entries()) {
      for (const column of own) stays[sequence * columns + column] = 0;
      for (const index of kept[i].indices) stays[sequence * columns + own[index]] = 1;
    }
    const slots = pack(stays, rows, columns);
    const past = inputs.past_key_values?.get_seq_length() ?? 0;
    const embeds = await model.encode_text({ input_ids: ids });
    for (const [i, { sequence, columns: own }] of images.entries()) placeFeatures(embeds, sequence, own, kept[i]);
    return {
      inputs: {
        inputs_embeds: pickRows(embeds, slots),
        attention_mask: shortMask(inputs, slots, past, columns),
        position_ids: shortPositions(inputs, options, slots, past, before),
      },
      map: append(before, past, slots, columns),
    };
  } finally {
    for (const image of encoded) image.dispose();
  }
}

/** Gives each image its placeholders, which stand in the order of the images over the whole batch. */
function assign(ids: ModelTensor, token: bigint, encoded: readonly EncodedImage[]): Image[] {
  const [rows, columns] = ids.dims;
  const data = ids.data as BigInt64Array;
  const images: Image[] = [];
  const unequal = (found: number) =>
    mismatch(
      'ERR_SHAPE',
      'input_ids',
      `${found} image tokens (id ${token}) in a sequence`,
      `the tokens of its images: ${encoded.map(({ tokenCount }) => tokenCount).join(', ')}`,
    );
  for (let sequence = 0; sequence < rows; sequence++) {
    const own: number[] = [];
    for (let column = 0; column < columns; column++) if (data[sequence * columns + column] === token) own.push(column);
    for (let at = 0; at < own.length; ) {
      const image = encoded[images.length];
      if (image === undefined || at + image.tokenCount > own.length) throw unequal(own.length);
      images.push({ sequence, encoded: image, columns: own.slice(at, (at += image.tokenCount)) });
    }
  }
  if (images.length !== encoded.length)
    throw unequal(images.length === 0 ? 0 : images[images.length - 1].columns.length);
  return images;
}

async function pruneAll(
  attached: Attached,
  inputs: ModelInputs,
  images: readonly Image[],
  options: CallOptions,
): Promise<PrunedFeatures[]> {
  const asked = new Map<number, TextEmbeddings | null>();
  const kept: PrunedFeatures[] = [];
  const { taskShare, alignment, lambda, merge } = options;
  for (const [i, { sequence, encoded }] of images.entries()) {
    if (!asked.has(sequence)) asked.set(sequence, await question(attached, inputs, sequence, options));
    const amount = amountOf(options, i, images.length);
    const how = { ...(amount === 'all' ? { keepRatio: 1 } : amount), taskShare, alignment, lambda, merge };
    kept.push(await encoded.prune(asked.get(sequence) ?? null, how));
  }
  options.onPruned?.(
    kept.map(
      ({ indices, source, assignment, counts }, i): PrunedImage => ({
        ...{ sequence: images[i].sequence, indices, source, assignment, counts },
      }),
    ),
  );
  return kept;
}

/** The question of one sequence: the given one, or that of its last user turn. */
async function question(
  { model, vision, questions }: Attached,
  inputs: ModelInputs,
  sequence: number,
  options: CallOptions,
): Promise<TextEmbeddings | null> {
  if (options.taskShare === 0) return null;
  const ids = inputs.input_ids as ModelTensor;
  let asked = entryOf('question', options.question, sequence, ids.dims[0]) as Question | undefined;
  asked ??= (await questions()).read(unpadded(inputs, sequence), Number(imageTokenId(model)));
  return typeof asked === 'string' ? vision.encodeQuestion(asked) : asked;
}

/** The ids of one sequence that its mask does not hide. */
function unpadded({ input_ids, attention_mask, past_key_values }: ModelInputs, sequence: number): number[] {
  const [rows, columns] = (input_ids as ModelTensor).dims;
  const row = ((input_ids as ModelTensor).data as BigInt64Array).subarray(sequence * columns, (sequence + 1) * columns);
  // With a cache the mask begins with the slots of the cache.
  const past = past_key_values?.get_seq_length() ?? 0;
  const mask = attention_mask?.data as BigInt64Array | undefined;
  const hidden = (column: number) => mask?.[sequence * (past + columns) + past + column] === 0n;
  return Array.from(row, Number).filter((_, column) => mask?.length !== rows * (past + columns) || !hidden(column));
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

/** A tensor of the class that another one has. */
export function make(like: ModelTensor, data: ModelTensor['data'], dims: readonly number[]): ModelTensor {
  const TensorClass = like.constructor as unknown as ModelTensorClass;
  const type = types.isBigInt64Array(data) ? 'int64' : types.isFloat32Array(data) ? 'float32' : 'float16';
  return new TensorClass(type, data, dims);
}
