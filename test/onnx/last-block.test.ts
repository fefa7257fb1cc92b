/** The last block out of vision encoders of every family, against what Hugging Face says of their states. */
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, describe, expect, it } from 'vitest';
import type { BlockWeights, OptionalBias } from '../../src/block-weights.js';
import { openBackend } from '../../src/index.js';
import { attention } from '../../src/kernels/attention.js';
import { layerNorm } from '../../src/kernels/layer-norm.js';
import { linear } from '../../src/kernels/linear.js';
import type { NumberMatrix } from '../../src/kernels/numeric.js';
import { rmsNorm } from '../../src/kernels/rms-norm.js';
import { saliency } from '../../src/kernels/saliency.js';
import {
  ATTENTION,
  BLOCK_OUTPUT,
  COS,
  FEATURES,
  HIDDEN,
  MAIN_FEATURES,
  ORDER,
  ROWS,
  SIN,
  TASK_ROWS,
} from '../../src/onnx/block-values.js';
import { expose } from '../../src/onnx/edit.js';
import { confirmBlock } from '../../src/onnx/head/confirm-block.js';
import { type BlockEncoder, readLastBlock } from '../../src/onnx/last-block.js';
import type { SplitEncoder } from '../../src/onnx/split-encoder.js';
import { readSafeTensors, toFloat32 } from '../../src/safetensors.js';
import { errorOf, FAMILY_ROOT, feedsOf, numbers, run, tensorsOf, trialOf } from './last-block-support.js';

const backend = openBackend({ device: 'reference' });
afterAll(() => backend.dispose());

/** What Hugging Face computes for the first case of a family: tensors by name. */
async function expectedOf(family: string): Promise<Record<string, Float32Array>> {
  const { tensors } = await readSafeTensors(join(FAMILY_ROOT, family, 'expected.safetensors'));
  return Object.fromEntries([...tensors].map(([name, tensor]) => [name, toFloat32(tensor)]));
}

const readFamily = (family: string) => readLastBlock(join(FAMILY_ROOT, family, 'onnx/vision_encoder.onnx'));

const crossingOf = ({ crossing }: BlockEncoder, outputs: Record<string, ort.Tensor>) =>
  Object.fromEntries(crossing.map((name) => [name, outputs[name]]));

interface Facts {
  norm: 'layer' | 'rms';
  rotary?: boolean;
  order?: boolean;
  packed?: boolean;
  crossing?: number;
}

const FAMILIES: Record<string, Facts> = {
  idefics3: { norm: 'layer' },
  lfm2_vl: { norm: 'layer', crossing: 4 },
  paligemma: { norm: 'layer' },
  gemma3: { norm: 'layer' },
  llava_onevision: { norm: 'layer' },
  qwen2_vl: { norm: 'layer', rotary: true },
  qwen2_5_vl: { norm: 'rms', rotary: true, order: true, crossing: 1 },
  qwen3_vl: { norm: 'layer', rotary: true },
  qwen3_vl_packed: { norm: 'layer', rotary: true, packed: true },
};

describe.each(Object.entries(FAMILIES))('%s', (family, facts) => {
  const encoder = readFamily(family);
  const { norm, rotary = false, order = false, packed = false, crossing = 0 } = facts;
  const main = packed ? MAIN_FEATURES : FEATURES;

  it('is read by structure', async () => {
    expect(encoder).toMatchObject({ rotary, order, packed, further: [], tolerance: 1e-3 });
    expect(encoder.crossing).toHaveLength(crossing);
    expect(await encoder.weights(ort)).toMatchObject({ norm, width: 32, heads: 4, epsilon: 1e-6, siglip: null });
  });

  it('hands out the states that enter the last block, and the features of the file', async () => {
    const want = await expectedOf(family);
    const outputs = await run(encoder.tower, tensorsOf(await feedsOf(family, want.pixel_values)));
    expect(errorOf(numbers(outputs[HIDDEN]), want.last_block_input)).toBeLessThan(1e-4);
    expect(errorOf(numbers(outputs[FEATURES]), want.features)).toBeLessThan(1e-4);
    expect(COS in outputs && SIN in outputs).toBe(rotary);
    expect(ORDER in outputs).toBe(order);
  });

  it('has a connector that makes the features of the rows that end the block, bit for bit', async () => {
    const { pixel_values } = await expectedOf(family);
    const outputs = await run(encoder.trial, tensorsOf(await feedsOf(family, pixel_values)));
    const rows = await run(encoder.connector, { ...crossingOf(encoder, outputs), [ROWS]: outputs[BLOCK_OUTPUT] });
    expect(rows[TASK_ROWS].dims).toEqual(outputs[main].dims);
    expect(rows[TASK_ROWS].data).toEqual(outputs[main].data);
  });

  it('is confirmed by numbers', async () => {
    const { pixel_values } = await expectedOf(family);
    const trials = [trialOf(await feedsOf(family, pixel_values))];
    const weights = await encoder.weights(ort);
    const errors = await confirmBlock(ort, encoder, { backend, weights, trials });
    expect(errors.attention).toBeLessThan(1e-5);
    expect(errors.features).toBe(0);
    expect(errors.splits).toBe(!packed);
  });

  it('splits at its last attention into parts that make the features', async () => {
    if (packed) {
      expect(encoder.split).toBeNull();
      return;
    }
    const { tower, tail } = encoder.split as SplitEncoder;
    const { pixel_values } = await expectedOf(family);
    const feeds = tensorsOf(await feedsOf(family, pixel_values));
    const whole = await run(encoder.trial, feeds);
    const front = await run(tower, feeds);
    expect(FEATURES in front).toBe(false);
    expect(front[HIDDEN].data).toEqual(whole[HIDDEN].data);
    const last = await run(tail, { [HIDDEN]: front[HIDDEN], [ATTENTION]: whole[ATTENTION] });
    const made = await run(encoder.connector, { ...crossingOf(encoder, front), [ROWS]: last[BLOCK_OUTPUT] });
    expect(made[TASK_ROWS].dims).toEqual(whole[FEATURES].dims);
    expect(errorOf(numbers(made[TASK_ROWS]), numbers(whole[FEATURES]))).toBeLessThan(1e-5);
    expect(ORDER in made).toBe(order);
    if (order) expect(made[ORDER].data).toEqual(whole[ORDER].data);
  });
});

const ROTARY = Object.keys(FAMILIES).filter((family) => FAMILIES[family].rotary);
const FLAT = Object.keys(FAMILIES).filter((family) => !FAMILIES[family].rotary);

describe('what Hugging Face computes with the block', () => {
  it.each(ROTARY)('%s: decoupled attention, its merged rows, saliency', async (family) => {
    const encoder = readFamily(family);
    const want = await expectedOf(family);
    const outputs = await run(encoder.tower, tensorsOf(await feedsOf(family, want.pixel_values)));
    const weights = await encoder.weights(ort);
    const [rows] = outputs[HIDDEN].dims;
    const x = normalised(weights, { data: numbers(outputs[HIDDEN]), rows, cols: 32 });
    const through = ({ weight, bias }: OptionalBias, of: NumberMatrix) =>
      linear(of, { data: weight, rows: 32, cols: 32 }, bias);
    const [q, k, v] = [through(weights.q, x), through(weights.k, x), through(weights.v, x)];
    const decoupled = Float32Array.from(through(weights.out, attention(q, q, v, 4)).data);
    expect(errorOf(decoupled, want.decoupled_attention)).toBeLessThan(1e-4);

    const tables = { cos: numbers(outputs[COS]), sin: numbers(outputs[SIN]) };
    const received = Float32Array.from(saliency(q, k, 4, false, tables));
    expect(errorOf(received, want.saliency)).toBeLessThan(1e-4);

    const given = {
      ...crossingOf(encoder, outputs),
      [ROWS]: new ort.Tensor('float32', decoupled, outputs[HIDDEN].dims),
    };
    const task = await run(encoder.connector, given);
    expect(errorOf(numbers(task[TASK_ROWS]), want.merged_decoupled)).toBeLessThan(1e-4);
  });
});

describe('what numbers refuse', () => {
  it.each(FLAT)('%s with another head count', async (family) => {
    const encoder = readFamily(family);
    const { pixel_values } = await expectedOf(family);
    const trials = [trialOf(await feedsOf(family, pixel_values))];
    const weights = { ...(await encoder.weights(ort)), heads: 2 };
    await expect(confirmBlock(ort, encoder, { backend, weights, trials })).rejects.toMatchObject({
      code: 'ERR_HEAD_MISMATCH',
      message: expect.stringMatching(
        /vision_encoder\.onnx: got a last attention that differs .* by .*wanted at most 0\.001/,
      ),
    });
  });

  it('sequences that are none', async () => {
    const encoder = readFamily('qwen2_vl');
    const { pixel_values } = await expectedOf('qwen2_vl');
    const feeds = await feedsOf('qwen2_vl', pixel_values);
    const halves = [0, 48].map((firstRow) => ({ firstRow, patches: 48 }));
    const weights = await encoder.weights(ort);
    await expect(
      confirmBlock(ort, encoder, { backend, weights, trials: [{ feeds, sequences: () => halves }] }),
    ).rejects.toMatchObject({ code: 'ERR_HEAD_MISMATCH', message: expect.stringMatching(/windows/) });
  });
});

it('the order says where each feature comes from', async () => {
  const encoder = readFamily('qwen2_5_vl');
  const { pixel_values } = await expectedOf('qwen2_5_vl');
  const graph = expose(encoder.model, ['linear_16']);
  const feeds = tensorsOf(await feedsOf('qwen2_5_vl', pixel_values));
  const [{ linear_16: merged }, { [ORDER]: order, [FEATURES]: features }] = [
    await run(graph, feeds),
    await run(encoder.tower, feeds),
  ];
  const [tokens, width] = features.dims;
  const places = [...(order.data as BigInt64Array)].map(Number);
  expect([...places].sort((a, b) => a - b)).toEqual(Array.from({ length: tokens }, (_, i) => i));
  expect(places).not.toEqual(Array.from({ length: tokens }, (_, i) => i));
  const row = (all: ort.Tensor, i: number) => numbers(all).slice(i * width, (i + 1) * width);
  for (const [i, place] of places.entries()) expect(row(features, i)).toEqual(row(merged, place));
});

function normalised({ norm, norm1, epsilon, width }: BlockWeights, x: NumberMatrix): NumberMatrix {
  if (norm === 'rms') return rmsNorm(x, norm1.weight, epsilon);
  return layerNorm(x, norm1.weight, norm1.bias ?? new Float32Array(width), epsilon);
}
