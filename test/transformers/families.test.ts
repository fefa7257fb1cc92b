/** Folders of tiny models that others' exporters wrote, against what Hugging Face says of them (`expected.json`). */
import { join } from 'node:path';
import type { PreTrainedModel, Processor } from '@huggingface/transformers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { attach, type CallOptions, type LoadedModel, type PrunedImage } from '../../src/transformers/index.js';
import { type Case, type Expected, expectedOf, inputsOf, QWEN_FAMILIES, ROOT } from './family-cases.js';
import { ids, load } from './support.js';

describe.each(QWEN_FAMILIES)('%s', (family) => {
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
    expected = await expectedOf(family);
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
        const isRatio = typeof keep === 'number' && keep < 1;
        const got = await generate(given, { ...others, ...(isRatio ? { keepRatio: keep } : { keep }) });
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

describe('a CLIP folder is refused where the tower is none of CLIP', () => {
  it.each(['idefics3', 'gemma3', 'paligemma', 'lfm2_vl', 'llava_onevision'])('%s', async (family) => {
    const { model } = await load(ROOT, family);
    const attached = attach(model, { model: join(ROOT, family), clip: 'models/tiny-clip', keep: 4 });
    await expect(attached).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: "clip: got 'models/tiny-clip', wanted none: the vision encoder of this model is no CLIP tower",
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
    const pixtral = { model_type: 'llava', vision_config: { model_type: 'pixtral' } };
    await expect(attach(changed(pixtral), { model: folder, keep: 4 })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(
        /vision_config\.model_type: got 'pixtral', wanted 'clip_vision_model' \| 'siglip_/,
      ),
    });
  });

  it('tells a type that is not taken before it looks at the decoder', async () => {
    const other = changed({ model_type: 'gemma3n' }, ['per_layer_inputs']);
    await expect(attach(other, { model: folder, keep: 4 })).rejects.toMatchObject({
      message: /model_type: got 'gemma3n'/,
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
