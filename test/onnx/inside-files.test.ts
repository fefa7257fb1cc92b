/**
 * External data of tensors inside of nodes: of subgraphs, of attributes and of functions. A graph that is cut keeps such nodes as they are,
 * and onnxruntime must find in it what it finds in the whole file, and no other file.
 */
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { cut, openGraph } from '../../src/onnx/edit.js';
import { readModel } from '../../src/onnx/format/model.js';

const ROOT = realpathSync(mkdtempSync(join(tmpdir(), 'desap-inside-')));
const FOLDER = join(ROOT, 'model');
const FLOAT = 1;
const ROWS = 300; // more than a graph holds in itself
const values = (at: number) => new Float32Array(ROWS).fill(at);
const bytesOf = ({ buffer }: Float32Array) => new Uint8Array(buffer as ArrayBuffer);

beforeAll(() => {
  mkdirSync(join(FOLDER, 'deep'), { recursive: true });
  writeFileSync(join(FOLDER, 'w.bin'), bytesOf(values(1)));
  writeFileSync(join(FOLDER, 'deep', 'other.bin'), bytesOf(values(2)));
  writeFileSync(join(ROOT, 'secret.bin'), bytesOf(values(3)));
  symlinkSync(join('..', 'secret.bin'), join(FOLDER, 'link.bin'));
});
afterAll(() => rmSync(ROOT, { recursive: true }));

type Part = string | number | Uint8Array | Message;
interface Message extends Array<readonly [field: number, part: Part]> {}

/** A protobuf message. */
function message(parts: Message): Uint8Array {
  const w = new BinaryWriter();
  for (const [field, part] of parts)
    if (typeof part === 'number') w.tag(field, WireType.Varint).int64(part);
    else if (typeof part === 'string') w.tag(field, WireType.LengthDelimited).string(part);
    else w.tag(field, WireType.LengthDelimited).bytes(part instanceof Uint8Array ? part : message(part));
  return w.finish();
}

const value = (name: string): Message => [
  [1, name],
  [
    2,
    [
      [
        1,
        [
          [1, FLOAT],
          [2, [[1, [[1, ROWS]]]]],
        ],
      ],
    ],
  ],
];
const entry = (key: string, text: string): Message => [
  [1, key],
  [2, text],
];
const tensor = (name: string, location: string): Message => [
  [1, ROWS],
  [2, FLOAT],
  [8, name],
  [13, entry('location', location)],
  [13, entry('offset', '0')],
  [13, entry('length', String(4 * ROWS))],
  [14, 1],
];
const node = (op: string, inputs: string[], output: string, more: Message = []): Message => [
  ...inputs.map((input) => [1, input] as const),
  [2, output],
  [4, op],
  ...more,
];
const body = (name: string, location: string): Message => [
  [1, node('Identity', [`${name}_w`], `${name}_y`)],
  [2, name],
  [5, tensor(`${name}_w`, location)],
  [12, value(`${name}_y`)],
];
const attribute = (name: string, type: number, field: number, part: Message): readonly [number, Message] => [
  5,
  [
    [1, name],
    [field, part],
    [20, type],
  ],
];
const constant = (location: string, output: string) =>
  node('Constant', [], output, [attribute('value', 4, 5, tensor('inside', location))]);

/** Nodes that write z, with a tensor inside; and functions. */
const FORMS: Record<string, (location: string) => { node: Message; functions?: Message }> = {
  'a subgraph': (location) => ({
    node: node('If', ['yes'], 'z', [
      attribute('then_branch', 5, 6, body('then', location)),
      attribute('else_branch', 5, 6, body('else', location)),
    ]),
  }),
  'an attribute': (location) => ({ node: constant(location, 'z') }),
  'a function': (location) => ({
    node: node('Held', [], 'z', [[7, 'here']]),
    functions: [
      [1, 'Held'],
      [5, 'y'],
      [7, constant(location, 'y')],
      [9, [[2, 17]]],
      [10, 'here'],
    ],
  }),
};

/** y = x + z, and y2 = y + a weight of the graph itself, which lies in `weight`. */
function model(form: string, location: string, weight = 'w.bin'): Uint8Array {
  const { node: inner, functions } = FORMS[form](location);
  return message([
    [1, 8],
    [8, [[2, 17]]],
    [8, entry('here', '')],
    [
      7,
      [
        [1, inner],
        [1, node('Add', ['x', 'z'], 'y')],
        [1, node('Add', ['y', 'own'], 'y2')],
        [2, 'graph'],
        [5, tensor('own', weight)],
        [
          5,
          [
            [1, 1],
            [2, 9],
            [8, 'yes'],
            [9, Uint8Array.of(1)],
          ],
        ],
        [11, value('x')],
        [12, value('y2')],
        [12, value('y')],
      ],
    ],
    ...(functions ? [[25, functions] as const] : []),
  ]);
}

function saved(form: string, location: string, weight?: string): string {
  const path = join(FOLDER, 'model.onnx');
  writeFileSync(path, model(form, location, weight));
  return path;
}

async function firstOf(session: ort.InferenceSession, output: string): Promise<number> {
  const { [output]: result } = await session.run({ x: new ort.Tensor('float32', values(10), [ROWS]) }, [output]);
  await session.release();
  return (result.data as Float32Array)[0];
}

const cutAt = (source: string | Uint8Array, output = 'y') => cut(readModel(source), { outputs: [output] });

describe.each(Object.keys(FORMS))('external data in %s', (form) => {
  test('is what onnxruntime finds in the whole file', async () => {
    const path = saved(form, 'w.bin');
    expect(await firstOf(await ort.InferenceSession.create(path), 'y')).toBe(11);
    // Alone, and beside weights of the graph itself.
    expect(await firstOf(await openGraph(ort, cutAt(path)), 'y')).toBe(11);
    expect(await firstOf(await openGraph(ort, cutAt(path, 'y2')), 'y2')).toBe(12);
  });

  test('is not looked for in the folder that the process runs in', () => {
    const path = saved(form, 'package.json');
    expect(() => cutAt(path)).toThrow(
      expect.objectContaining({ code: 'ERR_FILE', message: expect.stringContaining(`'package.json' cannot be read`) }),
    );
  });

  test.each(['../secret.bin', relative(process.cwd(), join(ROOT, 'secret.bin')), join(ROOT, 'secret.bin')])(
    'is not read outside of the folder of the model: %#',
    (location) => {
      expect(() => cutAt(saved(form, location))).toThrow(
        expect.objectContaining({ code: 'ERR_FILE', message: expect.stringContaining("inside the model's folder") }),
      );
    },
  );

  test('is not read through a link that leads out', () => {
    expect(() => cutAt(saved(form, 'link.bin'))).toThrow(
      expect.objectContaining({ code: 'ERR_FILE', message: expect.stringContaining('a link to') }),
    );
  });

  test('is refused in a model given as bytes', () => {
    expect(() => cutAt(model(form, 'w.bin'))).toThrow(
      expect.objectContaining({ code: 'ERR_FILE', message: expect.stringContaining('given as bytes') }),
    );
  });

  test('is found below the folder of the model', async () => {
    const path = saved(form, 'deep/other.bin', 'deep/other.bin');
    expect(await firstOf(await openGraph(ort, cutAt(path, 'y2')), 'y2')).toBe(14);
  });

  test('is refused where a link gives it another name, which onnxruntime would not find', () => {
    const cache = join(ROOT, 'cache');
    mkdirSync(join(cache, 'blobs'), { recursive: true });
    mkdirSync(join(cache, 'snapshot'), { recursive: true });
    writeFileSync(join(cache, 'blobs', 'hash1'), model(form, 'w.bin'));
    writeFileSync(join(cache, 'blobs', 'hash2'), bytesOf(values(1)));
    symlinkSync(join('..', 'blobs', 'hash1'), join(cache, 'snapshot', 'model.onnx'));
    symlinkSync(join('..', 'blobs', 'hash2'), join(cache, 'snapshot', 'w.bin'));
    expect(() => cutAt(join(cache, 'snapshot', 'model.onnx'))).toThrow(
      expect.objectContaining({ code: 'ERR_GRAPH', message: expect.stringContaining("'w.bin', which is ") }),
    );
    rmSync(cache, { recursive: true });
  });
});
