/** Qwen towers in the forms that optimisers, quantisers and other exporters give them. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openGraph } from '../../src/onnx/edit.js';
import { FEATURES, readQwenTower } from '../../src/onnx/qwen-graph.js';
import { FORM_NAMES, Graph, inForm } from './attention-forms.js';

const ROOT = 'test/fixtures/families';
const UNIT = 4;
const GRIDS = [
  [1, 8, 12],
  [2, 6, 4],
];

type Outputs = Record<string, Float32Array>;

function feedsOf(grid: readonly number[], { inputNames }: ort.InferenceSession) {
  const patches = grid.reduce((product, extent) => product * extent, 1);
  const data = Float32Array.from({ length: patches * 96 }, (_, i) => Math.sin(i * i));
  const [pixels, grids] = [...inputNames].sort((a, b) => Number(a.includes('grid')) - Number(b.includes('grid')));
  return {
    [pixels]: new ort.Tensor('float32', data, [patches, 96]),
    [grids]: new ort.Tensor('int64', BigInt64Array.from(grid, BigInt), [1, 3]),
  };
}

/** What a session says of an image, and of frames. */
async function run(session: ort.InferenceSession): Promise<Outputs[]> {
  const all: Outputs[] = [];
  for (const grid of GRIDS) {
    const outputs = await session.run(feedsOf(grid, session));
    all.push(Object.fromEntries(Object.entries(outputs).map(([name, { data }]) => [name, data as Float32Array])));
  }
  await session.release();
  return all;
}

const quiet = { logSeverityLevel: 3 } as const;
const tower = async (path: string) => run(await openGraph(ort, readQwenTower(path, UNIT), quiet));

function expectSame(got: Outputs[], want: Outputs[], tolerance: number): void {
  for (const [i, outputs] of want.entries())
    for (const [name, values] of Object.entries(outputs)) {
      expect(got[i][name]).toHaveLength(values.length);
      const largest = Math.max(...values.map(Math.abs));
      const difference = Math.max(...values.map((value, at) => Math.abs(value - got[i][name][at])));
      expect(difference / largest, `${name} of ${GRIDS[i]}`).toBeLessThan(tolerance);
    }
}

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'desap-attention-'));
});
afterAll(() => rm(root, { recursive: true }));

describe('attention of other tools, in a file of torch.export', () => {
  const source = join(ROOT, 'qwen3_vl_packed/onnx/vision_encoder.onnx');
  let bytes: Uint8Array;
  let want: Outputs[];
  beforeAll(async () => {
    bytes = await readFile(source);
    want = await tower(source);
  });

  it.each(FORM_NAMES)('%s', async (form) => {
    const path = join(root, 'form.onnx');
    // ONNX Runtime has no kernel of it for processors: the last one is read and not run.
    const which = form === 'PackedMultiHeadAttention' ? 'last' : 'all';
    await writeFile(path, await inForm(bytes, form, which));
    expectSame(await tower(path), want, 1e-5);
  });
});

describe('files that tools wrote', () => {
  /** What rounding the package expects of each. */
  const TOLERANCE = { float32: 1e-3, float16: 1e-2, quantized: 5e-2 };
  const files: [string, keyof typeof TOLERANCE, string?][] = [
    ['qwen3_vl.extended', 'float32', 'qwen3_vl'],
    ['qwen2_vl.torch-23', 'float32'],
    ['qwen2_vl.fp16', 'float16'],
    ['qwen2_5_vl.q8', 'quantized'],
    ['qwen2_vl.q8-extended', 'quantized'],
    ['qwen2_vl.q4', 'quantized'],
  ];
  it.each(files)('%s', async (name, rounding, source) => {
    const path = join(ROOT, 'forms', `${name}.onnx`);
    expect(readQwenTower(path, UNIT).tolerance).toBe(TOLERANCE[rounding]);
    const got = await tower(path);
    const plain = await run(await ort.InferenceSession.create(path, quiet));
    const want = plain.map((outputs) => ({ [FEATURES]: Object.values(outputs)[0] }));
    expectSame(got, want, rounding === 'float16' ? 3e-3 : 1e-5);
    if (source !== undefined) expectSame(got, await tower(join(ROOT, source, 'onnx/vision_encoder.onnx')), 1e-5);
  });
});

describe('what is read in other forms besides attention', () => {
  const source = join(ROOT, 'qwen3_vl_packed/onnx/vision_encoder.onnx');
  const same = async (edit: (graph: Graph) => void) => {
    const graph = await Graph.read(await readFile(source));
    edit(graph);
    const path = join(root, 'edited.onnx');
    await writeFile(path, graph.bytes());
    expectSame(await tower(path), await tower(source), 1e-5);
  };

  it('a rotation of halves side by side', () => same((graph) => graph.rotations('halves')));
  it('RotaryEmbedding of com.microsoft', () => same((graph) => graph.rotations('com.microsoft')));
  it('RotaryEmbedding of ONNX', () =>
    same((graph) => {
      graph.opset = 23;
      graph.rotations('onnx');
    }));
  it('norms that add the residual, and the bias of the layer in front', () => same((graph) => graph.skipNorms()));
});

describe('what is refused, with the operator in the way', () => {
  const source = join(ROOT, 'qwen3_vl_packed/onnx/vision_encoder.onnx');
  const cases: [string, (graph: Graph) => void, RegExp][] = [
    [
      'outputs beside the features',
      (graph) => graph.outputs.push(graph.sites()[0].context.outputs[0]),
      /got the outputs image_features, .*deepstack/,
    ],
    [
      'attention of a kind that is not read',
      (graph) => graph.retype('Softmax', 'SparseAttention'),
      /attention of the last block .*found SparseAttention 'val_619'/,
    ],
    [
      'an attention that is causal',
      (graph) => {
        const { q, k, v, context } = graph.sites()[2];
        graph.replace(context, () => graph.add('Attention', [q, k, v], { is_causal: { i: 1 } }));
      },
      /found Attention 'scaled_dot_product_attention_2', a causal one/,
    ],
    [
      'keys without a rotation',
      (graph) => graph.skip('add_22', 'getitem_7'),
      /the rotation of the keys of the last attention; found Gemm 'linear_12'/,
    ],
    [
      'queries that are scaled before they are turned',
      (graph) => {
        const half = graph.add('Mul', ['getitem_6', graph.floats([0.5], [])]);
        for (const node of graph.nodes)
          if (!node.outputs.includes(half))
            node.inputs = node.inputs.map((name) => (name === 'getitem_6' ? half : name));
      },
      /a linear layer in front of the rotation of the queries .*found Mul/,
    ],
    [
      'no output projection',
      (graph) => graph.retype('Gemm', 'MyProjection', 'linear_13'),
      /output projection of the last attention; found MyProjection 'linear_13'/,
    ],
    [
      'a merger that is none',
      (graph) => graph.retype('Gemm', 'MyMerger', 'linear_16'),
      /merger of two linear layers .*deepstack.*; found MyMerger 'linear_16'/,
    ],
    [
      'a Loop that does something else',
      (graph) => {
        const { q, k, v, context } = graph.sites()[2];
        const attend = { op: 'Attention', attributes: {} };
        graph.opset = 24;
        graph.replace(context, () => graph.loop([q, k, v], 2, attend, 'ScatterND'));
      },
      /a Loop that takes slices of a sequence and appends its results; found Loop/,
    ],
  ];
  it.each(cases)('%s', async (_, edit, message) => {
    const graph = await Graph.read(await readFile(source));
    edit(graph);
    const path = join(root, 'refused.onnx');
    await writeFile(path, graph.bytes());
    expect(() => readQwenTower(path, UNIT)).toThrow(
      expect.objectContaining({ code: 'ERR_GRAPH', message: expect.stringMatching(message) }),
    );
  });
});
