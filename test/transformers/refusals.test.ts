import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { PreTrainedModel, Processor } from '@huggingface/transformers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type AttachOptions, attach, type LoadedModel } from '../../src/transformers/index.js';
import { Editable, type Node } from '../onnx/editable.js';
import { FLOAT, SmallGraph } from './small/graph.js';
import { PATCHES, type SmallLlava, writeLlava } from './small/llava.js';
import { answer, EIGHT, FRESH, type Inputs, load, photo } from './support.js';

let root: string;
let own: SmallLlava;
let other: SmallLlava;
let model: PreTrainedModel;
let processor: Processor;
let inputs: Inputs;
let plain: number[][];
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'desap-refused-'));
  own = await writeLlava(join(root, 'own'), FRESH);
  other = await writeLlava(join(root, 'other'), FRESH + 50);
  ({ model, processor } = await load(own.root, 'small-llava'));
  inputs = await processor(await photo(3), '<image>what is the large thing ?<ans>');
  plain = await answer(inputs, model.generate({ ...inputs, ...EIGHT }));
});
afterAll(async () => {
  await model.dispose();
  await rm(root, { recursive: true });
});

/** The model with other parts. */
function changed(parts: { config?: object; sessions?: object }): LoadedModel {
  const config = { ...model.config, ...parts.config };
  const sessions = { ...model.sessions, ...parts.sessions };
  return Object.assign(Object.create(model), { config, sessions }) as LoadedModel;
}

describe('attach refuses, and leaves the model alone', () => {
  const good = (): AttachOptions => ({ clip: own.clip, model: own.llava, keep: 4 });
  const decoder = (inputNames: string[]) => ({ decoder_model_merged: { run() {}, inputNames } });
  type Refusal = [string, () => [LoadedModel, Partial<AttachOptions>], string, RegExp];
  const cases: Refusal[] = [
    ['what is no model', () => [{ config: {}, sessions: {} }, {}], 'ERR_VALUE', /model: .*Transformers\.js/],
    ['another kind of model', () => [changed({ config: { model_type: 'florence2' } }), {}], 'ERR_VALUE', /florence2/],
    ['no keep', () => [model, { keep: undefined }], 'ERR_VALUE', /keep/],
    ['keep 0', () => [model, { keep: 0 }], 'ERR_VALUE', /^keep: got 0, wanted a count/],
    ['a share as a count', () => [model, { keep: 0.5 }], 'ERR_VALUE', /^keep: got 0\.5, .*keepRatio/],
    ['a count as a share', () => [model, { keep: undefined, keepRatio: 64 }], 'ERR_VALUE', /^keepRatio: got 64,/],
    ['a bad entry of a list', () => [model, { keep: [4, 'none' as never] }], 'ERR_VALUE', /^keep\[1\]: got 'none'/],
    ['an empty list', () => [model, { keep: [] }], 'ERR_VALUE', /^keep: got \[\]/],
    ['a count and a share', () => [model, { keepRatio: 0.5 }], 'ERR_VALUE', /^keepRatio: .*one of the two/],
    ['a question that is none', () => [model, { question: 5 as never }], 'ERR_VALUE', /^question: got 5/],
    ['a listener that is none', () => [model, { onPruned: {} as never }], 'ERR_VALUE', /^onPruned: got Object/],
    ['an unknown option', () => [model, { kep: 4 } as never], 'ERR_VALUE', /^options: got the unknown option 'kep'/],
    ...Object.entries({ clipFolder: 'clip', modelDir: 'model', query: 'question' }).map(
      ([before, now]): Refusal => [
        `the option ${before} of before`,
        () => [model, { [before]: 'x' } as never],
        'ERR_VALUE',
        new RegExp(`^options: got the unknown option '${before}', wanted ${now}, its name now`),
      ],
    ),
    [
      'a misspelt end of a question',
      () => [model, { question: { embeddings: [], endOfTxt: 0 } as never }],
      'ERR_VALUE',
      /^question: got the unknown option 'endOfTxt'/,
    ],
    ['a share that is none', () => [model, { taskShare: 2 }], 'ERR_VALUE', /^taskShare: got 2, wanted/],
    [
      'another alignment',
      () => [model, { alignment: 'x' as never }],
      'ERR_VALUE',
      /^alignment: got 'x', wanted 'fcma' \| /,
    ],
    ['a lambda that is none', () => [model, { lambda: Number.NaN }], 'ERR_VALUE', /^lambda: got NaN/],
    [
      'a flag that is none',
      () => [model, { merge: 'no' as never }],
      'ERR_VALUE',
      /^merge: got 'no', wanted true or false/,
    ],
    [
      'another encoding',
      () => [model, { encoding: '64' as never }],
      'ERR_VALUE',
      /^encoding: got '64', wanted 'qq' \| /,
    ],
    ['another way with long texts', () => [model, { longText: 'x' as never }], 'ERR_VALUE', /^longText: got 'x'/],
    ['session options that are none', () => [model, { session: 'x' as never }], 'ERR_VALUE', /^session: got 'x'/],
    [
      'a pruner that is none',
      () => [model, { pruner: {} as never }],
      'ERR_VALUE',
      /^pruner: got Object, wanted a Pruner/,
    ],
    [
      'a model folder that is no path',
      () => [model, { model: 5 as never }],
      'ERR_VALUE',
      /^options\.model: got 5, wanted a model folder/,
    ],
    ['other positions', () => [model, { positions: 'none' as never }], 'ERR_VALUE', /positions/],
    ['no CLIP folder', () => [model, { clip: undefined }], 'ERR_VALUE', /^clip: got undefined/],
    ['a CLIP folder that is not there', () => [model, { clip: 'no/such' }], 'ERR_FILE', /no\/such/],
    ['the CLIP folder of another tower', () => [model, { clip: other.clip }], 'ERR_HEAD_MISMATCH', /hidden states/],
    [
      'the folder of another model',
      () => [model, { model: other.llava, clip: other.clip }],
      'ERR_HEAD_MISMATCH',
      /^options\.model: got .*differ/,
    ],
    [
      'a model folder that is not there',
      () => [model, { model: 'no/such' }],
      'ERR_FILE',
      /^options\.model: .*vision_encoder/,
    ],
    [
      'a model of which it is not told where it lies',
      () => [model, { model: undefined }],
      'ERR_FILE',
      /^options\.model: got no name of the model in its config, wanted the folder/,
    ],
    [
      'a decoder with an input of unknown meaning',
      () => [changed({ sessions: decoder(['inputs_embeds', 'attention_mask', 'per_layer_inputs']) }), {}],
      'ERR_GRAPH',
      /per_layer_inputs/,
    ],
    [
      'own places for a decoder that is not told positions',
      () => [changed({ sessions: decoder(['inputs_embeds', 'attention_mask']) }), { positions: 'original' }],
      'ERR_GRAPH',
      /position_ids/,
    ],
  ];
  it.each(cases)('%s', async (_, given, code, message) => {
    const [target, options] = given();
    await expect(attach(target, { ...good(), ...options })).rejects.toMatchObject({
      name: 'DesapError',
      code,
      message,
    });
    expect(await answer(inputs, model.generate({ ...inputs, ...EIGHT }))).toEqual(plain);
  });

  it('a second attachment', async () => {
    const detach = await attach(model, good());
    await expect(attach(model, good())).rejects.toMatchObject({ code: 'ERR_VALUE', message: /attached/ });
    await detach();
    expect(await answer(inputs, model.generate({ ...inputs, ...EIGHT }))).toEqual(plain);
  });

  it('nothing where an option of a call is undefined: the default holds', async () => {
    await using _ = await attach(model, good());
    const four = await answer(inputs, model.generate({ ...inputs, ...EIGHT }));
    const call = model.generate({ ...inputs, ...EIGHT, desap: { keep: undefined } });
    expect(await answer(inputs, call)).toEqual(four);
  });

  it('options of a call, by their names, and answers the next call', async () => {
    await using _ = await attach(model, good());
    const refused = (desap: object, message: RegExp) => {
      const error = { name: 'DesapError', code: 'ERR_VALUE', message };
      return Promise.all([
        expect(model.generate({ ...inputs, ...EIGHT, desap })).rejects.toMatchObject(error),
        expect(model({ ...inputs, desap })).rejects.toMatchObject(error),
      ]);
    };
    await refused({ query: 'what ?' }, /^desap: got the unknown option 'query', wanted question, its name now/);
    await refused({ clip: own.clip }, /^desap: got the unknown option 'clip', wanted one of keep, keepRatio,/);
    await refused({ keep: 0.25 }, /^keep: got 0\.25, .*keepRatio/);
    await refused({ keep: 4, keepRatio: 0.25 }, /^keepRatio: .*one of the two/);
    await refused({ taskShare: 2 }, /^taskShare: got 2/);
    await refused({ alignment: 'x' }, /^alignment: got 'x'/);
    await refused({ lambda: '1' }, /^lambda: got '1'/);
    await refused({ merge: 0 }, /^merge: got 0/);
    await refused({ keep: 'all', taskShare: 2 }, /^taskShare: got 2/);
    await refused({ keep: [4, 4] }, /^keep: got 2 entries, wanted 1/);
    await refused({ keepRatio: [0.5, 0.5] }, /^keepRatio: got 2 entries, wanted 1/);
    // A share of a call stands in place of the count that is the default.
    const counted = await answer(inputs, model.generate({ ...inputs, ...EIGHT, desap: { keep: PATCHES / 2 } }));
    const share = model.generate({ ...inputs, ...EIGHT, desap: { keepRatio: 0.5 } });
    expect(await answer(inputs, share)).toEqual(counted);
  });

  it('nothing behind `await using`: the model is as it was', async () => {
    expect(await answer(inputs, model.generate({ ...inputs, ...EIGHT }))).toEqual(plain);
  });

  it('a convolutional tower', async () => {
    const folder = join(root, 'own', 'convolutional');
    await cp(own.llava, folder, { recursive: true });
    const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'));
    const kind = { model_type: 'llava_qwen2', architectures: ['LlavaQwen2ForCausalLM'] };
    await writeFile(join(folder, 'config.json'), JSON.stringify({ ...config, ...kind }));
    const g = new SmallGraph(FRESH);
    const pixels = g.input('pixel_values', FLOAT, ['batch_size', 3, 32, 32]);
    const stride = { kernel_shape: { ints: [8, 8] }, strides: { ints: [8, 8] } };
    const rows = g.reshape(g.add('Conv', [pixels, g.random([32, 3, 8, 8], 0.1)], stride), [0, 32, -1]);
    g.output(g.linear(g.transpose(rows, [0, 2, 1]), 32, 32), 'image_features');
    await writeFile(join(folder, 'onnx', 'vision_encoder.onnx'), g.bytes());
    const { model: convolutional } = await load(join(root, 'own'), 'convolutional');
    const result = attach(convolutional, { ...good(), model: folder });
    await expect(result).rejects.toMatchObject({ code: 'ERR_GRAPH', message: /self-attention/ });
    await convolutional.dispose();
  });
});

describe('an encoder that hands out its class token too', () => {
  it('is refused', async () => {
    const folder = join(root, 'own', 'full');
    await cp(own.llava, folder, { recursive: true });
    const path = join(folder, 'onnx', 'vision_encoder.onnx');
    const graph = await Editable.from(await readFile(path));
    const cut = graph.nodes.find(({ op }) => op === 'Slice') as Node;
    Object.assign(cut, { op: 'Identity', inputs: cut.inputs.slice(0, 1) });
    await writeFile(path, graph.bytes());
    const { model: full } = await load(join(root, 'own'), 'full');
    const result = attach(full, { clip: own.clip, model: folder, keep: 4 });
    await expect(result).rejects.toMatchObject({ code: 'ERR_GRAPH', message: /select_strategy 'full'/ });
    await full.dispose();
  });
});

describe('a decoder that counts its positions itself', () => {
  it('gives the unpruned ids for K = P, and runs with less', async () => {
    const { root: folder, llava, clip } = await writeLlava(join(root, 'counting'), FRESH + 7, { positions: false });
    const { model: counting } = await load(folder, 'small-llava');
    const whole = await answer(inputs, counting.generate({ ...inputs, ...EIGHT }));
    const detach = await attach(counting, { clip: clip, model: llava, keep: PATCHES });
    expect(await answer(inputs, counting.generate({ ...inputs, ...EIGHT }))).toEqual(whole);
    const short = await answer(inputs, counting.generate({ ...inputs, ...EIGHT, desap: { keep: 3 } }));
    expect(short[0]).toHaveLength(8);
    const own = { keep: 3, positions: 'original' };
    await expect(counting.generate({ ...inputs, ...EIGHT, desap: own })).rejects.toMatchObject({ code: 'ERR_GRAPH' });
    // Disposing of the model frees what stands in for its session; detaching then has nothing to open again.
    await counting.dispose();
    await detach();
  });
});
