import { mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';
import { afterAll, describe, expect, test } from 'vitest';
import { DesapError } from '../../src/errors.js';
import { readModel } from '../../src/onnx/format/model.js';
import { writeValue } from '../../src/onnx/format/write.js';
import { readText } from '../../src/onnx/text.js';
import { readTower } from '../../src/onnx/tower.js';
import { uniform } from '../support.js';
import { Editable } from './editable.js';

const PATH = 'models/tiny-clip/onnx/vision_model.onnx';
const BYTES = new Uint8Array(readFileSync(PATH));
const FOLDER = mkdtempSync(join(tmpdir(), 'desap-onnx-'));
afterAll(() => rmSync(FOLDER, { recursive: true }));

const file = (name: string, content: Uint8Array | string) => {
  const path = join(FOLDER, name);
  writeFileSync(path, content);
  return path;
};

describe('reading', () => {
  test('from a path, weights stay in the file; from bytes, they are there', () => {
    const [fromFile, fromBytes] = [readModel(PATH), readModel(BYTES)];
    expect(fromFile.nodes.map((node) => node.outputs)).toEqual(fromBytes.nodes.map((node) => node.outputs));
    expect(fromFile).toMatchObject({ name: PATH, opset: 17 });
    expect(fromFile.inputs[0]).toMatchObject({ name: 'pixel_values', type: 1, dims: ['batch_size', 3, 96, 96] });
    for (const [name, { data, dims }] of fromFile.initializers) {
      const inMemory = fromBytes.initializers.get(name)!.data as { bytes: Uint8Array };
      if ('bytes' in data) {
        expect(Buffer.compare(data.bytes, inMemory.bytes)).toBe(0);
        expect(data.bytes.length).toBeLessThanOrEqual(1024);
      } else {
        expect(data.length).toBe(4 * dims.reduce((a, b) => a * b, 1));
        expect(Buffer.compare(BYTES.subarray(data.offset, data.offset + data.length!), inMemory.bytes)).toBe(0);
      }
    }
    expect(readModel(fromFile)).toBe(fromFile);
  });

  test('a gigabyte of weights is skipped', async () => {
    const graph = new Editable();
    graph.inputs = [{ name: 'x', type: 1, dims: [1, 16384] }];
    graph.add('MatMul', ['x', 'w'], {}, { outputs: ['y'] });
    graph.outputs = ['y'];
    const size = 2 ** 30;
    // A tensor message that claims the bytes, and a hole in the file where they would be.
    const tensor = new BinaryWriter().tag(1, WireType.Varint).int64(16384).tag(1, WireType.Varint).int64(16384);
    tensor.tag(2, WireType.Varint).int64(1).tag(8, WireType.LengthDelimited).string('w');
    tensor.tag(9, WireType.LengthDelimited).uint32(size);
    const head = tensor.finish();
    const initializer = new BinaryWriter()
      .tag(5, WireType.LengthDelimited)
      .uint32(head.length + size)
      .raw(head)
      .finish();
    const merged = new BinaryWriter()
      .tag(7, WireType.LengthDelimited)
      .uint32(initializer.length + size)
      .raw(initializer)
      .finish();
    const path = file('large.onnx', new Uint8Array([...graph.bytes(), ...merged]));
    const start = readFileSync(path).length;
    truncateSync(path, start + size);
    const before = process.memoryUsage().rss;
    const begin = performance.now();
    const model = readModel(path);
    expect(performance.now() - begin).toBeLessThan(500);
    expect(process.memoryUsage().rss - before).toBeLessThan(64 * 2 ** 20);
    expect(model.initializers.get('w')!.data).toEqual({ file: null, offset: start, length: size });
    rmSync(path);
  });

  test('tensors in the field of their type are the same as raw data, to the last bit', () => {
    const { initializers } = readModel('test/fixtures/typed-fields/tensors.onnx');
    const bytes = (name: string) => Buffer.from((initializers.get(name)!.data as { bytes: Uint8Array }).bytes);
    const names = [...initializers.keys()].filter((name) => initializers.has(`${name}_raw`));
    expect(names).toHaveLength(13);
    for (const name of names) expect([name, bytes(name)]).toEqual([name, bytes(`${name}_raw`)]);
  });

  test('graph messages that occur again are merged', () => {
    const output = new BinaryWriter()
      .tag(1, WireType.LengthDelimited)
      .string('/vision_model/encoder/layers.0/Add_1_output_0')
      .finish();
    const graph = new BinaryWriter().tag(12, WireType.LengthDelimited).bytes(output).finish();
    const more = new BinaryWriter().tag(7, WireType.LengthDelimited).bytes(graph).finish();
    const model = readModel(Buffer.concat([BYTES, more]));
    expect(model.outputs.map((value) => value.name)).toEqual([
      'image_embeds',
      '/vision_model/encoder/layers.0/Add_1_output_0',
    ]);
    expect(readTower(model).readOut).not.toBeNull();
  });
});

describe('files that are something else', () => {
  const random = uniform(1);
  const cases: [string, () => string | Uint8Array, RegExp][] = [
    ['empty', () => file('empty.onnx', ''), /empty\.onnx: not an ONNX model: got an empty file/],
    ['no bytes', () => new Uint8Array(0), /model: not an ONNX model: got an empty file/],
    [
      'text',
      () => file('text.onnx', 'version https://git-lfs.github.com/spec/v1\noid sha256:00\n'),
      /text\.onnx: not an ONNX model/,
    ],
    [
      'random',
      () =>
        file(
          'random.onnx',
          Uint8Array.from({ length: 5000 }, () => 256 * random()),
        ),
      /random\.onnx: not an ONNX model/,
    ],
    ['zeros', () => new Uint8Array(4096), /not an ONNX model: at byte 0/],
    ['safetensors', () => 'models/tiny-clip/model.safetensors', /model\.safetensors: not an ONNX model/],
    ['missing', () => join(FOLDER, 'none.onnx'), /none\.onnx: cannot be read: ENOENT/],
    ['a folder', () => FOLDER, /got something that is not a file/],
  ];
  test.each(cases)('%s', (_, source, message) => {
    for (const read of [readModel, readTower, readText]) {
      const error = thrown(() => read(source()));
      expect(error).toBeInstanceOf(DesapError);
      expect(error).toMatchObject({ code: 'ERR_FILE', message: expect.stringMatching(message) });
    }
  });

  test('no path and no bytes', () => {
    for (const source of ['', null, undefined, 3, {}])
      for (const read of [readModel, readTower])
        expect(thrown(() => read(source as never))).toMatchObject({
          code: 'ERR_VALUE',
          message: expect.stringMatching(/^source: got .*, wanted a path or the bytes of an ONNX model/),
        });
  });

  test('truncated anywhere', () => {
    for (let i = 0; i < 400; i++) {
      const length = i < 200 ? i : Math.floor(random() * BYTES.length);
      expect(thrown(() => readModel(BYTES.subarray(0, length)))).toMatchObject({ code: 'ERR_FILE' });
    }
    const path = file('truncated.onnx', BYTES.subarray(0, 100_000));
    expect(thrown(() => readModel(path))).toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(
        /truncated\.onnx: not an ONNX model: at byte \d+: field 7 claims \d+ bytes, \d+ are left/,
      ),
    });
  });

  test('bytes changed anywhere: a model or an error of ours, and an end', () => {
    const path = file('changed.onnx', BYTES);
    const handle = openSync(path, 'r+');
    for (let i = 0; i < 120; i++) {
      const at = i < 60 ? i : Math.floor(random() * BYTES.length);
      const changed = BYTES.slice();
      changed[at] = 256 * random();
      writeSync(handle, changed, at, 1, at);
      for (const source of [changed, path]) {
        const error = thrown(() => readTower(source));
        if (error !== null) expect(error).toBeInstanceOf(DesapError);
      }
      writeSync(handle, BYTES, at, 1, at);
    }
  });

  test('a tensor whose bytes do not fit its shape', async () => {
    const graph = await Editable.from(BYTES);
    const [name, tensor] = [...graph.tensors].find(([, { dims }]) => dims.length === 2)!;
    graph.tensors.set(name, { ...tensor, dims: [1, ...tensor.dims.slice(1)] });
    expect(thrown(() => readModel(graph.bytes()))).toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(/bytes of data, wanted/),
    });
  });

  test('a tensor of no type', async () => {
    for (const type of [-1, 2 ** 31, 2 ** 52]) {
      const graph = await Editable.from(BYTES);
      const [name, tensor] = [...graph.tensors][0];
      graph.tensors.set(name, { ...tensor, type });
      expect(thrown(() => readModel(graph.bytes()))).toMatchObject({
        code: 'ERR_FILE',
        message: expect.stringContaining(`(type ${type} [`),
      });
    }
  });

  test('an integer that was rounded is not written', () => {
    // What a file says of its inputs' and casts' types, where they go into the graphs that are made of it.
    expect(thrown(() => writeValue('x', 2 ** 63))).toMatchObject({
      code: 'ERR_FILE',
      message: 'an integer of the model: got about 9223372036854776000, wanted one of at most 53 bits',
    });
  });

  test('external data outside of the folder', async () => {
    for (const location of ['/etc/passwd', '../weights', 'a/../../b', 'C:\\weights', '']) {
      const graph = await Editable.from(BYTES);
      const [name, tensor] = [...graph.tensors][0];
      graph.tensors.set(name, { ...tensor, data: { location, offset: 0, length: 4 } });
      expect(thrown(() => readModel(graph.bytes()))).toMatchObject({
        code: 'ERR_FILE',
        message: expect.stringContaining("inside the model's folder"),
      });
    }
  });

  test('graphs made to be slow', () => {
    const repeated: [string, (graph: Editable, value: string) => string, number][] = [
      ['Concat', (graph, value) => graph.add('Concat', [value, value], { axis: { i: 0 } }), 80],
      ['Add', (graph, value) => graph.add('Add', [value, value]), 80],
      ['Mul', (graph, value) => graph.add('Mul', [value, value]), 80],
      ['Where', (graph, value) => graph.add('Where', [value, value, value]), 80],
      ['Identity', (graph, value) => graph.add('Identity', [value]), 10_000],
      ['Sigmoid', (graph, value) => graph.add('Sigmoid', [value]), 10_000],
      ['Transpose', (graph, value) => graph.add('Transpose', [value]), 10_000],
    ];
    const begin = performance.now();
    for (const [name, step, count] of repeated)
      for (const start of ['image', 'constant']) {
        const graph = new Editable();
        graph.inputs = [{ name: 'image', type: 1, dims: [1, 3, 8, 8] }];
        graph.tensors.set('constant', { name: 'constant', type: 7, dims: [1], data: { bytes: new Uint8Array(8) } });
        let value = start;
        for (let i = 0; i < count; i++) value = step(graph, value);
        const product = graph.add('MatMul', [graph.add('Softmax', [value]), value]);
        graph.outputs = [product, graph.add('MatMul', ['image', value])];
        expect(
          thrown(() => readTower(graph.bytes())),
          `${name} of ${start}`,
        ).toMatchObject({ code: 'ERR_GRAPH' });
      }
    expect(performance.now() - begin).toBeLessThan(10_000);
  });

  test('nodes in a circle, and two that write one value', async () => {
    const graph = await Editable.from(BYTES);
    const softmax = graph.nodes.find(({ op }) => op === 'Softmax')!;
    graph.nodes[0].inputs[0] = softmax.outputs[0];
    expect(thrown(() => readTower(graph.bytes()))).toMatchObject({
      code: 'ERR_GRAPH',
      message: expect.stringContaining('circle'),
    });
    const twice = await Editable.from(BYTES);
    twice.nodes.push({ ...twice.nodes[0] });
    expect(thrown(() => readTower(twice.bytes()))).toMatchObject({
      code: 'ERR_GRAPH',
      message: expect.stringContaining('two nodes'),
    });
  });
});

function thrown(run: () => unknown): unknown {
  try {
    run();
  } catch (error) {
    return error;
  }
  return null;
}
