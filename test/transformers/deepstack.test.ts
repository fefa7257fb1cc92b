/**
 * Qwen3-VL whose deepstack features are outputs of the encoder and inputs of the decoder: the packed folder, taken apart. It computes the
 * same, so Hugging Face's ids and sets are those of that folder.
 */
import { readdirSync } from 'node:fs';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { PreTrainedModel, Processor } from '@huggingface/transformers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { DataType } from '../../src/onnx/format/proto.js';
import { attach, type CallOptions, type PrunedImage } from '../../src/transformers/index.js';
import { QwenVision } from '../../src/vision/index.js';
import { Editable } from '../onnx/editable.js';
import { type Case, type Expected, expectedOf, inputsOf, ROOT } from './family-cases.js';
import { ids, int64, load } from './support.js';

const PACKED = join(ROOT, 'qwen3_vl_packed');
const WIDTH = 24;
const LAYERS = 2;
type Form = 'an output for each layer' | 'one output of all layers';

/** Columns of a value's last axis. */
function columns(graph: Editable, value: string, from: number, to: number): string {
  const [start, end, axis] = [[from], [to], [-1]].map((values) => graph.integers(values));
  return graph.add('Slice', [value, start, end, axis]);
}

async function edited(name: string, edit: (graph: Editable) => void): Promise<Uint8Array> {
  const graph = await Editable.from(await readFile(join(PACKED, 'onnx', `${name}.onnx`)));
  edit(graph);
  return graph.bytes();
}

/** Writes the parts of the folder with deepstack features as values of their own. */
async function takeApart(folder: string, form: Form): Promise<void> {
  const names = form === 'one output of all layers' ? ['deepstack'] : ['deepstack_0', 'deepstack_1'];
  const write = async (name: string, edit: (graph: Editable) => void) =>
    writeFile(join(folder, 'onnx', `${name}.onnx`), await edited(name, edit));
  await write('vision_encoder', (graph) => {
    const packing = graph.producer(graph.outputs[0])!;
    const [features, ...parts] = packing.inputs;
    graph.nodes.splice(graph.nodes.indexOf(packing), 1);
    graph.add('Identity', [features], {}, { outputs: ['image_features'] });
    if (names.length > 1)
      for (const [i, name] of names.entries()) graph.add('Identity', [parts[i]], {}, { outputs: [name] });
    else {
      const layers = parts.map((part) => graph.add('Unsqueeze', [part, graph.integers([0])]));
      graph.add('Concat', layers, { axis: { i: 0 } }, { outputs: names });
    }
    graph.outputs = [...names, 'image_features'];
  });
  await write('embed_tokens', (graph) => {
    const [wide] = graph.outputs;
    for (const node of graph.nodes) node.outputs = node.outputs.map((output) => (output === wide ? 'wide' : output));
    graph.add('Identity', [columns(graph, 'wide', 0, WIDTH)], {}, { outputs: [wide] });
  });
  await write('decoder_model_merged', (graph) => {
    const embeds = graph.inputs.find(({ name }) => name === 'inputs_embeds')!;
    const first = graph.nodes[0];
    const at = () => graph.nodes.indexOf(first);
    const input = (name: string, dims: (number | string)[]) => graph.inputs.push({ name, type: DataType.float, dims });
    embeds.dims = ['batch', 'tokens', WIDTH];
    graph.redirect('inputs_embeds', 'packed_embeds');
    let layers: string[] = names;
    if (form === 'one output of all layers') {
      input('deepstack', [LAYERS, 'batch', 'tokens', WIDTH]);
      layers = [0, 1].map((layer) =>
        graph.add('Gather', ['deepstack', graph.integers([layer], [])], { axis: { i: 0 } }, { at: at() }),
      );
    } else for (const name of names) input(name, ['batch', 'tokens', WIDTH]);
    graph.add('Concat', ['inputs_embeds', ...layers], { axis: { i: -1 } }, { at: at(), outputs: ['packed_embeds'] });
  });
}

describe.each<Form>(['an output for each layer', 'one output of all layers'])('%s', (form) => {
  let root: string;
  let folder: string;
  let expected: Expected;
  let model: PreTrainedModel;
  let processor: Processor;

  beforeAll(async () => {
    root = await mkdtemp(join(tmpdir(), 'desap-deepstack-'));
    folder = join(root, 'qwen3_vl');
    await cp(PACKED, folder, { recursive: true });
    await takeApart(folder, form);
    expected = await expectedOf('qwen3_vl_packed');
    ({ model, processor } = await load(root, 'qwen3_vl'));
  });
  afterAll(async () => {
    await model.dispose();
    await rm(root, { recursive: true });
  });

  const generate = async (given: Case, desap: CallOptions) => {
    const inputs = await inputsOf(processor, given);
    const { never_generated, max_new_tokens } = expected;
    const how = { suppress_tokens: never_generated, bad_words_ids: never_generated.map((id) => [id]) };
    const output = model.generate({ ...inputs, desap, max_new_tokens, ...how } as Parameters<typeof model.generate>[0]);
    return (await ids(output)).map((row) => row.slice(inputs.input_ids.dims[1]));
  };

  it('attached: takes a prompt without images before any other', async () => {
    const detach = await attach(model, { model: folder, keep: 4 });
    const prompt = int64([1, 2, 3], [1, 3]);
    const ones = int64([1, 1, 1], [1, 3]);
    const output = model.generate({ input_ids: prompt, attention_mask: ones, max_new_tokens: 2 } as never);
    expect((await ids(output))[0]).toHaveLength(5);
    await detach();
  });

  it('attached: the decoder gets the rows of kept tokens', async () => {
    let pruned: readonly PrunedImage[] = [];
    const onPruned = (images: readonly PrunedImage[]) => {
      pruned = images;
    };
    const { decoder_model_merged: decoder } = model.sessions;
    const detach = await attach(model, { model: folder, keep: 4, onPruned });
    for (const given of expected.cases) {
      for (const { options, ids: wanted, indices } of given.pruned) {
        const { keep, ...others } = options;
        const isRatio = typeof keep === 'number' && keep < 1;
        const got = await generate(given, { ...others, ...(isRatio ? { keepRatio: keep } : { keep }) });
        const what = `${given.name}, ${JSON.stringify(options)}`;
        expect(
          pruned.map((image) => [...image.indices]),
          what,
        ).toEqual(indices);
        expect(got, what).toEqual(wanted);
      }
      expect(await generate(given, { keep: 'all' }), given.name).toEqual(given.unpruned);
    }
    await detach();
    expect(model.sessions.decoder_model_merged).toBe(decoder);
  });

  it('plain: hands out what is gathered and averaged as the packed columns are', async () => {
    const [given] = expected.cases;
    const { pixel_values: pixelValues, image_grid_thw: imageGridThw } = await inputsOf(processor, given);
    const open = (path: string) => QwenVision.open(join(path, 'onnx', 'vision_encoder.onnx'));
    await using apart = await open(folder);
    await using packed = await open(PACKED);
    expect(apart.further).toEqual(form === 'one output of all layers' ? ['deepstack'] : ['deepstack_0', 'deepstack_1']);
    expect(packed.further).toBeUndefined();
    const [kept, wanted] = await Promise.all(
      [apart, packed].map(async (vision) => {
        const [image] = await vision.encode({ pixelValues, imageGridThw });
        return image.prune('what is the color?', { keep: 5 });
      }),
    );
    expect(kept.indices).toEqual(wanted.indices);
    const rows = Object.values(kept.further!).flatMap(({ data, dims }) => {
      expect(dims.slice(-2)).toEqual([5, WIDTH]);
      return Array.from({ length: data.length / 5 / WIDTH }, (_, i) => data.slice(i * 5 * WIDTH, (i + 1) * 5 * WIDTH));
    });
    for (const [layer, part] of [kept.features.data, ...rows].entries())
      for (const [i, value] of (part as Float32Array).entries()) {
        const column = (1 + LAYERS) * WIDTH * Math.floor(i / WIDTH) + layer * WIDTH + (i % WIDTH);
        expect(value).toBeCloseTo((wanted.features.data as Float32Array)[column], 5);
      }
  });

  it('refuses a decoder that takes them in another type, and gives back what it opened', async () => {
    const { decoder_model_merged: decoder } = model.sessions;
    const inputMetadata = decoder.inputMetadata.map((input: { name: string }) =>
      input.name.startsWith('deepstack') ? { ...input, type: 'int64' } : input,
    );
    const sessions = {
      ...model.sessions,
      decoder_model_merged: Object.create(decoder, { inputMetadata: { value: inputMetadata } }),
    };
    const other = Object.create(model, { sessions: { value: sessions } });
    const threads = () => (process.platform === 'linux' ? readdirSync('/proc/self/task').length : 0);
    const refused = async () =>
      expect(attach(other, { model: folder, keep: 4 })).rejects.toThrow(/got the input deepstack.*, wanted floats/);
    await refused();
    const before = threads();
    for (let i = 0; i < 4; i++) await refused();
    expect(threads()).toBeLessThanOrEqual(before + 2);
  });

  it('refuses a decoder that takes what no output feeds, by its name', async () => {
    const broken = Object.create(model.sessions.vision_encoder, { outputNames: { value: ['image_features'] } });
    const other = Object.create(model, { sessions: { value: { ...model.sessions, vision_encoder: broken } } });
    await expect(attach(other, { model: folder, keep: 4 })).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: /decoder_model_merged: got the inputs deepstack/,
    });
  });
});
