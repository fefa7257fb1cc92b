import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { cut, type EditedGraph, expose, openGraph } from '../../src/onnx/edit.js';
import { readModel } from '../../src/onnx/format/model.js';
import { newNode } from '../../src/onnx/format/write.js';
import { extractHead } from '../../src/onnx/head/extract.js';
import { HIDDEN_STATES, IMAGE_FEATURES, PATCHES, projectorGraph, towerGraph } from '../../src/onnx/split.js';
import { readTower } from '../../src/onnx/tower.js';
import { normal, relativeError } from '../support.js';
import { Editable } from './editable.js';
import { halfPrecision } from './variants.js';

const LLAVA = 'models/tiny-llava/onnx/vision_encoder.onnx';
const CLIP = 'models/tiny-clip/onnx/vision_model.onnx';
const PIXELS = new ort.Tensor('float32', normal(3, 2 * 3 * 96 * 96), [2, 3, 96, 96]);
const FOLDER = realpathSync(mkdtempSync(join(tmpdir(), 'desap-onnx-')));
afterAll(() => rmSync(FOLDER, { recursive: true }));

async function run(graph: EditedGraph, feeds: Record<string, ort.Tensor>): Promise<Record<string, ort.Tensor>> {
  const session = await openGraph(ort, graph);
  const outputs = await session.run(feeds);
  await session.release();
  return outputs as Record<string, ort.Tensor>;
}

const floats = (tensor: ort.Tensor) => tensor.data as Float32Array;
/** Rows [from, to) of [batch, N, D], for each image. */
function rows(tensor: ort.Tensor, from: number, to: number): Float32Array {
  const [batch, n, d] = tensor.dims;
  return Float32Array.from({ length: batch * (to - from) * d }, (_, i) => {
    const image = Math.floor(i / ((to - from) * d));
    return floats(tensor)[image * n * d + from * d + (i % ((to - from) * d))];
  });
}

let features: ort.Tensor;

beforeAll(async () => {
  const whole = await ort.InferenceSession.create(LLAVA);
  features = (await whole.run({ pixel_values: PIXELS })).image_features;
});

describe('LLaVA in two parts', () => {
  test('structure', () => {
    const { blocks, classToken, hidden, projector, readOut, width, pixels } = readTower(LLAVA);
    expect(blocks).toHaveLength(3);
    expect({ classToken, readOut, width, pixels: pixels.name }).toEqual({
      classToken: true,
      readOut: null,
      width: 128,
      pixels: 'pixel_values',
    });
    expect(projector).toMatchObject({ output: 'image_features', dropsClassToken: true });
    expect(projector!.layers).toHaveLength(2);
    expect(hidden).not.toBe(projector!.patches);
  });

  test('tower and projector give exactly what the whole file gives', async () => {
    const tower = readTower(LLAVA);
    const [first, second] = [towerGraph(tower), projectorGraph(tower)];
    expect(first.bytes.length + second.bytes.length).toBeLessThan(100_000);
    const hidden = (await run(first, { pixel_values: PIXELS }))[HIDDEN_STATES];
    expect(hidden.dims).toEqual([2, 145, 128]);
    const patches = new ort.Tensor('float32', rows(hidden, 1, 145), [2, 144, 128]);
    const projected = (await run(second, { [PATCHES]: patches }))[IMAGE_FEATURES];
    expect(projected.dims).toEqual([2, 144, 128]);
    expect(projected.data).toEqual(features.data);
  });

  test('the projector takes any number of rows, with and without a batch', async () => {
    const tower = readTower(LLAVA);
    const hidden = (await run(towerGraph(tower), { pixel_values: PIXELS }))[HIDDEN_STATES];
    const session = await openGraph(ort, projectorGraph(tower));
    for (const k of [1, 7, 64, 144])
      for (const leading of [[], [1]]) {
        const patches = new ort.Tensor('float32', floats(hidden).slice(128, 128 * (k + 1)), [...leading, k, 128]);
        const projected = (await session.run({ [PATCHES]: patches }))[IMAGE_FEATURES];
        expect(projected.dims).toEqual([...leading, k, 128]);
        expect(relativeError(floats(projected), floats(features).subarray(0, k * 128))).toBeLessThan(1e-5);
      }
    await session.release();
  });

  test('its hidden states are what enters the last layer of CLIP', async () => {
    const [llava, clip] = await Promise.all(
      [LLAVA, CLIP].map((path) => run(towerGraph(readTower(path)), { pixel_values: PIXELS })),
    );
    expect(llava[HIDDEN_STATES].data).toEqual(clip[HIDDEN_STATES].data);
  });

  test('a float16 file takes and gives float32', async () => {
    const graph = await Editable.from(readFileSync(LLAVA));
    halfPrecision(graph);
    const tower = readTower(graph.bytes());
    const hidden = (await run(towerGraph(tower), { pixel_values: PIXELS }))[HIDDEN_STATES];
    expect(hidden.type).toBe('float32');
    const patches = new ort.Tensor('float32', rows(hidden, 1, 145), [2, 144, 128]);
    const projected = (await run(projectorGraph(tower), { [PATCHES]: patches }))[IMAGE_FEATURES];
    expect(projected.type).toBe('float32');
    expect(relativeError(floats(projected), floats(features))).toBeLessThan(2e-2);
  });

  test('a CLIP file has no projector', () => {
    expect(() => projectorGraph(readTower(CLIP))).toThrow(/vision_model\.onnx: looked for a projector/);
  });
});

describe('expose and cut', () => {
  test('more outputs beside those of the file', async () => {
    const { graph, blocks } = readTower(CLIP);
    const outputs = await run(
      expose(
        graph.model,
        [blocks[1].input, 'twice'],
        [newNode({ op: 'Add', inputs: [blocks[1].input, blocks[1].input], outputs: ['twice'] })],
      ),
      {
        pixel_values: PIXELS,
      },
    );
    expect(Object.keys(outputs)).toEqual(['image_embeds', blocks[1].input, 'twice']);
    expect(outputs.image_embeds.dims).toEqual([2, 96]);
    expect(floats(outputs.twice)).toEqual(floats(outputs[blocks[1].input]).map((value) => 2 * value));
  });

  test('nothing is written, and weights are references', () => {
    const before = readdirSync('models/tiny-clip/onnx');
    const model = readModel(CLIP);
    const graph = expose(model, []);
    expect(readdirSync('models/tiny-clip/onnx')).toEqual(before);
    expect(graph.folder).toBe(realpathSync('models/tiny-clip/onnx'));
    expect(graph.bytes.length).toBeLessThan(120_000);
    expect(cut(readModel(readFileSync(CLIP)), { outputs: ['image_embeds'] }).folder).toBeNull();
  });

  test('a value that does not exist', () => {
    expect(() => cut(readModel(CLIP), { outputs: ['nothing'] })).toThrow(
      /vision_model\.onnx: looked for a node that writes 'nothing'/,
    );
  });

  test('what is no tower, no graph and no runtime', async () => {
    for (const build of [towerGraph, projectorGraph])
      for (const [tower, got] of [
        [undefined, 'undefined'],
        [{}, 'Object'],
        [{ graph: {} }, 'Object'],
      ])
        expect(() => build(tower as never)).toThrow(
          expect.objectContaining({ code: 'ERR_VALUE', message: `tower: got ${got}, wanted what readTower gave` }),
        );
    const graph = towerGraph(readTower(CLIP));
    for (const [given, message] of [
      [[], /^ort: got undefined, wanted the onnxruntime-node module/],
      [[{}, {}], /^ort: got Object, wanted the onnxruntime-node module/],
      [[ort], /^graph: got undefined, wanted a graph/],
      [[ort, {}], /^graph: got Object, wanted a graph/],
      [[ort, graph, 'x'], /^options: got 'x', wanted session options/],
    ] as [unknown[], RegExp][])
      await expect((openGraph as (...all: unknown[]) => Promise<unknown>)(...given)).rejects.toMatchObject({
        ...{ name: 'DesapError', code: 'ERR_VALUE', message: expect.stringMatching(message) },
      });
  });

  test('a graph that onnxruntime refuses', async () => {
    const model = readModel(CLIP);
    const graph = expose(model, ['y'], [newNode({ op: 'NoSuchOperator', inputs: ['pixel_values'], outputs: ['y'] })]);
    await expect(openGraph(ort, graph)).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: expect.stringContaining('NoSuchOperator'),
    });
  });
});

describe('weights as external data', () => {
  /** The model in a small file and its weights in others, at offsets that are not aligned. */
  async function split(folder: string, files: (i: number) => string): Promise<string> {
    mkdirSync(folder, { recursive: true });
    const graph = await Editable.from(readFileSync(CLIP));
    const contents = new Map<string, number[]>();
    [...graph.tensors].forEach(([name, tensor], i) => {
      if (!('bytes' in tensor.data) || tensor.data.bytes.length <= 1024) return;
      const content = contents.get(files(i)) ?? [7, 7, 7];
      contents.set(files(i), content);
      graph.tensors.set(name, {
        ...tensor,
        data: { location: files(i), offset: content.length, length: tensor.data.bytes.length },
      });
      for (const byte of tensor.data.bytes) content.push(byte);
    });
    for (const [name, content] of contents) writeFileSync(join(folder, name), new Uint8Array(content));
    const path = join(folder, 'model.onnx');
    writeFileSync(path, graph.bytes());
    return path;
  }

  async function check(path: string): Promise<void> {
    expect(await extractHead({ visionModel: path })).toEqual(await extractHead({ visionModel: CLIP }));
    const hidden = (await run(towerGraph(readTower(path)), { pixel_values: PIXELS }))[HIDDEN_STATES];
    expect(hidden.data).toEqual((await run(towerGraph(readTower(CLIP)), { pixel_values: PIXELS }))[HIDDEN_STATES].data);
  }

  test('beside the model, in one file and in several', async () => {
    await check(await split(join(FOLDER, 'one'), () => 'model.onnx_data'));
    await check(await split(join(FOLDER, 'two'), (i) => `model.onnx_data_${i % 2}`));
  });

  test('in a download cache of symbolic links', async () => {
    const blobs = join(FOLDER, 'cache', 'blobs');
    await split(join(FOLDER, 'plain'), () => 'model.onnx_data');
    const snapshot = join(FOLDER, 'cache', 'snapshots', 'main');
    mkdirSync(blobs, { recursive: true });
    mkdirSync(snapshot, { recursive: true });
    for (const [i, name] of ['model.onnx', 'model.onnx_data'].entries()) {
      // Two folders, so that the data is not beside the model even after links are followed.
      mkdirSync(join(blobs, String(i)), { recursive: true });
      writeFileSync(join(blobs, String(i), `hash${i}`), readFileSync(join(FOLDER, 'plain', name)));
      symlinkSync(join('..', '..', 'blobs', String(i), `hash${i}`), join(snapshot, name));
    }
    await check(join(snapshot, 'model.onnx'));
  });

  test('missing, too short, and without a folder', async () => {
    const path = await split(join(FOLDER, 'broken'), () => 'model.onnx_data');
    const bytes = readFileSync(path);
    await expect(extractHead({ visionModel: bytes })).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringContaining('given as bytes'),
    });
    expect(() => towerGraph(readTower(bytes))).toThrow(/given as bytes/);
    writeFileSync(join(FOLDER, 'broken', 'model.onnx_data'), 'short');
    await expect(extractHead({ visionModel: path })).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringContaining('got 5 bytes'),
    });
    rmSync(join(FOLDER, 'broken', 'model.onnx_data'));
    await expect(extractHead({ visionModel: path })).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringContaining('ENOENT'),
    });
  });
});
