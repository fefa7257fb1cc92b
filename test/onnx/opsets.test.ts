import { readFileSync } from 'node:fs';
import * as ort from 'onnxruntime-node';
import { beforeAll, describe, expect, test } from 'vitest';
import type { HeadWeights } from '../../src/head.js';
import { openGraph } from '../../src/onnx/edit.js';
import { confirmHead, confirmTower } from '../../src/onnx/head/confirm.js';
import { extractHead } from '../../src/onnx/head/extract.js';
import { IMAGE_FEATURES, PATCHES, projectorGraph } from '../../src/onnx/split.js';
import { readText } from '../../src/onnx/text.js';
import { readTower } from '../../src/onnx/tower.js';
import { ClipText } from '../../src/vision/clip-text.js';
import { normal, relativeError } from '../support.js';
import { Editable } from './editable.js';
import { exportNames, standardGelu } from './forms.js';
import * as variants from './variants.js';

const CLIP = 'models/tiny-clip/onnx/vision_model.onnx';
const TEXT = 'models/tiny-clip/onnx/text_model.onnx';
const LLAVA = 'models/tiny-llava/onnx/vision_encoder.onnx';
const QUIET = { logSeverityLevel: 3 } as const;
const PATCH_ROWS = new ort.Tensor('float32', normal(5, 9 * 128), [1, 9, 128]);

/**
 * A graph as an exporter for an operator set writes it: layer norms of nine nodes up to 16, LayerNormalization from 17
 * on, axes of ReduceMean and the count of Split as they are from 18 on, Gelu in 20.
 */
const atOpset =
  (opset: number): variants.Variant =>
  (graph) => {
    graph.opset = opset;
    // Later ones allow the long form too; here its axes are an input.
    if (opset < 17 || opset === 18) variants.nineNodeNorms(graph);
    if (opset === 20) standardGelu(graph);
  };

/**
 * torch.export: sqrt(scale) on both operands, the bias last, a bias-free projection as Gemm, the rows of all positions
 * picked beforehand, names that say nothing.
 */
const torchExport: variants.Variant = (graph) => {
  variants.scaledOperands(graph);
  for (const node of [...graph.nodes]) {
    const embedding = graph.tensors.get(node.inputs[0]);
    const picked = graph.producer(node.inputs[1])?.attributes.value?.t?.dims;
    if (node.op !== 'Gather' || embedding === undefined || picked?.at(-1) !== embedding.dims[0]) continue;
    graph.redirect(node.outputs[0], graph.floats(graph.values(embedding.name), [1, ...embedding.dims]));
  }
  graph.inputs = graph.inputs.map((input) => ({ ...input, dims: null }));
  for (const node of graph.nodes) if (node.op === 'Add' && graph.tensors.has(node.inputs[0])) node.inputs.reverse();
  if (graph.producer(graph.outputs[0])!.op === 'MatMul') variants.gemmProjection(graph);
  exportNames(graph);
};

/** TorchScript: the shipped files are its work; here with queries, keys and values in one product. */
const torchScript: variants.Variant = (graph) => variants.splitProjection(graph);

async function form(path: string, ...changes: variants.Variant[]): Promise<Uint8Array> {
  const graph = await Editable.from(readFileSync(path));
  for (const change of changes) change(graph);
  graph.prune();
  return graph.bytes();
}

async function project(source: string | Uint8Array): Promise<Float32Array> {
  const session = await openGraph(ort, projectorGraph(readTower(source)), QUIET);
  const features = (await session.run({ [PATCHES]: PATCH_ROWS }))[IMAGE_FEATURES];
  await session.release();
  return features.data as Float32Array;
}

async function encode(source: string | Uint8Array): Promise<Float32Array> {
  const text = await ClipText.open({ model: source, tokenizer: 'models/tiny-clip', session: QUIET });
  const { embeddings } = await text.encode('what color is the ring ?');
  await text.dispose();
  return embeddings.data as Float32Array;
}

let head: HeadWeights;
let features: Float32Array;
let rows: Float32Array;
beforeAll(async () => {
  head = await extractHead({ visionModel: CLIP });
  features = await project(LLAVA);
  rows = await encode(TEXT);
});

const EXPORTERS: [string, variants.Variant][] = [
  ['TorchScript', torchScript],
  ['torch.export', torchExport],
];

describe.each([14, 15, 16, 17, 18, 19, 20])('operator set %i', (opset) => {
  test.each(EXPORTERS)('CLIP from %s', async (_, exporter) => {
    const bytes = await form(CLIP, atOpset(opset), exporter);
    const tower = readTower(bytes);
    expect(tower.graph.model.opset).toBe(opset);
    expect(tower.blocks.map(({ heads }) => heads)).toEqual([4, 4, 4, 4]);
    const found = await extractHead({ visionModel: bytes });
    for (const layer of ['ln1', 'q', 'k', 'v', 'out', 'postNorm'] as const) expect(found[layer]).toEqual(head[layer]);
    expect(found.visualProjection).toEqual(head.visualProjection);
    const { attention, embedding } = await confirmHead(ort, bytes, found, { session: QUIET });
    expect(Math.max(attention, embedding!)).toBeLessThan(1e-5);
  });

  test.each(EXPORTERS)('LLaVA from %s', async (_, exporter) => {
    const bytes = await form(LLAVA, atOpset(opset), exporter);
    expect(readTower(bytes)).toMatchObject({ classToken: true, width: 128, projector: { dropsClassToken: true } });
    const { error } = await confirmTower(ort, bytes, CLIP, { session: QUIET });
    expect(error).toBeLessThan(1e-5);
    expect(relativeError(await project(bytes), features)).toBeLessThan(1e-5);
  });

  test.each(EXPORTERS)('text tower from %s', async (_, exporter) => {
    const bytes = await form(TEXT, atOpset(opset), exporter);
    expect(readText(bytes)).toMatchObject({ ids: { name: 'input_ids' }, contextLength: 32 });
    expect(relativeError(await encode(bytes), rows)).toBeLessThan(1e-5);
  });
});
