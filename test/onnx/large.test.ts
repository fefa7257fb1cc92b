import {
  closeSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { cut, type EditedGraph, openGraph } from '../../src/onnx/edit.js';
import { readModel } from '../../src/onnx/format/model.js';
import { DataType } from '../../src/onnx/format/proto.js';
import { HIDDEN_STATES, IMAGE_FEATURES, PATCHES, projectorGraph, towerGraph } from '../../src/onnx/split.js';
import { readTower } from '../../src/onnx/tower.js';
import { LlavaVision } from '../../src/vision/index.js';
import { normal } from '../support.js';
import { Editable } from './editable.js';

/** Bytes that JavaScript reads through file handles. */
const read = vi.hoisted(() => ({ bytes: 0 }));
vi.mock('node:fs', async (original) => {
  const fs = await original<typeof import('node:fs')>();
  const readSync = (...given: [number, Uint8Array, number, number, number]) => {
    const count = fs.readSync(...given);
    read.bytes += count;
    return count;
  };
  return { ...fs, default: fs, readSync };
});

const LLAVA = 'models/tiny-llava/onnx/vision_encoder.onnx';
const PIXELS = new ort.Tensor('float32', normal(3, 3 * 96 * 96), [1, 3, 96, 96]);
const GIB = 2 ** 30;
const FOLDER = mkdtempSync(join(tmpdir(), 'desap-large-'));
afterAll(() => rmSync(FOLDER, { recursive: true }));
beforeEach(() => {
  read.bytes = 0;
});

/** Opens both parts of a LLaVA file and runs them on one image. */
async function run(path: string): Promise<Float32Array[]> {
  const tower = readTower(path);
  const [first, second] = [await openGraph(ort, towerGraph(tower)), await openGraph(ort, projectorGraph(tower))];
  const hidden = (await first.run({ [tower.pixels.name]: PIXELS }))[HIDDEN_STATES].data as Float32Array;
  const patches = new ort.Tensor('float32', hidden.slice(-144 * 128), [1, 144, 128]);
  const features = (await second.run({ [PATCHES]: patches }))[IMAGE_FEATURES].data as Float32Array;
  await Promise.all([first.release(), second.release()]);
  return [hidden, features];
}

// Windows would fill the holes.
describe.skipIf(process.platform === 'win32')('files over 2 GB', () => {
  let wanted: Float32Array[];
  beforeAll(async () => {
    wanted = await run(LLAVA);
  });

  /** What it takes to open and run a file: it is all holes but for the weights of the small model. */
  async function check(path: string, size: number, file = path): Promise<void> {
    expect(statSync(file).size).toBeGreaterThan(size);
    const [begin, before] = [performance.now(), process.memoryUsage().rss];
    expect(await run(path)).toEqual(wanted);
    expect(read.bytes).toBeLessThan(GIB / 1024);
    expect(performance.now() - begin).toBeLessThan(5_000);
    expect(process.memoryUsage().rss - before).toBeLessThan(GIB / 4);
  }

  test('weights beyond 2 and 4 GB of external data, and one of 3 GB that nothing reads', async () => {
    const graph = await Editable.from(readFileSync(LLAVA));
    const location = 'vision_encoder.onnx_data';
    const folder = join(FOLDER, 'external');
    mkdirSync(folder);
    const file = openSync(join(folder, location), 'w');
    let offset = 3 * GIB + 1;
    for (const [name, tensor] of graph.tensors) {
      if (!('bytes' in tensor.data) || tensor.data.bytes.length <= 1024) continue;
      const { length } = tensor.data.bytes;
      writeSync(file, tensor.data.bytes, 0, length, offset);
      graph.tensors.set(name, { ...tensor, data: { location, offset, length } });
      offset += length + GIB / 8;
    }
    closeSync(file);
    const unread = { location, offset: 0, length: 3 * GIB };
    graph.tensors.set('unread', { name: 'unread', type: DataType.uint8, dims: [3, GIB], data: unread });
    const path = join(folder, 'vision_encoder.onnx');
    writeFileSync(path, graph.bytes());
    await check(path, 5 * GIB, join(folder, location));
  });

  test('weights beyond 2 GB of the model file itself', async () => {
    // onnxruntime does not open such a file as a whole; parts of it refer to its weights as external data.
    const size = 2.25 * GIB;
    const unread = new BinaryWriter().tag(1, WireType.Varint).int64(size).tag(2, WireType.Varint).int64(DataType.uint8);
    const tensor = unread
      .tag(8, WireType.LengthDelimited)
      .string('unread')
      .tag(9, WireType.LengthDelimited)
      .uint32(size)
      .finish();
    const initializer = new BinaryWriter()
      .tag(5, WireType.LengthDelimited)
      .uint32(tensor.length + size)
      .raw(tensor)
      .finish();
    const head = new BinaryWriter()
      .tag(7, WireType.LengthDelimited)
      .uint32(initializer.length + size)
      .raw(initializer)
      .finish();
    const path = join(FOLDER, 'vision_encoder.onnx');
    const file = openSync(path, 'w');
    writeSync(file, head);
    const model = readFileSync(LLAVA);
    writeSync(file, model, 0, model.length, head.length + size);
    closeSync(file);
    await check(path, size);
  });
});

describe("the user's files", () => {
  const listed = (folder: string) =>
    readdirSync(folder, { recursive: true, encoding: 'utf8' })
      .sort()
      .map((name) => {
        const { size, mtimeMs, ctimeMs, ino } = statSync(join(folder, name));
        return { name, size, mtimeMs, ctimeMs, ino };
      });

  /** Weights that stay in a file: file, offset and length of each. */
  const ranges = ({ bytes, folder }: Pick<EditedGraph, 'bytes' | 'folder'>) =>
    [...readModel(bytes).initializers.values()].flatMap(({ data }) =>
      'offset' in data ? [[folder, data.file, data.offset, data.length].join()] : [],
    );

  /** The weights of every session that is opened. */
  function loaded(): { ort: typeof ort; ranges: string[] } {
    const all: string[] = [];
    const create = (bytes: Uint8Array, options: ort.InferenceSession.SessionOptions) => {
      const { session } = options.extra as { session: Record<string, string> };
      all.push(...ranges({ bytes, folder: session.model_external_initializers_file_folder_path }));
      return ort.InferenceSession.create(bytes, options);
    };
    return { ort: { ...ort, InferenceSession: { create } } as unknown as typeof ort, ranges: all };
  }

  test('are not changed, and no file comes to be', async () => {
    const folder = join(FOLDER, 'models');
    for (const name of ['tiny-clip', 'tiny-llava'])
      cpSync(join('models', name), join(folder, name), { recursive: true });
    const before = listed(folder);
    const encoder = join(folder, 'tiny-llava', 'onnx', 'vision_encoder.onnx');
    await run(encoder);
    const vision = await LlavaVision.open(encoder, { clip: join(folder, 'tiny-clip') });
    await vision.prune(PIXELS, 'what color is the star ?', { keep: 8 });
    await vision.dispose();
    expect(listed(folder)).toEqual(before);
  });

  test('give their structure without their weights', async () => {
    await run(LLAVA);
    expect(read.bytes).toBeLessThan(statSync(LLAVA).size / 10);
  });

  test('no weight of a layer is loaded twice, with all checks', async () => {
    const counting = loaded();
    const vision = await LlavaVision.open(LLAVA, { clip: 'models/tiny-clip', ort: counting.ort });
    await vision.dispose();
    expect(counting.ranges.length).toBeGreaterThan(50);
    const { graph, blocks } = readTower('models/tiny-clip/onnx/vision_model.onnx');
    // The checks of the rows take the embedding and the projector once more.
    const embedding = cut(graph.model, { outputs: [blocks[0].input] });
    const small = new Set([...ranges(embedding), ...ranges(projectorGraph(readTower(LLAVA)))]);
    const twice = counting.ranges.filter((range, i) => counting.ranges.indexOf(range) !== i);
    expect(twice.filter((range) => !small.has(range))).toEqual([]);
  });
});
