/** The last block out of files as optimisers, quantisers and other exporters leave them. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { BlockWeights } from '../../src/block-weights.js';
import { openBackend } from '../../src/index.js';
import { COS, MAIN_FEATURES, SIN } from '../../src/onnx/block-values.js';
import { type BlockTrial, confirmBlock } from '../../src/onnx/head/confirm-block.js';
import { type BlockEncoder, readLastBlock } from '../../src/onnx/last-block.js';
import { FORM_NAMES, Graph, inForm } from './attention-forms.js';
import { Editable } from './editable.js';
import {
  errorOf,
  FAMILY_ROOT,
  feedsOf,
  numbers,
  pixelsOf,
  QUIET,
  run,
  tensorsOf,
  trialOf,
} from './last-block-support.js';

const backend = openBackend({ device: 'reference' });
let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'desap-last-block-'));
});
afterAll(async () => {
  backend.dispose();
  await rm(root, { recursive: true });
});

const waves = (length: number) => Float32Array.from({ length }, (_, i) => Math.sin(i * i));

/** An image, and frames of a video, on grids that are no squares. */
const GRIDS = [
  [1, 8, 12],
  [2, 6, 4],
].map(([frames, rows, columns]): BlockTrial => {
  const patches = rows * columns;
  const grid = {
    type: 'int64' as const,
    data: BigInt64Array.of(BigInt(frames), BigInt(rows), BigInt(columns)),
    dims: [1, 3],
  };
  const pixels = { type: 'float32' as const, data: waves(frames * patches * 96), dims: [frames * patches, 96] };
  return {
    feeds: { pixel_values: pixels, grid_thw: grid, image_grid_thw: grid },
    sequences: () => Array.from({ length: frames }, (_, frame) => ({ firstRow: frame * patches, patches })),
  };
});

const confirmed = async (encoder: BlockEncoder, trials = GRIDS) =>
  confirmBlock(ort, encoder, { backend, weights: await encoder.weights(ort), trials, session: QUIET });

function weightError(got: BlockWeights, want: BlockWeights): number {
  const all = ({ norm1, q, k, v, out }: BlockWeights) =>
    [norm1, q, k, v, out].flatMap(({ weight, bias }) => (bias === null ? [weight] : [weight, bias]));
  return Math.max(...all(got).map((values, i) => errorOf(values, all(want)[i])));
}

const PACKED = join(FAMILY_ROOT, 'qwen3_vl_packed/onnx/vision_encoder.onnx');

/** A file of torch.export after a change. */
async function edited(edit: (graph: Graph) => void, source = PACKED): Promise<string> {
  const graph = await Graph.read(await readFile(source));
  edit(graph);
  const path = join(root, 'edited.onnx');
  await writeFile(path, graph.bytes());
  return path;
}

describe('attention of other tools', () => {
  // ONNX Runtime has no kernel of PackedMultiHeadAttention for processors.
  it.each(FORM_NAMES.filter((form) => form !== 'PackedMultiHeadAttention'))('%s', async (form) => {
    const path = join(root, 'form.onnx');
    await writeFile(path, await inForm(await readFile(PACKED), form, 'all'));
    const [got, want] = [readLastBlock(path), readLastBlock(PACKED)];
    expect(weightError(await got.weights(ort), await want.weights(ort))).toBe(0);
    const errors = await confirmed(got);
    expect(errors.attention).toBeLessThan(1e-5);
    expect(errors.features).toBe(0);
    for (const { feeds } of GRIDS) {
      const [tables, own] = [await run(got.tower, tensorsOf(feeds)), await run(want.tower, tensorsOf(feeds))];
      for (const name of [COS, SIN]) expect(numbers(tables[name])).toEqual(numbers(own[name]));
      expect(errorOf(numbers(tables[MAIN_FEATURES]), numbers(own[MAIN_FEATURES]))).toBeLessThan(1e-5);
    }
  });

  it('MultiHeadAttention that adds biases', async () => {
    const source = join(FAMILY_ROOT, 'forms/llava_onevision.fused.onnx');
    const graph = await Editable.from(await readFile(source));
    const fused = graph.nodes.filter(({ op }) => op === 'Attention');
    for (const { inputs, outputs, attributes } of fused) {
      const [rows, weight, bias] = inputs;
      const packed = graph.values(weight);
      const parts = [0, 1, 2].map((part) => {
        const own = Float32Array.from(
          { length: 32 * 32 },
          (_, i) => packed[Math.floor(i / 32) * 96 + part * 32 + (i % 32)],
        );
        return graph.add('MatMul', [rows, graph.floats(own, [32, 32])]);
      });
      graph.nodes = graph.nodes.filter((node) => !node.outputs.includes(outputs[0]));
      graph.add('MultiHeadAttention', [...parts, bias], attributes, { domain: 'com.microsoft', outputs });
    }
    const path = join(root, 'biased.onnx');
    await writeFile(path, graph.bytes());
    const [got, want] = [readLastBlock(path), readLastBlock(source)];
    expect(await got.weights(ort)).toEqual(await want.weights(ort));
    const trial = trialOf(await feedsOf('llava_onevision', await pixelsOf('llava_onevision')));
    expect((await confirmed(got, [trial])).attention).toBeLessThan(1e-5);
  });

  it('PackedMultiHeadAttention is read', async () => {
    const path = join(root, 'packed.onnx');
    await writeFile(path, await inForm(await readFile(PACKED), 'PackedMultiHeadAttention', 'all'));
    const got = readLastBlock(path);
    expect(got).toMatchObject({ rotary: true, packed: true });
    expect(await got.weights(ort)).toEqual(await readLastBlock(PACKED).weights(ort));
  });
});

describe('what is read in other forms besides attention', () => {
  const cases: [string, (graph: Graph) => void][] = [
    ['a rotation of halves side by side', (graph) => graph.rotations('halves')],
    ['RotaryEmbedding of com.microsoft', (graph) => graph.rotations('com.microsoft')],
    [
      'RotaryEmbedding of ONNX',
      (graph) => {
        graph.opset = 23;
        graph.rotations('onnx');
      },
    ],
    ['norms that add the residual, and the bias of the layer in front', (graph) => graph.skipNorms()],
    [
      'queries that are scaled before they are turned',
      (graph) => {
        const half = graph.add('Mul', ['getitem_6', graph.floats([0.5], [])]);
        const twice = graph.add('Mul', ['getitem_7', graph.floats([2], [])]);
        for (const node of graph.nodes)
          if (!node.outputs.includes(half) && !node.outputs.includes(twice))
            node.inputs = node.inputs.map((name) =>
              name === 'getitem_6' ? half : name === 'getitem_7' ? twice : name,
            );
      },
    ],
  ];
  it.each(cases)('%s', async (_, edit) => {
    const encoder = readLastBlock(await edited(edit));
    expect(weightError(await encoder.weights(ort), await readLastBlock(PACKED).weights(ort))).toBe(0);
    const errors = await confirmed(encoder);
    expect(errors.attention).toBeLessThan(1e-5);
    expect(errors.features).toBeLessThan(1e-5);
  });
});

describe('RMS norms', () => {
  const source = join(FAMILY_ROOT, 'qwen2_5_vl/onnx/vision_encoder.onnx');
  const cases: [string, (graph: Graph) => void][] = [
    [
      'RMSNormalization of ONNX',
      (graph) => {
        graph.opset = 23;
        graph.rmsNorms((g, x, weight) => g.add('RMSNormalization', [x, weight], { epsilon: { f: 1e-6 } }));
      },
    ],
    [
      'SimplifiedLayerNormalization',
      (graph) =>
        graph.rmsNorms((g, x, weight) => g.add('SimplifiedLayerNormalization', [x, weight], { epsilon: { f: 1e-6 } })),
    ],
    ['SkipSimplifiedLayerNormalization, which adds the residual', (graph) => graph.skipRmsNorms()],
    [
      'a division by the root',
      (graph) =>
        graph.rmsNorms((g, x, weight) => {
          const squares = g.add('Mul', [x, x]);
          const mean = g.add('ReduceMean', [squares, g.integers([-1])], { keepdims: { i: 1 } });
          const root = g.add('Sqrt', [g.add('Add', [g.floats([1e-6], []), mean])]);
          return g.add('Mul', [g.add('Div', [x, root]), weight]);
        }),
    ],
    [
      'a power of -1/2',
      (graph) =>
        graph.rmsNorms((g, x, weight) => {
          const mean = g.add('ReduceMean', [g.add('Pow', [x, g.floats([2], [])]), g.integers([-1])]);
          const power = g.add('Pow', [g.add('Add', [mean, g.floats([1e-6], [])]), g.floats([-0.5], [])]);
          return g.add('Mul', [weight, g.add('Mul', [power, x])]);
        }),
    ],
  ];
  it.each(cases)('%s', async (_, edit) => {
    const encoder = readLastBlock(await edited(edit, source));
    const weights = await encoder.weights(ort);
    expect(weights).toMatchObject({ norm: 'rms', epsilon: 1e-6, norm1: { bias: null } });
    expect(weightError(weights, await readLastBlock(source).weights(ort))).toBe(0);
    const errors = await confirmed(encoder);
    expect(errors.attention).toBeLessThan(1e-5);
    expect(errors.features).toBe(0);
  });
});

describe('files that tools wrote', () => {
  const ROUNDING = {
    float32: { tolerance: 1e-3, attention: 1e-5 },
    float16: { tolerance: 1e-2, attention: 3e-3 },
    quantized: { tolerance: 5e-2, attention: 5e-2 },
  };
  /** What is expected of weights that were quantised: those of 4 bits lie on a grid of 16. */
  const WEIGHTS = { q8: 1e-2, q4: 1e-1, fp16: 1e-3, other: 0 };
  const files: [string, keyof typeof ROUNDING, string | null][] = [
    ['qwen3_vl.extended', 'float32', 'qwen3_vl'],
    ['qwen2_vl.torch-23', 'float32', null],
    ['qwen2_vl.torch-17', 'float32', null],
    ['qwen2_vl.fp16', 'float16', null],
    ['qwen3_vl.fp16', 'float16', null],
    ['qwen2_5_vl.q8', 'quantized', 'qwen2_5_vl'],
    ['qwen2_vl.q8-extended', 'quantized', 'qwen2_vl'],
    ['qwen2_vl.q4', 'quantized', 'qwen2_vl'],
    ['qwen2_5_vl.fused', 'float32', 'qwen2_5_vl'],
    ['llava_onevision.fused', 'float32', 'llava_onevision'],
    ['llava_onevision.fused-q8', 'quantized', 'llava_onevision'],
    ['idefics3.extended', 'float32', 'idefics3'],
    ['lfm2_vl.q8', 'quantized', 'lfm2_vl'],
    ['paligemma.q4', 'quantized', 'paligemma'],
    ['gemma3.fp16', 'float16', 'gemma3'],
    ['siglip.torch-24', 'float32', null],
  ];
  it.each(files)('%s', async (name, rounding, source) => {
    const encoder = readLastBlock(join(FAMILY_ROOT, 'forms', `${name}.onnx`));
    expect(encoder.tolerance).toBe(ROUNDING[rounding].tolerance);
    const family = name.split('.')[0];
    const flat = async () => {
      if (source === null)
        return { pixel_values: { type: 'float32' as const, data: waves(3 * 32 * 32), dims: [1, 3, 32, 32] } };
      return feedsOf(family, await pixelsOf(family));
    };
    const errors = await confirmed(encoder, encoder.rotary ? GRIDS : [trialOf(await flat())]);
    expect(errors.attention).toBeLessThan(ROUNDING[rounding].attention);
    expect(errors.features).toBeLessThan(rounding === 'float16' ? 1e-3 : 1e-5);
    if (source === null) return;
    const want = await readLastBlock(join(FAMILY_ROOT, source, 'onnx/vision_encoder.onnx')).weights(ort);
    const form = /q8|q4|fp16/.exec(name)?.[0] as keyof typeof WEIGHTS | undefined;
    expect(weightError(await encoder.weights(ort), want)).toBeLessThanOrEqual(WEIGHTS[form ?? 'other']);
  });
});

it('an encoder of one image a call, which has no mask for frames', async () => {
  const encoder = readLastBlock(join(FAMILY_ROOT, 'forms/qwen3_vl.one-image.onnx'));
  const { attention, features } = await confirmed(encoder);
  expect(attention).toBeLessThan(1e-5);
  expect(features).toBeLessThan(1e-5);
  // One image has one sequence, whatever the frames of others do.
  await expect(confirmed(encoder, [GRIDS[1]])).rejects.toMatchObject({ code: 'ERR_HEAD_MISMATCH' });
});

describe('outputs besides the features', () => {
  it('deepstack features are handed out as they are', async () => {
    const path = await edited((graph) => {
      graph.skip('image_features', 'linear_17');
      graph.outputs = ['linear_5', 'linear_17', 'linear_11'];
      graph.prune();
    });
    const encoder = readLastBlock(path);
    expect(encoder).toMatchObject({ packed: false, further: ['linear_5', 'linear_11'] });
    expect((await confirmed(encoder)).features).toBe(0);
    const [{ feeds }] = GRIDS;
    const outputs = await run(encoder.tower, tensorsOf(feeds));
    const packed = await run(readLastBlock(PACKED).tower, tensorsOf(feeds));
    expect(outputs.linear_5.dims).toEqual([24, 24]);
    expect(numbers(outputs['desap.features'])).toEqual(numbers(packed[MAIN_FEATURES]));
  });
});

describe('what is refused, with the operator in the way', () => {
  const cases: [string, (graph: Graph) => void, RegExp][] = [
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
      /looked for the last block, .*found Softmax .*not its queries and keys are rotated/,
    ],
    [
      'no output projection',
      (graph) => graph.retype('Gemm', 'MyProjection', 'linear_13'),
      /looked for the last block, .*no linear layer follows it.*MatMul 'scaled_dot_product_attention_2'/,
    ],
    [
      'no sum behind the feed-forward layers',
      (graph) => graph.retype('Add', 'MyAdd', 'add_24'),
      /looked for the sum that ends the last block, of 'add_23' .*found .*MyAdd 'add_24'/,
    ],
    [
      'features of earlier states besides',
      (graph) => {
        const sum = graph.add('Add', ['linear_17', 'linear_5']);
        graph.skip('image_features', sum);
        graph.outputs = [sum];
        graph.prune();
      },
      /looked for features that come from the last block alone; found 'linear_5' of earlier states .*Add/,
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
    const path = await edited(edit);
    expect(() => readLastBlock(path)).toThrow(
      expect.objectContaining({ code: 'ERR_GRAPH', message: expect.stringMatching(message) }),
    );
  });

  it('windows in the last block, by its numbers', async () => {
    const source = join(FAMILY_ROOT, 'qwen2_5_vl/onnx/vision_encoder.onnx');
    const path = await edited((graph) => graph.skip('unsqueeze_34', 'unsqueeze_22'), source);
    await expect(confirmed(readLastBlock(path))).rejects.toMatchObject({
      code: 'ERR_HEAD_MISMATCH',
      message: expect.stringMatching(/a last attention that differs .*windows/),
    });
  });

  it('a rotation that is not by halves, by its numbers', async () => {
    const path = await edited((graph) => graph.rotations('interleaved'));
    await expect(confirmed(readLastBlock(path))).rejects.toMatchObject({ code: 'ERR_HEAD_MISMATCH' });
  });
});
