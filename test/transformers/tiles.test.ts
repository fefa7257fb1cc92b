/**
 * `attach` with tiles that are left out: the ids are those of the plain model for the pixels of the tiles that are taken, and for a prompt that
 * is written, by Hugging Face's own rules, for an image of these tiles.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  Lfm2VlImageProcessor,
  Lfm2VlProcessor,
  type PreTrainedModel,
  type Processor,
  Tensor,
} from '@huggingface/transformers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type AttachOptions, attach, type PrunedImage } from '../../src/transformers/index.js';
import { openVisionModel, type VisionModel } from '../../src/vision/index.js';
import { imageOf, ROOT } from './family-cases.js';
import { answer, decodeByHand, embed, type Inputs, int64, load, tokens } from './support.js';

const QUESTION = 'where is the red one?';
const IMAGE = '<image>';
/** Tiles side by side in LFM2-VL's image, which is cut into two rows of them. */
const COLUMNS = 2;

interface Family {
  readonly family: string;
  inputs(processor: Processor): Promise<Inputs>;
  /** The prompt of an image of some tiles, with a placeholder for each visual token. */
  prompt(taken: readonly number[], units: readonly number[]): string;
  /** The axis of `pixel_values` that counts tiles. */
  readonly axis: number;
}

const FAMILIES: readonly Family[] = [
  {
    family: 'idefics3',
    axis: 1,
    inputs: (processor) =>
      (processor as unknown as (text: string, images: unknown) => Promise<Inputs>)(
        `<|im_start|>User:<image>${QUESTION}<end_of_utterance>\nAssistant:`,
        [imageOf([1, 64, 64])],
      ),
    prompt(taken, units) {
      const fake = '<fake_token_around_image>';
      const rows = [0, 1].map((row) =>
        [0, 1]
          .filter((column) => taken.includes(2 * row + column))
          .map((column) => `${fake}<row_${row + 1}_col_${column + 1}>${IMAGE.repeat(units[2 * row + column])}`)
          .join(''),
      );
      const text = rows.filter((row) => row !== '').map((row) => `${row}\n`);
      const whole = `\n${fake}<global-img>${IMAGE.repeat(units[4])}${fake}`;
      return `<|im_start|>User:${text.join('')}${whole}${QUESTION}<end_of_utterance>\nAssistant:`;
    },
  },
  {
    family: 'lfm2_vl',
    axis: 0,
    inputs({ tokenizer, image_processor }) {
      const config = { ...(image_processor as unknown as { config: object }).config, do_resize: false };
      const components = { tokenizer, image_processor: new Lfm2VlImageProcessor(config) };
      const process = new Lfm2VlProcessor({}, components as never, null as never) as unknown as (
        ...given: unknown[]
      ) => Promise<Inputs>;
      return process(imageOf([7, 96, 64]), `<|im_start|>user\n<image>${QUESTION}<|im_end|>\n<|im_start|>assistant\n`);
    },
    prompt(taken, units) {
      const columns = COLUMNS;
      const name = (tile: number) => `<|img_row_${Math.floor(tile / columns) + 1}_col_${(tile % columns) + 1}|>`;
      const tiles = taken.map((tile) => `${name(tile)}${IMAGE.repeat(units[tile])}`).join('');
      const whole = `<|img_thumbnail|>${IMAGE.repeat(units[units.length - 1])}`;
      return `<|im_start|>user\n<|image_start|>${tiles}${whole}<|image_end|>${QUESTION}<|im_end|>\n<|im_start|>assistant\n`;
    },
  },
];

describe.each(FAMILIES)('$family', ({ family, prompt, axis, inputs: inputsOf }) => {
  const folder = join(ROOT, family);
  let model: PreTrainedModel;
  let processor: Processor;
  let vision: VisionModel;
  let inputs: Inputs;
  let imageToken: number;
  let never: number[];
  let options: object;
  beforeAll(async () => {
    const json = async (name: string) => JSON.parse(await readFile(join(folder, name), 'utf8'));
    imageToken = (await json('config.json')).image_token_id;
    const { never_generated, max_new_tokens } = await json('expected.json');
    never = never_generated;
    ({ model, processor } = await load(ROOT, family));
    options = { max_new_tokens, suppress_tokens: never, bad_words_ids: never.map((id) => [id]) };
    vision = await openVisionModel(folder);
    inputs = await inputsOf(processor);
  }, 120_000);
  afterAll(async () => {
    await vision.dispose();
    await model.dispose();
  });

  const generate = (given: Inputs) => answer(given, model.generate({ ...given, ...options } as never));

  /** Some tiles of an input that has one entry for each. */
  function some(tensor: Tensor, taken: readonly number[]): Tensor {
    const { dims, data, type } = tensor;
    const size = data.length / dims[axis];
    const own = taken.flatMap((tile) => Array.from(data.slice(tile * size, (tile + 1) * size) as Iterable<number>));
    const Data = data.constructor as unknown as { from(list: unknown[]): Float32Array };
    return new Tensor(type as 'float32', Data.from(own), dims.with(axis, taken.length));
  }

  /** What the plain model is given for the taken tiles, the whole view last. */
  function plainInputs(taken: readonly number[], units: readonly number[]): Inputs {
    const { input_ids: _, attention_mask: __, pixel_values, pixel_attention_mask, spatial_shapes } = inputs;
    const own = [...taken, units.length - 1];
    const input_ids = tokens(processor, prompt(taken, units));
    const begin = inputs.input_ids.data[0] as bigint;
    const all = input_ids.data[0] === begin ? [...input_ids.data] : [begin, ...input_ids.data];
    return {
      input_ids: int64(all as bigint[], [1, all.length]),
      attention_mask: int64(new Array(all.length).fill(1), [1, all.length]),
      pixel_values: some(pixel_values, own),
      ...(pixel_attention_mask && { pixel_attention_mask: some(pixel_attention_mask, own) }),
      ...(spatial_shapes && { spatial_shapes: some(spatial_shapes, own) }),
    };
  }

  async function attached(given: Omit<AttachOptions, 'keep' | 'keepRatio' | 'model'>) {
    let pruned: readonly PrunedImage[] = [];
    const detach = await attach(model, {
      ...{ model: folder, keepRatio: 1, question: QUESTION },
      ...given,
      onPruned: (images) => (pruned = images),
    });
    const ids = await generate(inputs).finally(detach);
    return { ids, pruned: pruned[0] };
  }

  it('gives what the plain model gives for an image of the tiles that are taken', async () => {
    const seen = new Set<string>();
    for (const tiles of [
      ...[1, 2, 3].map((keep) => ({ keep })),
      ...(['saliency', 'words', 'contrast'] as const).map((by) => ({ keep: 2, by })),
      { keep: 'auto' as const, mass: 0.6 },
    ]) {
      const { ids, pruned } = await attached({ tiles });
      const { looked, tileCounts, indices } = pruned;
      const taken = [...looked!.taken];
      if (typeof tiles.keep === 'number') expect(taken).toHaveLength(tiles.keep);
      const [image] = await vision.encode(await visionInputs());
      const units = image.tiles.map(({ rows, columns }) => rows * columns);
      image.dispose();
      expect([...tileCounts]).toEqual(
        units.map((count, tile) => (taken.includes(tile) || tile === units.length - 1 ? count : 0)),
      );
      expect(indices).toHaveLength(tileCounts.reduce((sum, count) => sum + count, 0));
      expect(ids, JSON.stringify(tiles)).toEqual(await generate(plainInputs(taken, units)));
      seen.add(taken.join());
    }
    expect(seen.size).toBeGreaterThan(3);
  }, 300_000);

  it('has the original positions where they are asked for', async () => {
    const { ids, pruned } = await attached({ tiles: { keep: 2 }, positions: 'original' });
    const [image] = await vision.encode(await visionInputs());
    const all = await image.all();
    const [, , width] = all.dims;
    const units = image.tiles.map(({ rows, columns }) => rows * columns);
    image.dispose();
    const { taken } = pruned.looked!;
    const short = Array.from(plainInputs([...taken], units).input_ids.data as BigInt64Array, Number);
    const whole = Array.from(inputs.input_ids.data as BigInt64Array, Number);
    const embeds = await embed(model, short);
    const kept = pruned.indices.values();
    for (const [at, id] of short.entries()) {
      if (id !== imageToken) continue;
      const place = kept.next().value as number;
      (embeds.data as Float32Array).set(
        (all.data as Float32Array).subarray(place * width, (place + 1) * width),
        at * width,
      );
    }
    // The short prompt is a part of the whole one, image tokens by their places.
    const columns = whole.flatMap((id, column) => (id === imageToken ? [column] : []));
    const places: number[] = [];
    const own = [...pruned.indices].map((place) => columns[place]);
    // From its end: a tile's marks stand in front of it.
    for (const id of short.toReversed()) {
      const before = (places[0] ?? whole.length) - 1;
      places.unshift(id === imageToken ? (own.pop() as number) : whole.lastIndexOf(id, before));
    }
    const positions = (i: number) => [places[i] ?? whole.length + i - short.length];
    const { max_new_tokens } = options as { max_new_tokens: number };
    expect(ids).toEqual([await decodeByHand(model, { embeds, positions }, max_new_tokens, never)]);
  }, 120_000);

  it('is as without the option where all tiles are taken', async () => {
    const plain = await attached({});
    const { ids, pruned } = await attached({ tiles: { keep: 99 } });
    expect(ids).toEqual(plain.ids);
    expect(pruned.looked).toBeUndefined();
    const { ids: auto, pruned: looked } = await attached({ tiles: { keep: 'auto', mass: 1 } });
    expect(auto).toEqual(plain.ids);
    expect(looked.looked!.taken).toHaveLength(pruned.tileCounts.length - 1);
  }, 120_000);

  async function visionInputs() {
    const { pixel_values, pixel_attention_mask, spatial_shapes } = inputs;
    return {
      ...{ pixelValues: pixel_values, pixelAttentionMask: pixel_attention_mask },
      ...(spatial_shapes && { spatialShapes: spatial_shapes }),
    } as never;
  }
});
