/** Families with one tile for each image and a SigLIP tower, against what Hugging Face says of the folders (`expected.json`). */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  AutoTokenizer,
  type DynamicCache,
  type PreTrainedModel,
  type PreTrainedTokenizer,
  type Processor,
  type Tensor,
  TextStreamer,
} from '@huggingface/transformers';
import * as ort from 'onnxruntime-node';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { attach, type CallOptions, type PrunedImage } from '../../src/transformers/index.js';
import { compact, openVisionModel, type Positions, type VisionModel } from '../../src/vision/index.js';
import { relativeError } from '../support.js';
import { PlainLoop } from '../vision/plain-loop.js';
import { type Case as BaseCase, image, ROOT } from './family-cases.js';
import { answer, type Inputs, ids, int64, load } from './support.js';

interface Case extends Omit<BaseCase, 'pruned' | 'frames' | 'positions' | 'image_grid_thw'> {
  readonly tokens_per_unit: readonly number[];
  readonly features: { readonly shape: number[]; readonly sum_of_squares: number; readonly first: number[] };
  readonly given_sets: readonly {
    readonly rule: string;
    /** [sequences][images]. */
    readonly kept: number[][][];
    readonly ids: Readonly<Record<Positions, number[][]>>;
  }[];
}
interface Expected {
  readonly never_generated: number[];
  readonly max_new_tokens: number;
  readonly cases: readonly Case[];
}

const POSITIONS: readonly Positions[] = ['compact', 'original'];
const QUESTION = 'where is the red one?';

describe.each([
  { family: 'paligemma', asked: /(?:<image>)+(.*)$/ },
  { family: 'gemma3', asked: /(?:<start_of_image>)+(.*)<end_of_turn>\n/ },
  { family: 'llava_onevision', asked: /(?:<image>)+\n(.*)<\|im_end\|>\n/ },
])('$family', ({ family, asked }) => {
  const folder = join(ROOT, family);
  let expected: Expected;
  let model: PreTrainedModel;
  let processor: Processor;
  let tokenizer: PreTrainedTokenizer;
  let vision: VisionModel;
  let loop: PlainLoop;
  let imageToken: number;
  let detach: () => Promise<void>;
  let pruned: readonly PrunedImage[] = [];
  let prepared: Inputs[];
  let options: Parameters<PreTrainedModel['generate']>[0];

  beforeAll(async () => {
    expected = JSON.parse(await readFile(join(folder, 'expected.json'), 'utf8'));
    imageToken = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')).image_token_index;
    ({ model, processor } = await load(ROOT, family));
    // The client has no processor for some of them.
    tokenizer = await AutoTokenizer.from_pretrained(family);
    vision = await openVisionModel(folder);
    loop = await PlainLoop.open(folder, imageToken);
    const { never_generated, max_new_tokens } = expected;
    const bad_words_ids = never_generated.map((id) => [id]);
    options = { max_new_tokens, suppress_tokens: never_generated, bad_words_ids } as typeof options;
    prepared = await Promise.all(expected.cases.map(inputsOf));
  });
  beforeEach(async () => {
    detach = await attach(model, { model: folder, keep: 5, onPruned: (images) => (pruned = images) });
  });
  afterEach(() => detach());
  afterAll(async () => {
    await Promise.all([vision.dispose(), loop.release(), model.dispose()]);
  });

  /** The case's own ids, and the processor's pixels. */
  async function inputsOf({ pictures, input_ids, attention_mask }: Case): Promise<Inputs> {
    const prepare = processor.image_processor as unknown as (images: unknown) => Promise<Inputs>;
    const { pixel_values } = await prepare(pictures.flat().map(image));
    const dims = [input_ids.length, input_ids[0].length];
    return {
      ...{ input_ids: int64(input_ids.flat(), dims), attention_mask: int64(attention_mask.flat(), dims) },
      pixel_values,
    };
  }

  const generate = (inputs: Inputs, desap?: CallOptions) =>
    answer(inputs, model.generate({ ...inputs, ...options, ...(desap && { desap }) } as never));

  /** Which sequence each image of a case belongs to. */
  const sequencesOf = ({ pictures }: Case) => pictures.flatMap((own, sequence) => own.map(() => sequence));

  type Tokens = { features: ort.Tensor; indices: Int32Array; assignment: Int32Array };

  /** What the language model says of one sequence with these tokens of its images, over plain onnxruntime. */
  async function byHand(given: Case, sequence: number, kept: readonly Tokens[], positions: Positions) {
    const inputIds = given.input_ids[sequence].filter((_, i) => given.attention_mask[sequence][i] === 1);
    const prompt = compact({ inputIds, imageTokenId: imageToken, kept, positions });
    const features = kept.map((one) => one.features);
    return loop.generate({ ...prompt, features }, expected.max_new_tokens, expected.never_generated);
  }

  it('gives Hugging Face’s features, and its ids for all tokens; and the client’s before and after', async () => {
    for (const [c, given] of expected.cases.entries()) {
      const { name, unpruned, client_unpruned, tokens_per_unit, features } = given;
      const images = await vision.encode({ pixelValues: prepared[c].pixel_values });
      expect(images.map(({ tokenCount }) => tokenCount)).toEqual(tokens_per_unit);
      const all = await Promise.all(images.map((one) => one.all()));
      const numbers = all.flatMap(({ data }) => [...(data as Float32Array)]);
      expect(relativeError(numbers.slice(0, features.first.length), features.first), name).toBeLessThan(1e-4);
      const squares = numbers.reduce((sum, value) => sum + value * value, 0);
      expect(Math.abs(squares / features.sum_of_squares - 1), name).toBeLessThan(1e-4);
      for (const [i, one] of images.entries()) {
        const { features: kept } = await one.prune(QUESTION, { keepRatio: 1 });
        expect(relativeError(kept.data as Float32Array, all[i].data as Float32Array), name).toBeLessThan(1e-6);
        one.dispose();
      }
      for (const desap of [
        { keep: tokens_per_unit[0] },
        { keepRatio: 1 },
        { keepRatio: 1, allocation: 'image' as const },
      ])
        expect(await generate(prepared[c], desap), name).toEqual(unpruned);
      expect(await generate(prepared[c], { keep: 'all' }), name).toEqual(client_unpruned);
    }
    await detach();
    for (const [c, given] of expected.cases.entries())
      expect(await generate(prepared[c]), given.name).toEqual(given.client_unpruned);
  });

  it.each(POSITIONS)('gives Hugging Face’s ids for given sets, positions %s', async (positions) => {
    for (const [c, given] of expected.cases.entries()) {
      const images = await vision.encode({ pixelValues: prepared[c].pixel_values });
      for (const { rule, kept, ids: wanted } of given.given_sets) {
        const sets = kept.flat();
        const gathered = await Promise.all(
          images.map(async (one, i): Promise<Tokens> => {
            const { data, dims } = await one.all();
            const rows = sets[i].flatMap((at) => [...(data as Float32Array).slice(at * dims[2], (at + 1) * dims[2])]);
            const assignment = new Int32Array(one.tokenCount).fill(-1);
            for (const [k, place] of sets[i].entries()) assignment[place] = k;
            const features = new ort.Tensor('float32', Float32Array.from(rows), [1, sets[i].length, dims[2]]);
            return { features, indices: Int32Array.from(sets[i]), assignment };
          }),
        );
        for (const sequence of given.prompts.keys()) {
          const own = gathered.filter((_, i) => sequencesOf(given)[i] === sequence);
          const got = await byHand(given, sequence, own, positions);
          expect(got, `${given.name}, ${rule}`).toEqual(wanted[positions][sequence]);
        }
      }
      for (const one of images) one.dispose();
    }
  });

  it.each(POSITIONS)('gives what hand compaction gives, positions %s', async (positions) => {
    for (const [c, given] of expected.cases.entries()) {
      const images = await vision.encode({ pixelValues: prepared[c].pixel_values });
      for (const desap of [
        { keep: 1 },
        { keep: 5, alignment: 'fcma-clamped' as const },
        { keepRatio: 0.4, taskShare: 0, merge: false },
      ]) {
        const got = await generate(prepared[c], { ...desap, question: QUESTION, positions });
        const kept = await Promise.all(images.map((one) => one.prune(QUESTION, desap)));
        expect(pruned.map(({ indices }) => indices)).toEqual(kept.map(({ indices }) => indices));
        expect(pruned.map(({ task }) => task)).toEqual(kept.map(({ task }) => task));
        expect(kept[0].task).toEqual(desap.taskShare === 0 ? null : { form: 'llm' });
        for (const sequence of given.prompts.keys()) {
          const own = kept.filter((_, i) => sequencesOf(given)[i] === sequence) as unknown as Tokens[];
          const what = `${given.name}, ${JSON.stringify(desap)}`;
          expect(got[sequence], what).toEqual(await byHand(given, sequence, own, positions));
        }
      }
      for (const one of images) one.dispose();
    }
  });

  it('gives images of one call what each gets alone', async () => {
    const { pixel_values } = prepared[2];
    const [, ...extents] = pixel_values.dims;
    const images = await vision.encode({ pixelValues: pixel_values });
    const size = pixel_values.data.length / images.length;
    for (const [i, one] of images.entries()) {
      const data = (pixel_values.data as Float32Array).slice(i * size, (i + 1) * size);
      const [alone] = await vision.encode({ pixelValues: { data, dims: [1, ...extents] } });
      const [got, wanted] = await Promise.all(
        [one, alone].map((each) => each.prune(QUESTION, { keep: 5, maps: true })),
      );
      expect(got.indices).toEqual(wanted.indices);
      expect(got.assignment).toEqual(wanted.assignment);
      for (const map of ['task', 'saliency'] as const)
        expect(relativeError(got.maps![map]!, wanted.maps![map]!)).toBeLessThan(1e-4);
    }
    for (const one of images) one.dispose();
  });

  it('reads the question out of the prompt', async () => {
    for (const [c, { prompts }] of expected.cases.entries()) {
      await generate(prepared[c], { taskShare: 1 });
      const read = pruned.map(({ indices }) => indices);
      await generate(prepared[c], { taskShare: 1, question: prompts.map((prompt) => asked.exec(prompt)![1]) });
      expect(pruned.map(({ indices }) => indices)).toEqual(read);
    }
  });

  it.each(POSITIONS)('continues a pruned cache, positions %s', async (positions) => {
    const [first] = prepared;
    const { pixel_values } = first;
    const desap = { positions, question: QUESTION, keep: 3 };
    const start = { ...options, max_new_tokens: 3, return_dict_in_generate: true, desap };
    const begun = async () =>
      (await model.generate({ ...first, ...start } as never)) as unknown as {
        sequences: Tensor;
        past_key_values: DynamicCache;
      };
    const turn = [...(tokenizer(' is it red?', { add_special_tokens: false }).input_ids.data as BigInt64Array)];
    const { past_key_values, sequences } = await begun();
    const talk = [...(sequences.data as BigInt64Array), ...turn];
    const dims = [1, talk.length];
    const prompt = { input_ids: int64(talk, dims), attention_mask: int64(new Array(talk.length).fill(1), dims) };
    const later = await ids(model.generate({ ...options, ...prompt, past_key_values, desap } as never));
    const again = (await begun()).past_key_values;
    const withPixels = { ...options, ...prompt, pixel_values, past_key_values: again, desap };
    expect(await ids(model.generate(withPixels as never))).toEqual(later);
    expect(later[0]).toHaveLength(talk.length + expected.max_new_tokens);
    // A decoder that reads a prompt in both directions says something else of the whole talk at once.
    if (family === 'paligemma') return;
    const whole = await ids(model.generate({ ...options, ...prompt, pixel_values, desap } as never));
    expect(later).toEqual(whole);
  });

  it('streams the whole prompt and the answer', async () => {
    const [inputs] = prepared;
    const put: number[][] = [];
    const streamer = new TextStreamer(tokenizer, { callback_function: () => {} });
    vi.spyOn(streamer, 'put').mockImplementation((value: bigint[][]) => void put.push(value.flat().map(Number)));
    const [streamed] = await ids(model.generate({ ...inputs, ...options, streamer } as never));
    expect(put[0]).toEqual(Array.from(inputs.input_ids.data as BigInt64Array, Number));
    expect(put.slice(1).flat()).toEqual(streamed.slice(inputs.input_ids.dims[1]));
  });

  it('gives whoever encodes images by hand what the file gives', async () => {
    const { pixel_values } = prepared[2];
    const attached = await model.encode_image({ pixel_values });
    await detach();
    const plain = await model.encode_image({ pixel_values });
    expect(attached.dims).toEqual(plain.dims);
    expect(relativeError(attached.data as Float32Array, plain.data as Float32Array)).toBeLessThan(1e-5);
  });

  it('refuses prompts that do not fit their images', async () => {
    const [one, , two] = prepared;
    await expect(generate({ ...one, pixel_values: two.pixel_values })).rejects.toMatchObject({
      code: 'ERR_SHAPE',
      message: expect.stringMatching(/^input_ids: got \d+ image tokens/),
    });
    const [, , ...extents] = one.pixel_values.dims;
    const flat = { data: one.pixel_values.data, dims: [3, ...extents] } as never;
    await expect(generate({ ...one, pixel_values: flat })).rejects.toMatchObject({
      code: 'ERR_SHAPE',
      message: expect.stringMatching(/^pixel_values\.dims: got \[3, \d+, \d+\], wanted \[images, 3, H, W\]/),
    });
  });
});
