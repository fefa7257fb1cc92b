import { readFileSync } from 'node:fs';
import * as ort from 'onnxruntime-node';
import { beforeAll, describe, expect, test } from 'vitest';
import type { HeadWeights } from '../../src/head.js';
import {
  confirmHead,
  confirmTower,
  extractHead,
  HIDDEN_STATES,
  openGraph,
  readText,
  readTower,
  TEXT_EMBEDDING,
  TEXT_TOKENS,
  textGraph,
  towerGraph,
} from '../../src/onnx/index.js';
import { normal, relativeError } from '../support.js';
import { Editable } from './editable.js';
import { dynamic8 } from './forms.js';
import * as variants from './variants.js';

const CLIP = readFileSync('models/tiny-clip/onnx/vision_model.onnx');
const PIXELS = new ort.Tensor('float32', normal(3, 3 * 96 * 96), [1, 3, 96, 96]);
/** onnxruntime warns of weights that its own optimiser leaves over. */
const QUIET = { logSeverityLevel: 3 } as const;

let original: HeadWeights;
let hiddenStates: Float32Array;

async function variant(...changes: variants.Variant[]): Promise<Uint8Array> {
  const graph = await Editable.from(CLIP);
  for (const change of changes) change(graph);
  return graph.bytes();
}

/** What onnxruntime makes of the whole file, and of the part up to the hidden states. */
async function run(bytes: Uint8Array): Promise<{ embedding: Float32Array; hidden: Float32Array }> {
  const whole = await ort.InferenceSession.create(bytes, QUIET);
  const part = await openGraph(ort, towerGraph(readTower(bytes)), QUIET);
  const embedding = Object.values(await whole.run({ [whole.inputNames[0]]: PIXELS }))[0].data as Float32Array;
  const hidden = (await part.run({ [part.inputNames[0]]: PIXELS }))[HIDDEN_STATES].data as Float32Array;
  await whole.release();
  await part.release();
  return { embedding, hidden };
}

/** Largest difference of any weight, relative to the largest of its tensor. */
function headError(got: HeadWeights, wanted: HeadWeights): number {
  const tensors = ({ ln1, q, k, v, out, postNorm, visualProjection }: HeadWeights) => [
    visualProjection,
    ...[ln1, q, k, v, out, postNorm].flatMap(({ weight, bias }) => [weight, bias]),
  ];
  return Math.max(...tensors(got).map((tensor, i) => relativeError(tensor, tensors(wanted)[i])));
}

let embedding: Float32Array;

beforeAll(async () => {
  original = await extractHead({ visionModel: CLIP });
  ({ hidden: hiddenStates, embedding } = await run(CLIP));
});

describe('the same tower in other forms', () => {
  // name, changes, largest error of the head, largest error of what the graph computes
  const cases: [string, variants.Variant[], number, number][] = [
    ['as it is', [], 0, 0],
    ['names stripped', [variants.stripNames], 0, 0],
    ['layer norms of nine nodes', [variants.nineNodeNorms], 0, 1e-5],
    ['nodes in another order', [variants.shuffled], 0, 0],
    ['Identity and Cast in between', [variants.passNodes], 0, 0],
    ['root of the scale on both operands', [variants.scaledOperands], 0, 1e-5],
    ['scale computed from a shape', [variants.computedScale], 0, 1e-5],
    ['scale as a Div of q', [variants.dividedQueries], 0, 1e-5],
    ['scale folded into q', [variants.foldedIntoQ], 1e-6, 1e-5],
    ['root of the scale folded into q and k', [variants.foldedIntoBoth], 1e-6, 1e-5],
    ['projection as Gemm', [variants.gemmProjection], 0, 1e-5],
    ['weights behind Transpose nodes', [variants.transposeNodes], 0, 1e-5],
    ['float16', [variants.halfPrecision], 1e-3, 2e-2],
    ['MultiHeadAttention', [variants.multiHeadAttention], 0, 1e-5],
    ['Attention with packed weights', [variants.packedAttention], 0, 1e-5],
    ['Attention of operator set 23', [variants.standardAttention], 0, 1e-5],
    ['one packed projection and Split', [variants.splitProjection], 0, 1e-5],
    ['one packed projection and Gather', [variants.gatheredProjection], 0, 1e-5],
    ['SkipLayerNormalization', [variants.skipNorms], 0, 1e-5],
    ['fused attention and norms', [variants.packedAttention, variants.skipNorms], 0, 1e-5],
    [
      'everything at once',
      [
        variants.nineNodeNorms,
        variants.scaledOperands,
        variants.gemmProjection,
        variants.passNodes,
        variants.shuffled,
        variants.stripNames,
      ],
      0,
      1e-5,
    ],
  ];
  test.each(cases)('%s', async (_, changes, headTolerance, tolerance) => {
    const bytes = await variant(...changes);
    const { blocks, classToken, width, readOut, projector } = readTower(bytes);
    expect({ blocks: blocks.length, heads: blocks.map((block) => block.heads), classToken, width }).toEqual({
      blocks: 4,
      heads: [4, 4, 4, 4],
      classToken: true,
      width: 128,
    });
    expect(readOut).not.toBeNull();
    expect(projector).toBeNull();
    const computed = await run(bytes);
    expect(relativeError(computed.embedding, embedding)).toBeLessThanOrEqual(tolerance);
    expect(relativeError(computed.hidden, hiddenStates)).toBeLessThanOrEqual(tolerance);
    const head = await extractHead({ visionModel: bytes });
    expect(headError(head, original)).toBeLessThanOrEqual(headTolerance);
    const { heads, projectionDim: shared, epsilon } = head;
    expect({ heads, shared, epsilon }).toEqual({ heads: 4, shared: 96, epsilon: 1e-5 });
    await confirmHead(ort, bytes, head, { session: QUIET });
  });
});

test('both towers of CLIP in one file, with embeddings of unit length and logits', async () => {
  const graph = await variants.together(CLIP, readFileSync('models/tiny-clip/onnx/text_model.onnx'));
  const bytes = graph.bytes();
  expect(readTower(bytes).blocks).toHaveLength(4);
  expect(readText(bytes)).toMatchObject({ ids: { name: 'text.input_ids' }, masks: [], contextLength: 32 });
  const head = await extractHead({ visionModel: bytes });
  expect(headError(head, original)).toBe(0);
  await confirmHead(ort, bytes, head, { session: QUIET });
  const text = await openGraph(ort, textGraph(readText(bytes)), QUIET);
  const ids = new ort.Tensor('int64', BigInt64Array.of(1n, 5n, 44n, 39n, 2n), [1, 5]);
  const encoded = await text.run({ 'text.input_ids': ids });
  expect(encoded[TEXT_TOKENS].dims).toEqual([5, 96]);
  const last = (encoded[TEXT_TOKENS].data as Float32Array).subarray(-96);
  expect(relativeError(last, encoded[TEXT_EMBEDDING].data as Float32Array)).toBeLessThan(1e-6);
});

test('a LLaVA file without names, in another order and form', async () => {
  const path = 'models/tiny-llava/onnx/vision_encoder.onnx';
  const graph = await Editable.from(readFileSync(path));
  for (const change of [
    variants.nineNodeNorms,
    variants.scaledOperands,
    variants.passNodes,
    variants.shuffled,
    variants.stripNames,
  ])
    change(graph);
  const tower = readTower(graph.bytes());
  expect(tower.blocks.map((block) => block.heads)).toEqual([4, 4, 4]);
  expect(tower).toMatchObject({ classToken: true, width: 128, readOut: null, projector: { dropsClassToken: true } });
  const { error } = await confirmTower(ort, graph.bytes(), CLIP, { session: QUIET });
  expect(error).toBeLessThan(1e-5);
});

describe('towers that are something else', () => {
  test('a quantised graph gives hidden states and no head', async () => {
    const bytes = await variant(dynamic8);
    const computed = await run(bytes);
    expect(relativeError(computed.hidden, hiddenStates)).toBeLessThan(0.2);
    await expect(extractHead({ visionModel: bytes })).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: expect.stringMatching(/quantised.*float32 or float16 export, or from a safetensors file/),
    });
    await confirmHead(ort, bytes, original, { session: QUIET });
  });

  test('weights in 4 bits are recognised as quantised', async () => {
    const bytes = await variant((graph) => {
      for (const node of graph.nodes)
        if (node.op === 'MatMul' && graph.tensors.has(node.inputs[1]))
          Object.assign(node, { op: 'MatMulNBits', domain: 'com.microsoft' });
    });
    expect(readTower(bytes).blocks).toHaveLength(4);
    await expect(extractHead({ visionModel: bytes })).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: expect.stringContaining('MatMulNBits'),
    });
  });

  test('the pooling head of SigLIP is no layer: its query is a constant', async () => {
    const bytes = await variant(siglip);
    const tower = readTower(bytes);
    expect(tower.blocks).toHaveLength(4);
    expect({ classToken: tower.classToken, readOut: tower.readOut, hidden: tower.hidden }).toEqual({
      classToken: false,
      readOut: null,
      hidden: readTower(CLIP).hidden,
    });
    const session = await ort.InferenceSession.create(bytes, QUIET);
    expect((await session.run({ pixel_values: PIXELS })).pooled.dims).toEqual([1, 1, 128]);
    const part = await openGraph(ort, towerGraph(tower), QUIET);
    expect((await part.run({ pixel_values: PIXELS }))[HIDDEN_STATES].dims).toEqual([1, 144, 128]);
    await expect(extractHead({ visionModel: bytes })).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: expect.stringContaining('visual projection'),
    });
  });

  test('attention that is fused for a GPU is refused by its operator', async () => {
    const bytes = await variant(variants.multiHeadAttention, (graph) => {
      for (const node of graph.nodes) if (node.op === 'MultiHeadAttention') node.op = 'PackedMultiHeadAttention';
      graph.prune();
    });
    expect(() => readTower(bytes)).toThrow(
      /4 attention cores \(the operator PackedMultiHeadAttention is not one that is read: take an export that is not optimised for a GPU/,
    );
  });

  test('values quantised between operators are refused with what to do', async () => {
    const bytes = await variant((graph) => {
      const scale = [graph.floats([1 / 255], []), graph.octets(Uint8Array.of(0), [])];
      for (const node of graph.nodes.filter(({ op }) => op === 'Softmax')) {
        const at = graph.nodes.indexOf(node) + 1;
        const narrow = graph.add('QuantizeLinear', [node.outputs[0], ...scale], {}, { at });
        const wide = graph.add('DequantizeLinear', [narrow, ...scale], {}, { at: at + 1 });
        graph.redirect(node.outputs[0], wide, [graph.producer(narrow)!]);
      }
    });
    expect(() => readTower(bytes)).toThrow(/QuantizeLinear .* take a float or dynamically quantised export/);
  });

  test('a convolution is refused with what it holds', async () => {
    const graph = new Editable();
    graph.inputs = [{ name: 'image', type: 1, dims: [1, 3, 8, 8] }];
    graph.add(
      'Relu',
      [graph.add('Conv', ['image', graph.floats(normal(1, 4 * 3 * 9), [4, 3, 3, 3])])],
      {},
      { outputs: ['features'] },
    );
    graph.outputs = ['features'];
    expect(() => readTower(graph.bytes())).toThrow(
      /model: looked for a self-attention layer .* found 0 attention cores.*Conv x1, Relu x1/,
    );
  });

  test('a text tower is no vision tower', () => {
    expect(() => readTower('models/tiny-clip/onnx/text_model.onnx')).toThrow(
      /depends on an image; found 2 attention cores, 2 layers/,
    );
  });

  test('a graph that does not say its heads asks for them', async () => {
    const bytes = await variant((graph) => {
      for (const node of graph.nodes) {
        const constant = node.attributes.value?.t;
        const shape =
          constant && 'bytes' in constant.data && constant.data.bytes.length === 8 ? constant.data.bytes[0] : 0;
        if (node.op === 'Constant' && (shape === 4 || shape === 32))
          Object.assign(node, { op: 'Abs', inputs: [`extent_${shape}`], attributes: {} });
      }
      for (const extent of [4, 32]) graph.inputs.push({ name: `extent_${extent}`, type: 7, dims: [1] });
    });
    await expect(extractHead({ visionModel: bytes })).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: expect.stringContaining('option heads'),
    });
    expect(headError(await extractHead({ visionModel: bytes, heads: 4 }), original)).toBe(0);
    await expect(extractHead({ visionModel: CLIP, heads: 8 })).rejects.toMatchObject({ code: 'ERR_VALUE' });
  });
});

/** No class token, and a pooling head of one constant query over all rows. */
function siglip(graph: Editable): void {
  const concat = graph.nodes.find((node) => node.op === 'Concat' && node.attributes.axis.i === 1)!;
  graph.redirect(concat.outputs[0], concat.inputs[1]);
  graph.nodes.splice(graph.nodes.indexOf(concat), 1);
  const positions = graph.nodes.find((node) => node.inputs[0]?.includes('position_embedding.weight'))!;
  positions.inputs[1] = graph.integers(
    Array.from({ length: 144 }, (_, i) => i),
    [1, 144],
  );

  const norm = graph.nodes.findLast((node) => node.op === 'LayerNormalization')!;
  const pick = graph.producer(norm.inputs[0])!;
  norm.inputs[0] = pick.inputs[0];
  graph.nodes = graph.nodes.slice(0, graph.nodes.indexOf(norm) + 1);
  const weight = () => graph.floats(normal(5, 128 * 128, 0.1), [128, 128]);
  const linear = (x: string) =>
    graph.add('Add', [graph.add('MatMul', [x, weight()]), graph.floats(normal(6, 128), [128])]);
  const split = (x: string, perm: number[]) =>
    graph.add('Transpose', [graph.add('Reshape', [x, graph.integers([1, -1, 4, 32])])], { perm: { ints: perm } });
  const q = split(linear(graph.floats(normal(7, 128), [1, 1, 128])), [0, 2, 1, 3]);
  const k = split(linear(norm.outputs[0]), [0, 2, 3, 1]);
  const v = split(linear(norm.outputs[0]), [0, 2, 1, 3]);
  const scores = graph.add('Mul', [graph.add('MatMul', [q, k]), graph.floats([32 ** -0.5], [])]);
  const context = graph.add('MatMul', [graph.add('Softmax', [scores], { axis: { i: -1 } }), v]);
  const joined = graph.add('Reshape', [
    graph.add('Transpose', [context], { perm: { ints: [0, 2, 1, 3] } }),
    graph.integers([1, -1, 128]),
  ]);
  graph.add('Identity', [linear(joined)], {}, { outputs: ['pooled'] });
  graph.outputs = [norm.outputs[0], 'pooled'];
}
