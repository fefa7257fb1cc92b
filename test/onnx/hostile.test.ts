/** Graphs made to take long or to break the reading of them: each is refused, or read, in a time that its size explains. */
import { describe, expect, test } from 'vitest';
import { DesapError } from '../../src/errors.js';
import { limits } from '../../src/limits.js';
import type { Attribute } from '../../src/onnx/format/messages.js';
import { readModel } from '../../src/onnx/format/model.js';
import { readTensor } from '../../src/onnx/format/stored-tensor.js';
import { memorySource } from '../../src/onnx/format/wire.js';
import { readLastBlock } from '../../src/onnx/last-block.js';
import { readSiglipText } from '../../src/onnx/siglip-text.js';
import { readText } from '../../src/onnx/text.js';
import { readTower } from '../../src/onnx/tower.js';
import { Editable } from './editable.js';

/** Milliseconds that reading one of these may take on a busy machine; what doubled at each level took days. */
const LONGEST = 20_000;
const FLOAT = 1;
const INT64 = 7;
/** Levels at which a walk of every path would not end. */
const LEVELS = 60;
const MANY = 200_000;

const READERS = { readTower, readText, readSiglipText, readLastBlock };

/** An attention over an image's rows, with a residual sum: enough for every search to begin. */
function attended(graph: Editable, input: string): { sum: string; attention: string } {
  graph.tensors.set('scale', tensor('scale', [8]));
  graph.tensors.set('bias', tensor('bias', [8]));
  for (const name of ['wq', 'wk', 'wv', 'wo', 'w1', 'w2']) graph.tensors.set(name, tensor(name, [8, 8]));
  const norm = graph.add('LayerNormalization', [input, 'scale', 'bias']);
  const [q, k, v] = ['wq', 'wk', 'wv'].map((weight) => graph.add('MatMul', [norm, weight]));
  const keys = graph.add('Transpose', [k], { perm: { ints: [0, 2, 1] } });
  const weights = graph.add('Softmax', [graph.add('MatMul', [q, keys])]);
  const attention = graph.add('MatMul', [graph.add('MatMul', [weights, v]), 'wo']);
  return { sum: graph.add('Add', [input, attention]), attention };
}

function tensor(name: string, dims: readonly number[]) {
  const bytes = new Uint8Array(4 * dims.reduce((product, extent) => product * extent, 1));
  return { name, type: FLOAT, dims, data: { bytes } };
}

function image(): { graph: Editable; at: string } {
  const graph = new Editable();
  graph.inputs = [{ name: 'x', type: FLOAT, dims: [1, 4, 8] }];
  return { graph, at: 'x' };
}

/** Twice the paths at every level: each of two values is made of both below. */
function doubled(graph: Editable, from: string, op: string, attributes: Record<string, Attribute> = {}): string {
  let [a, b] = [from, graph.add('Neg', [from])];
  for (let level = 0; level < LEVELS; level++)
    [a, b] = [graph.add(op, [a, b], attributes), graph.add(op, [b, a], attributes)];
  return a;
}

function chain(graph: Editable, from: string, op: string, count: number, further: readonly string[] = []): string {
  let at = from;
  for (let i = 0; i < count; i++) at = graph.add(op, [at, ...further]);
  return at;
}

const finished = ({ graph }: { graph: Editable }, output: string) => {
  graph.outputs = [output];
  return graph.bytes();
};

const GRAPHS: Readonly<Record<string, () => Uint8Array>> = {
  ...Object.fromEntries(
    ['Identity', 'Reshape', 'Cast', 'Concat', 'Mul', 'Add', 'Where', 'Slice', 'Gather', 'Max'].flatMap((op) => [
      [
        `${op} doubled in front of the first block`,
        () => {
          const { graph, at } = image();
          return finished({ graph }, attended(graph, doubled(graph, at, op)).sum);
        },
      ],
      [
        `${op} doubled behind the last attention`,
        () => {
          const { graph, at } = image();
          return finished({ graph }, doubled(graph, attended(graph, at).attention, op));
        },
      ],
      [
        `${op} doubled in front of a softmax`,
        () => {
          const { graph, at } = image();
          const { sum } = attended(graph, at);
          const scores = doubled(graph, graph.add('MatMul', [sum, sum]), op);
          return finished({ graph }, graph.add('MatMul', [graph.add('Softmax', [scores]), sum]));
        },
      ],
    ]),
  ),
  'scales that are products of each other': () => {
    const { graph, at } = image();
    const [quantised, scale] = [graph.add('DynamicQuantizeLinear', [at]), 'scale_of_it'];
    graph.nodes.at(-1)!.outputs.push(scale);
    let factor = scale;
    for (let level = 0; level < LEVELS; level++) factor = graph.add('Mul', [factor, factor]);
    return finished({ graph }, attended(graph, graph.add('Mul', [graph.add('Cast', [quantised]), factor])).sum);
  },
  'slices of slices, many times': () => {
    const { graph, at } = image();
    return finished({ graph }, attended(graph, chain(graph, at, 'Slice', 20_000)).sum);
  },
  'a long chain of operators that pass': () => {
    const { graph, at } = image();
    const end = chain(graph, chain(graph, at, 'Identity', 20_000), 'Reshape', 20_000);
    return finished({ graph }, attended(graph, end).sum);
  },
  'a long chain of sums behind a long chain that passes': () => {
    const { graph, at } = image();
    graph.tensors.set('w', tensor('w', [8]));
    return finished(
      { graph },
      attended(graph, chain(graph, chain(graph, at, 'Identity', 20_000), 'Add', 20_000, ['w'])).sum,
    );
  },
  'a node of very many inputs': () => {
    const { graph, at } = image();
    return finished(
      { graph },
      graph.add(
        'Sum',
        Array.from({ length: MANY }, () => attendedOnce(graph, at)),
      ),
    );
  },
};

/** The same value for the same graph. */
const known = new WeakMap<Editable, string>();
function attendedOnce(graph: Editable, at: string): string {
  const value = known.get(graph) ?? attended(graph, at).sum;
  known.set(graph, value);
  return value;
}

describe.each(Object.entries(GRAPHS))('%s', (_, make) => {
  const bytes = make();
  test.each(Object.entries(READERS))('%s', (_name, read) => {
    const start = performance.now();
    try {
      read(bytes);
    } catch (error) {
      expect(error).toBeInstanceOf(DesapError);
      expect((error as DesapError).code).toMatch(/ERR_(FILE|GRAPH)/);
    }
    expect(performance.now() - start).toBeLessThan(LONGEST);
  });
});

describe('messages with more than a call takes arguments', () => {
  const list = Array.from({ length: MANY }, () => 1);

  test('extents of a tensor', () => {
    const { graph, at } = image();
    graph.tensors.set('w', { name: 'w', type: FLOAT, dims: list, data: { bytes: new Uint8Array(4) } });
    expect(readModel(finished({ graph }, graph.add('Add', [at, 'w']))).initializers.get('w')?.dims).toHaveLength(MANY);
  });

  test('integers of an attribute', () => {
    const { graph, at } = image();
    const value = graph.add('Identity', [at], { v: { ints: list } });
    expect(readModel(finished({ graph }, value)).nodes[0].attributes.get('v')?.ints).toHaveLength(MANY);
  });
});

test('fractions among the numbers of an integer tensor are refused', () => {
  const bytes = new Uint8Array([0x08, 1, 0x10, INT64, 0x42, 1, 0x77, 0x25, 0, 0, 0xc0, 0x3f]);
  expect(() => readTensor(memorySource('w', bytes))).toThrow(
    expect.objectContaining({ code: 'ERR_FILE', message: expect.stringContaining('no integers') }),
  );
});

describe('the limit graphNodes', () => {
  test.each(['nodes', 'initialisers', 'inputs', 'outputs'] as const)('of %s', (what) => {
    const { graph, at } = image();
    const sum = graph.add('Neg', [at]);
    graph.outputs = [sum];
    for (let i = 0; i < 30; i++) {
      if (what === 'nodes') graph.add('Neg', [at]);
      if (what === 'initialisers') graph.tensors.set(`t${i}`, tensor(`t${i}`, [1]));
      if (what === 'inputs') graph.inputs.push({ name: `i${i}`, type: INT64, dims: [1] });
      if (what === 'outputs') graph.outputs.push(sum);
    }
    const bytes = graph.bytes();
    const before = limits();
    limits({ graphNodes: 20 });
    try {
      expect(() => readModel(bytes)).toThrow(`got more than 20 ${what}, wanted at most 20`);
    } finally {
      limits(before);
    }
    expect(readModel(bytes).nodes.length).toBeGreaterThan(0);
  });

  test('of fields beside the graph', () => {
    const { graph, at } = image();
    const version = Buffer.from([0x08, 8]); // the version of the format, once more
    const bytes = finished({ graph }, graph.add('Neg', [at]));
    expect(readModel(Buffer.concat([bytes, ...Array(100).fill(version)])).nodes).toHaveLength(1);
    const many = Buffer.concat([bytes, Buffer.alloc(2 * 10 ** 6, version)]);
    expect(() => readModel(many)).toThrow('got more than 50000 fields beside the graph, wanted at most 50000');
  });
});
