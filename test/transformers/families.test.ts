/** Folders of tiny models that others' exporters wrote, against what Hugging Face says of them (`expected.json`). */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type PreTrainedModel, type Processor, RawImage, Tensor } from '@huggingface/transformers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { attach, type CallOptions, type LoadedModel, type PrunedImage } from '../../src/transformers/index.js';
import { ids, int64, load } from './support.js';

const ROOT = 'test/fixtures/families';

type Picture = readonly [seed: number, width: number, height: number];
interface Case {
  readonly name: string;
  readonly pictures: readonly (readonly Picture[])[];
  /** Whether the pictures of a prompt are the frames of one grid. */
  readonly frames: boolean;
  readonly input_ids: number[][];
  readonly attention_mask: number[][];
  readonly image_grid_thw: number[][];
  readonly unpruned: number[][];
  readonly client_unpruned: number[][];
  readonly pruned: readonly {
    /** A `keep` below 1 is a share of the tokens; a list has one entry for each image. */
    readonly options: Omit<CallOptions, 'keep' | 'keepRatio'> & { readonly keep: number | number[] };
    readonly indices: number[][];
    readonly source: number[][];
    readonly assignment: number[][];
    readonly ids: number[][];
  }[];
}
interface Expected {
  readonly never_generated: number[];
  readonly max_new_tokens: number;
  readonly cases: readonly Case[];
}

/** The picture of a seed, as the formula in `expected.json` has it. */
function picture([seed, width, height]: Picture): RawImage {
  const data = new Uint8Array(width * height * 3);
  const ramp = (at: number, size: number) => Math.floor((at * 255) / Math.max(1, size - 1));
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const cell = (Math.floor(x / 5) * 7 + Math.floor(y / 4) * 13 + seed * 31) % 11;
      const color = [
        ramp(x, width) + 17 * cell,
        ramp(y, height) + 29 * (cell ^ (seed % 7)),
        Math.floor((x * x + 3 * y * y + seed * 101) / 7) + 53 * cell,
      ];
      data.set(
        color.map((value) => value % 256),
        3 * (y * width + x),
      );
    }
  return new RawImage(data, width, height, 3);
}

type Pixels = { pixel_values: Tensor; image_grid_thw: Tensor };

/** The inputs of a case: its own ids, and the processor's pixels of each picture (of each film) by itself. */
async function inputsOf({ image_processor }: Processor, given: Case) {
  const prepare = image_processor as unknown as (images: RawImage[]) => Promise<Pixels>;
  const films = given.pictures.flatMap((own) => (given.frames ? [own] : own.map((one) => [one])));
  const prepared: Pixels[] = [];
  for (const film of films) prepared.push(await prepare(film.map(picture)));
  const pixels = prepared.flatMap(({ pixel_values }) => [...(pixel_values.data as Float32Array)]);
  const [{ pixel_values: first }] = prepared;
  const dims = [given.input_ids.length, given.input_ids[0].length];
  return {
    input_ids: int64(given.input_ids.flat(), dims),
    attention_mask: int64(given.attention_mask.flat(), dims),
    pixel_values: new Tensor('float32', Float32Array.from(pixels), [pixels.length / first.dims[1], first.dims[1]]),
    image_grid_thw: int64(given.image_grid_thw.flat(), [given.image_grid_thw.length, 3]),
  };
}

describe.each(['qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'qwen3_vl_packed'])('%s', (family) => {
  let expected: Expected;
  let model: PreTrainedModel;
  let processor: Processor;
  let pruned: readonly PrunedImage[] = [];
  let detach: () => Promise<void>;

  const generate = async (given: Case, desap?: CallOptions) => {
    const inputs = await inputsOf(processor, given);
    const { never_generated, max_new_tokens } = expected;
    const output = model.generate({
      ...inputs,
      ...(desap ? { desap } : {}),
      ...{ max_new_tokens, suppress_tokens: never_generated, bad_words_ids: never_generated.map((id) => [id]) },
    } as Parameters<PreTrainedModel['generate']>[0]);
    return (await ids(output)).map((row) => row.slice(inputs.input_ids.dims[1]));
  };

  beforeAll(async () => {
    expected = JSON.parse(await readFile(join(ROOT, family, 'expected.json'), 'utf8'));
    ({ model, processor } = await load(ROOT, family));
  });
  afterAll(() => model.dispose());

  it('gives the client’s ids before it is attached to', async () => {
    for (const given of expected.cases) expect(await generate(given), given.name).toEqual(given.client_unpruned);
  });

  it('attaches, and gives Hugging Face’s ids for all tokens and for fewer', async () => {
    const onPruned = (images: readonly PrunedImage[]) => {
      pruned = images;
    };
    detach = await attach(model, { model: join(ROOT, family), keep: 4, onPruned });
    for (const given of expected.cases) {
      for (const { options, ids: wanted, ...kept } of given.pruned) {
        const what = `${given.name}, ${JSON.stringify(options)}`;
        const { keep, ...others } = options;
        const got = await generate(given, {
          ...others,
          ...(typeof keep === 'number' && keep < 1 ? { keepRatio: keep } : { keep }),
        });
        const list = (key: 'indices' | 'source' | 'assignment') => pruned.map((image) => [...(image[key] as never)]);
        expect(list('indices'), what).toEqual(kept.indices);
        expect(list('source'), what).toEqual(kept.source);
        expect(list('assignment'), what).toEqual(kept.assignment);
        expect(got, what).toEqual(wanted);
      }
      const tokens = given.image_grid_thw.map(([t, h, w]) => (t * h * w) / 4);
      expect(await generate(given, { keep: tokens }), given.name).toEqual(given.unpruned);
    }
    await detach();
    expect(await generate(expected.cases[0])).toEqual(expected.cases[0].client_unpruned);
  });
});

describe('families that are not taken are refused by their type', () => {
  it.each([
    ['idefics3', 'idefics3'],
    ['gemma3', 'gemma3'],
    ['paligemma', 'paligemma'],
    ['lfm2_vl', 'lfm2_vl with a SigLIP tower'],
    ['llava_onevision', 'llava_onevision with a SigLIP tower: it has no class token, and no CLIP folder fits'],
  ])('%s', async (family, message) => {
    const { model } = await load(ROOT, family);
    const attached = attach(model, { model: join(ROOT, family), clip: 'models/tiny-clip', keep: 4 });
    await expect(attached).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringContaining(`model.config.model_type: got ${message}`),
    });
    await model.dispose();
  });
});

describe('what is looked at in a loaded Qwen2-VL', () => {
  let model: PreTrainedModel;
  beforeAll(async () => {
    ({ model } = await load(ROOT, 'qwen2_vl'));
  });
  afterAll(() => model.dispose());
  const folder = join(ROOT, 'qwen2_vl');

  /** The model with another config, or with a decoder that has further inputs. */
  const changed = (config: object, inputs: string[] = []): LoadedModel => {
    const { inputNames } = model.sessions.decoder_model_merged;
    const decoder = Object.create(model.sessions.decoder_model_merged, {
      inputNames: { value: [...inputNames, ...inputs] },
    });
    const sessions = { ...model.sessions, decoder_model_merged: decoder };
    return Object.assign(Object.create(model), { config: { ...model.config, ...config }, sessions }) as LoadedModel;
  };

  it('refuses a LLaVA whose config says that its tower is another', async () => {
    const siglip = { model_type: 'llava', vision_config: { model_type: 'siglip_vision_model' } };
    await expect(attach(changed(siglip), { model: folder, keep: 4 })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(/vision_config\.model_type: got 'siglip_vision_model'.*no CLIP folder fits/),
    });
  });

  it('tells a type that is not taken before it looks at the decoder', async () => {
    const other = changed({ model_type: 'lfm2_vl' }, ['per_layer_inputs']);
    await expect(attach(other, { model: folder, keep: 4 })).rejects.toMatchObject({
      message: /model_type: got lfm2_vl/,
    });
  });

  it('refuses decoder inputs that could be per token, and takes states that are not', async () => {
    const unknown = attach(changed({}, ['past_conv.0', 'per_layer_inputs']), { model: folder, keep: 4 });
    await expect(unknown).rejects.toMatchObject({ code: 'ERR_GRAPH', message: /got the inputs per_layer_inputs,/ });
    const states = changed({}, ['past_conv.0', 'past_recurrent.0']);
    const bad = attach(states, { model: 'no/such/folder', keep: 4 });
    await expect(bad).rejects.toMatchObject({ code: 'ERR_FILE', message: /no\/such\/folder/ });
  });
});
