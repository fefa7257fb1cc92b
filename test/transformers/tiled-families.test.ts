/** Families with tiles, by Transformers.js's own processors, against what Hugging Face says of the folders (`expected.json`). */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type DynamicCache,
  Lfm2VlImageProcessor,
  Lfm2VlProcessor,
  type PreTrainedModel,
  type Processor,
  type Tensor,
  TextStreamer,
} from '@huggingface/transformers';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { attach, type CallOptions, type PrunedImage } from '../../src/transformers/index.js';
import { imageSpans } from '../../src/transformers/spans.js';
import {
  compact,
  openVisionModel,
  type Positions,
  type VisionInputs,
  type VisionModel,
} from '../../src/vision/index.js';
import { type Case as BaseCase, image, ROOT } from './family-cases.js';
import { answer, decodeByHand, embed, type Inputs, ids, int64, load, tokens } from './support.js';

interface Case extends Omit<BaseCase, 'pruned' | 'frames' | 'positions' | 'image_grid_thw'> {
  readonly given_sets: readonly {
    readonly rule: string;
    /** [sequences][tiles]. */
    readonly kept: number[][][];
    readonly ids: Readonly<Record<Positions, number[][]>>;
  }[];
}
/** The same with its inputs, or one whose ids are those of the loaded model before it is attached to. */
type Ready = Pick<Case, 'name' | 'input_ids' | 'unpruned' | 'client_unpruned' | 'given_sets'> & { inputs: Inputs };
interface Expected {
  readonly never_generated: number[];
  readonly max_new_tokens: number;
  readonly cases: readonly Case[];
}

const POSITIONS: readonly Positions[] = ['compact', 'original'];

const question = 'where is the red one?';

/** Tiles with a thumbnail behind them, of other grids and with padding: the folder's own processor makes squares of all images. */
async function lfm2Tiles({ tokenizer, image_processor }: Processor): Promise<Inputs[]> {
  const config = { ...(image_processor as unknown as { config: object }).config, do_resize: false };
  const components = { tokenizer, image_processor: new Lfm2VlImageProcessor(config) };
  const process = new Lfm2VlProcessor({}, components as never, null as never) as unknown as (
    ...given: unknown[]
  ) => Promise<Inputs>;
  const prompt = (images: number) =>
    `<|im_start|>user\n${'<image>'.repeat(images)}${question}<|im_end|>\n<|im_start|>assistant\n`;
  const one = await process(image([7, 96, 64]), prompt(1));
  const several = [image([8, 20, 44]), image([9, 100, 60]), image([1, 1, 1])];
  return [one, await process([several], prompt(3))];
}

const FAMILIES = [
  { family: 'idefics3', marks: { beforeLast: 297n }, further: async (): Promise<Inputs[]> => [] },
  { family: 'lfm2_vl', marks: { afterLast: 301n }, further: lfm2Tiles },
];

describe.each(FAMILIES)('$family', ({ family, marks, further }) => {
  const folder = join(ROOT, family);
  let expected: Expected;
  let model: PreTrainedModel;
  let processor: Processor;
  let vision: VisionModel;
  let imageToken: number;
  let detach: () => Promise<void>;
  let pruned: readonly PrunedImage[] = [];
  let prepared: Inputs[];
  let cases: Ready[];
  let options: Parameters<PreTrainedModel['generate']>[0];

  beforeAll(async () => {
    expected = JSON.parse(await readFile(join(folder, 'expected.json'), 'utf8'));
    imageToken = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')).image_token_id;
    ({ model, processor } = await load(ROOT, family));
    vision = await openVisionModel(folder);
    const { never_generated, max_new_tokens } = expected;
    const bad_words_ids = never_generated.map((id) => [id]);
    options = { max_new_tokens, suppress_tokens: never_generated, bad_words_ids } as typeof options;
    prepared = [];
    for (const given of expected.cases) prepared.push(await inputsOf(given));
    cases = expected.cases.map((given, c) => ({ ...given, inputs: prepared[c] }));
    for (const inputs of await further(processor)) {
      // Of a single sequence the client's ids are Hugging Face's.
      const unpruned = await generate(inputs);
      const input_ids = inputs.input_ids.tolist().map((row: bigint[]) => row.map(Number));
      const name = `further ${cases.length}`;
      cases.push({ name, inputs, input_ids, unpruned, client_unpruned: unpruned, given_sets: [] });
    }
  });
  beforeEach(async () => {
    detach = await attach(model, { model: folder, keep: 5, onPruned: (images) => (pruned = images) });
  });
  afterEach(() => detach());
  afterAll(async () => {
    await vision.dispose();
    await model.dispose();
  });

  /** The case's own ids, and the processor's pixels. */
  async function inputsOf({ pictures, input_ids, attention_mask }: Case): Promise<Inputs> {
    const prepare = processor.image_processor as unknown as (images: unknown) => Promise<Inputs>;
    const { pixel_values, pixel_attention_mask, spatial_shapes } = await prepare(pictures.map((own) => own.map(image)));
    const dims = [input_ids.length, input_ids[0].length];
    return {
      ...{ input_ids: int64(input_ids.flat(), dims), attention_mask: int64(attention_mask.flat(), dims) },
      ...{ pixel_values, pixel_attention_mask },
      ...(spatial_shapes && { spatial_shapes }),
    };
  }

  const generate = (inputs: Inputs, desap?: CallOptions) =>
    answer(inputs, model.generate({ ...inputs, ...options, ...(desap && { desap }) } as never));

  /** The vision model's inputs, for sequences and images as the prompt has them. */
  function plainInputs(inputs: Inputs): VisionInputs {
    const spans = spansOf(inputs);
    return {
      ...{ pixelValues: inputs.pixel_values, pixelAttentionMask: inputs.pixel_attention_mask },
      ...(inputs.spatial_shapes && { spatialShapes: inputs.spatial_shapes }),
      tileCounts: spans.map(({ pieces }) => pieces.length),
    };
  }

  const spansOf = ({ input_ids }: Inputs) =>
    imageSpans(input_ids.data as BigInt64Array, input_ids.dims, BigInt(imageToken), marks) ?? [];

  type Tokens = { features: Tensor | { data: unknown }; indices: Int32Array; assignment: Int32Array };

  /** What the language model says of one sequence with these tokens of its images, put together by public parts. */
  async function byHand(inputs: Inputs, sequence: number, kept: readonly Tokens[], positions: Positions) {
    const [, columns] = inputs.input_ids.dims;
    const row = <T>(data: ArrayLike<T>) => Array.from(data).slice(sequence * columns, (sequence + 1) * columns);
    const isThere = row(inputs.attention_mask.data as BigInt64Array);
    const inputIds = row(inputs.input_ids.data as BigInt64Array)
      .filter((_, i) => isThere[i] === 1n)
      .map(Number);
    const short = compact({ inputIds, imageTokenId: imageToken, kept: kept as never, positions });
    const shortIds = Array.from(short.inputIds.data as BigInt64Array, Number);
    const embeds = await embed(model, shortIds);
    const features = kept.flatMap((one) => [...(one.features.data as Float32Array)]);
    const width = embeds.dims[2];
    let at = 0;
    for (const [column, id] of shortIds.entries())
      if (id === imageToken)
        (embeds.data as Float32Array).set(features.slice(at * width, ++at * width), column * width);
    expect(at * width).toBe(features.length);
    const places = Array.from(short.positionIds.data as BigInt64Array, Number);
    const next = short.nextPosition - places.length;
    const prompt = { embeds, positions: (i: number) => [places[i] ?? next + i] };
    return decodeByHand(model, prompt, expected.max_new_tokens, expected.never_generated);
  }

  it('gives Hugging Face’s ids for all tokens, and the client’s before and after', async () => {
    for (const { name, inputs, unpruned, client_unpruned } of cases) {
      const tokens = spansOf(inputs).map(({ pieces }) => Math.max(...pieces.map((one) => one.length)));
      for (const desap of [{ keep: tokens }, { keepRatio: 1 }, { keepRatio: 1, allocation: 'image' as const }])
        expect(await generate(inputs, desap), name).toEqual(unpruned);
      expect(await generate(inputs, { keep: 'all' }), name).toEqual(client_unpruned);
    }
    await detach();
    for (const { name, inputs, client_unpruned } of cases)
      expect(await generate(inputs), name).toEqual(client_unpruned);
  });

  it.each(POSITIONS)('gives Hugging Face’s ids for given sets, positions %s', async (positions) => {
    for (const { name, inputs, given_sets } of cases) {
      const spans = spansOf(inputs);
      const images = await vision.encode(plainInputs(inputs));
      for (const { rule, kept, ids: wanted } of given_sets)
        for (const [sequence, tiles] of kept.entries()) {
          let tile = 0;
          const own: Tokens[] = [];
          for (const [i, { pieces }] of spans.entries()) {
            if (spans[i].sequence !== sequence) continue;
            const all = await images[i].all();
            const width = all.dims[2];
            const places: number[] = [];
            let first = 0;
            for (const piece of pieces) {
              places.push(...tiles[tile++].map((at) => first + at));
              first += piece.length;
            }
            const data = places.flatMap((at) => [...(all.data as Float32Array).slice(at * width, (at + 1) * width)]);
            const assignment = new Int32Array(images[i].tokenCount).fill(-1);
            for (const [k, place] of places.entries()) assignment[place] = k;
            own.push({ features: { data: Float32Array.from(data) }, indices: Int32Array.from(places), assignment });
          }
          expect(await byHand(inputs, sequence, own, positions), `${name}, ${rule}`).toEqual(
            wanted[positions][sequence],
          );
        }
      for (const one of images) one.dispose();
    }
  });

  it.each(POSITIONS)('gives what hand compaction gives, positions %s', async (positions) => {
    for (const { name, inputs, input_ids } of cases) {
      const spans = spansOf(inputs);
      const largest = spans.map(({ pieces }) => Math.max(...pieces.map(({ length }) => length)));
      for (const desap of [
        { keep: spans.map(() => 1) },
        { keep: largest.map((count) => Math.min(5, count)) },
        { keepRatio: spans.map(() => 0.4), taskShare: 0, merge: false },
        { keep: spans.map(({ pieces }, i) => Math.min(9, largest[i]) * pieces.length), allocation: 'image' as const },
      ]) {
        const got = await generate(inputs, { ...desap, question, positions });
        const images = await vision.encode(plainInputs(inputs));
        const { keep, keepRatio, ...how } = desap;
        const kept = await Promise.all(
          images.map((one, i) =>
            one.prune(question, { ...how, ...(keep ? { keep: keep[i] } : { keepRatio: keepRatio![i] }) }),
          ),
        );
        expect(pruned.map(({ indices }) => indices)).toEqual(kept.map(({ indices }) => indices));
        expect(pruned.map(({ tileCounts }) => tileCounts)).toEqual(kept.map(({ tileCounts }) => tileCounts));
        expect(pruned.map(({ task }) => task)).toEqual(
          kept.map(() => (desap.taskShare === 0 ? null : { form: 'llm' })),
        );
        for (const sequence of input_ids.keys()) {
          const own = kept.filter((_, i) => spans[i].sequence === sequence);
          expect(got[sequence], `${name}, ${JSON.stringify(desap)}`).toEqual(
            await byHand(inputs, sequence, own, positions),
          );
        }
        for (const one of images) one.dispose();
      }
    }
  });

  it('keeps K of each tile, or of each image, or of a prompt', async () => {
    for (const { inputs } of cases) {
      const spans = spansOf(inputs);
      const total = (own: Int32Array) => own.reduce((sum, count) => sum + count, 0);
      await generate(inputs, { keep: 3 });
      expect(pruned.map(({ tileCounts }) => [...tileCounts])).toEqual(
        spans.map(({ pieces }) => pieces.map(({ length }) => Math.min(3, length))),
      );
      expect(pruned.map(({ sequence }) => sequence)).toEqual(spans.map(({ sequence }) => sequence));
      const two = spans.map(({ pieces }) => 2 * pieces.length);
      await generate(inputs, { keep: two, allocation: 'image' });
      expect(pruned.map(({ tileCounts }) => total(tileCounts))).toEqual(two);
      const tiles = spans.reduce((sum, { pieces }) => sum + pieces.length, 0);
      await generate(inputs, { keep: tiles + 1, allocation: 'prompt' });
      for (const sequence of new Set(spans.map((span) => span.sequence))) {
        const own = pruned.filter((one) => one.sequence === sequence);
        expect(own.reduce((sum, { tileCounts }) => sum + total(tileCounts), 0)).toBe(tiles + 1);
        for (const { tileCounts } of own) expect(Math.min(...tileCounts)).toBeGreaterThan(0);
      }
    }
  });

  it('reads the question out of the prompt', async () => {
    for (const [c, { prompts }] of expected.cases.entries()) {
      const questions = prompts.map((prompt) => /<image>([^<]*)<[^>]+>\n[^\n]*(assistant|Assistant)/.exec(prompt)![1]);
      await generate(prepared[c], { taskShare: 1 });
      const read = pruned.map(({ indices }) => indices);
      await generate(prepared[c], { taskShare: 1, question: questions });
      expect(pruned.map(({ indices }) => indices)).toEqual(read);
    }
  });

  it.each(POSITIONS)(
    'continues a pruned cache, and takes an image of a later turn, positions %s',
    async (positions) => {
      const [first, , second] = prepared;
      const desap = { positions, question, keep: 3 };
      const start = { ...options, max_new_tokens: 3, return_dict_in_generate: true, desap };
      const begun = async () =>
        (await model.generate({ ...first, ...start } as never)) as unknown as {
          sequences: Tensor;
          past_key_values: DynamicCache;
        };
      const turn = [...(tokens(processor, ' is it red?').data as BigInt64Array)];
      const prompt = (all: bigint[]) => {
        const dims = [1, all.length];
        return {
          ...options,
          input_ids: int64(all, dims),
          attention_mask: int64(new Array(all.length).fill(1), dims),
          desap,
        };
      };
      const { pixel_values, pixel_attention_mask, spatial_shapes } = first;
      const pixels = { pixel_values, pixel_attention_mask, ...(spatial_shapes && { spatial_shapes }) };
      const talk = [...((await begun()).sequences.data as BigInt64Array), ...turn];
      const whole = await ids(model.generate({ ...prompt(talk), ...pixels } as never));
      for (const more of [pixels, {}]) {
        const { past_key_values } = await begun();
        expect(await ids(model.generate({ ...prompt(talk), ...more, past_key_values } as never))).toEqual(whole);
      }
      // The second prompt's images behind the first one's cache.
      const { past_key_values, sequences } = await begun();
      const images = [...(sequences.data as BigInt64Array), ...(second.input_ids.data as BigInt64Array)];
      const later = { ...second, ...prompt(images), past_key_values };
      await model.generate({ ...later, max_new_tokens: 1 } as never);
      const kept = pruned.map(({ indices }) => indices);
      await generate(second, { question, keep: 3 });
      expect(kept).toEqual(pruned.map(({ indices }) => indices));
    },
  );

  it('streams the whole prompt and the answer', async () => {
    const [inputs] = prepared;
    const put: number[][] = [];
    const streamer = new TextStreamer(processor.tokenizer as never, { callback_function: () => {} });
    vi.spyOn(streamer, 'put').mockImplementation((value: bigint[][]) => void put.push(value.flat().map(Number)));
    const [streamed] = await ids(model.generate({ ...inputs, ...options, streamer } as never));
    expect(put[0]).toEqual(Array.from(inputs.input_ids.data as BigInt64Array, Number));
    expect(put.slice(1).flat()).toEqual(streamed.slice(inputs.input_ids.dims[1]));
  });

  it('gives whoever encodes images by hand what the file gives', async () => {
    const { pixel_values, pixel_attention_mask, spatial_shapes } = prepared[2];
    const given = { pixel_values, pixel_attention_mask, ...(spatial_shapes && { spatial_shapes }) };
    const attached = await model.encode_image(given);
    await detach();
    const plain = await model.encode_image(given);
    expect(attached.dims).toEqual(plain.dims);
    const difference = (plain.data as Float32Array).map((value, i) => Math.abs(value - attached.data[i]));
    expect(Math.max(...difference)).toBeLessThan(1e-4);
  });

  it('refuses prompts that do not fit their images', async () => {
    const [one, , two] = prepared;
    const refused = async (inputs: Inputs, code: string, message: RegExp) =>
      expect(generate(inputs, { question }), String(message)).rejects.toMatchObject({ code, message });
    const { pixel_values, pixel_attention_mask, spatial_shapes } = two;
    const others = { pixel_values, pixel_attention_mask, ...(spatial_shapes && { spatial_shapes }) };
    await refused(
      { ...one, ...others },
      'ERR_VALUE',
      /^input_ids: got \d+ tiles \(\d+\), wanted \d+, those of pixel_values/,
    );
    const first = Array.from(one.input_ids.data as BigInt64Array);
    first.splice(first.indexOf(BigInt(imageToken)), 1);
    const dims = [1, first.length];
    const short = {
      ...one,
      input_ids: int64(first, dims),
      attention_mask: int64(new Array(first.length).fill(1), dims),
    };
    await refused(short, 'ERR_SHAPE', /^input_ids: got 15 image tokens for tile 0 of image 0, wanted 16, of 4 rows/);
  });

  it('refuses a decoder that puts the features in their places itself, as LFM3-VL’s does', async () => {
    await detach();
    const { inputNames } = model.sessions.decoder_model_merged;
    const names = { value: [...inputNames, 'input_ids', 'image_features'] };
    const decoder = Object.create(model.sessions.decoder_model_merged, { inputNames: names });
    const sessions = { ...model.sessions, decoder_model_merged: decoder };
    const merging = Object.assign(Object.create(model), { sessions }) as PreTrainedModel;
    await expect(attach(merging, { model: folder, keep: 4 })).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: /decoder_model_merged: got the inputs input_ids, image_features, wanted none that may hold one entry/,
    });
  });
});
