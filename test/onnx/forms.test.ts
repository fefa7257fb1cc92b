import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openGraph } from '../../src/onnx/edit.js';
import { DataType } from '../../src/onnx/format/proto.js';
import { confirmHead, confirmTower } from '../../src/onnx/head/confirm.js';
import { extractHead } from '../../src/onnx/head/extract.js';
import { HIDDEN_STATES, IMAGE_FEATURES, PATCHES, projectorGraph, towerGraph } from '../../src/onnx/split.js';
import { readTower } from '../../src/onnx/tower.js';
import { floatToHalf, halfToFloat } from '../../src/tensor.js';
import { ImageProcessor, LlavaVision } from '../../src/vision/index.js';
import { normal, relativeError } from '../support.js';
import { Editable } from './editable.js';
import * as forms from './forms.js';
import * as variants from './variants.js';

const LLAVA = 'models/tiny-llava/onnx/vision_encoder.onnx';
const CLIP = 'models/tiny-clip/onnx/vision_model.onnx';
const IMAGE = normal(3, 3 * 96 * 96);
const PIXELS = new ort.Tensor('float32', IMAGE, [1, 3, 96, 96]);
const [PATCH_COUNT, WIDTH] = [144, 128];
/** onnxruntime warns of weights that its own optimiser leaves over. */
const QUIET = { logSeverityLevel: 3 } as const;
const FOLDER = mkdtempSync(join(tmpdir(), 'desap-forms-'));
afterAll(() => rmSync(FOLDER, { recursive: true }));

interface Form {
  readonly name: string;
  readonly changes: readonly variants.Variant[];
  /** Tolerance that the form gets. */
  readonly tolerance: number;
  /** Largest error of the hidden states against float32, measured and rounded up. */
  readonly error: number;
  /** Largest error of a few projected rows against the same rows among all: an 8-bit range depends on all rows. */
  readonly fewRows: number;
}

const FORMS: readonly Form[] = [
  { name: 'float16', changes: [variants.halfPrecision], tolerance: 1e-2, error: 1.5e-3, fewRows: 2e-3 },
  {
    name: 'float16 at its ends too',
    changes: [variants.halfEverywhere],
    tolerance: 1e-2,
    error: 1.5e-3,
    fewRows: 2e-3,
  },
  { name: 'q8', changes: [forms.dynamic8, variants.stripNames], tolerance: 1e-1, error: 4e-2, fewRows: 3e-2 },
  {
    name: 'q8 with fused attention',
    changes: [variants.packedAttention, forms.dynamic8, forms.quantizedAttention],
    tolerance: 1e-1,
    error: 4e-2,
    fewRows: 3e-2,
  },
  { name: 'q8 in blocks', changes: [forms.blocks8], tolerance: 1e-1, error: 1e-2, fewRows: 1e-5 },
  { name: 'q4', changes: [forms.blocks4], tolerance: 3e-1, error: 1e-1, fewRows: 1e-5 },
  {
    name: 'q4 with float16',
    changes: [forms.blocks4, variants.halfPrecision],
    tolerance: 3e-1,
    error: 1e-1,
    fewRows: 2e-3,
  },
  {
    name: 'fused: Attention',
    changes: [
      forms.quickGelu,
      variants.packedAttention,
      forms.biasGelu,
      forms.fusedLinears,
      variants.skipNorms,
      variants.stripNames,
    ],
    tolerance: 1e-4,
    error: 1e-5,
    fewRows: 1e-5,
  },
  {
    name: 'fused: MultiHeadAttention, biases in the norms',
    changes: [forms.quickGelu, variants.multiHeadAttention, variants.skipNorms, forms.skipBias, forms.biasGelu],
    tolerance: 1e-4,
    error: 1e-5,
    fewRows: 1e-5,
  },
  {
    name: 'fused: FusedMatMul',
    changes: [forms.fusedProducts, forms.fusedLinears, variants.skipNorms],
    tolerance: 1e-4,
    error: 1e-5,
    fewRows: 1e-5,
  },
];

async function form(path: string, changes: readonly variants.Variant[]): Promise<Uint8Array> {
  const graph = await Editable.from(readFileSync(path));
  for (const change of changes) change(graph);
  graph.prune();
  return graph.bytes();
}

const floats = ({ data }: ort.Tensor) =>
  data instanceof Float32Array ? data : Float32Array.from(data as Uint16Array, halfToFloat);

/** What the whole file makes of the image, in the types that it wants. */
async function whole(bytes: Uint8Array): Promise<Float32Array> {
  const session = await ort.InferenceSession.create(bytes, QUIET);
  const isHalf = readTower(bytes).pixels.type === DataType.float16;
  const pixels = isHalf ? new ort.Tensor('float16', Uint16Array.from(IMAGE, floatToHalf), PIXELS.dims) : PIXELS;
  const [output] = Object.values(await session.run({ [session.inputNames[0]]: pixels }));
  await session.release();
  return floats(output as ort.Tensor);
}

/** The two parts of the file on the same image. */
async function parts(bytes: Uint8Array) {
  const tower = readTower(bytes);
  const [first, second] = [
    await openGraph(ort, towerGraph(tower), QUIET),
    await openGraph(ort, projectorGraph(tower), QUIET),
  ];
  const hidden = (await first.run({ [tower.pixels.name]: PIXELS }))[HIDDEN_STATES] as ort.Tensor;
  const project = async (count: number) => {
    const rows = floats(hidden).slice(WIDTH, WIDTH * (count + 1));
    const patches = new ort.Tensor('float32', rows, [1, count, WIDTH]);
    return (await second.run({ [PATCHES]: patches }))[IMAGE_FEATURES] as ort.Tensor;
  };
  const [all, few] = [await project(PATCH_COUNT), await project(7)];
  await Promise.all([first.release(), second.release()]);
  return { tower, hidden, all, few };
}

/** A tower of the same shape whose weights are others. */
const foreign: variants.Variant = (graph) => {
  for (const [i, [name, { dims }]] of [...graph.tensors].entries()) {
    if (dims.length !== 2) continue;
    const values = graph.values(name);
    const size = Math.hypot(...values) / Math.sqrt(values.length);
    graph.redirect(name, graph.floats(normal(i, values.length, size), [...dims]));
  }
};

describe.each(FORMS)('LLaVA as $name', ({ changes, tolerance, error, fewRows }) => {
  let bytes: Uint8Array;
  beforeAll(async () => {
    bytes = await form(LLAVA, changes);
  });

  test('its two parts compute what the whole file computes', async () => {
    const { tower, hidden, all, few } = await parts(bytes);
    expect(tower.blocks.map(({ heads }) => heads)).toEqual([4, 4, 4]);
    expect(tower).toMatchObject({
      classToken: true,
      width: WIDTH,
      readOut: null,
      projector: { dropsClassToken: true },
    });
    expect([hidden.type, ...hidden.dims]).toEqual(['float32', 1, PATCH_COUNT + 1, WIDTH]);
    expect([all.type, ...all.dims]).toEqual(['float32', 1, PATCH_COUNT, WIDTH]);
    expect(relativeError(floats(all), await whole(bytes))).toBeLessThan(1e-3);
    expect(few.dims).toEqual([1, 7, WIDTH]);
    expect(relativeError(floats(few), floats(all).subarray(0, 7 * WIDTH))).toBeLessThan(fewRows);
  });

  test('belongs to its float32 CLIP, and to no other', async () => {
    for (const options of [{}, { pixelValues: PIXELS }]) {
      const confirmed = await confirmTower(ort, bytes, CLIP, { ...options, session: QUIET });
      expect(confirmed.error).toBeLessThan(error);
      expect(confirmed.tolerance).toBe(tolerance);
    }
    await expect(
      confirmTower(ort, await form(LLAVA, [foreign, ...changes]), CLIP, { session: QUIET }),
    ).rejects.toMatchObject({
      code: 'ERR_HEAD_MISMATCH',
      message: expect.stringContaining(`wanted at most ${tolerance}`),
    });
  });
});

describe.each(FORMS)('the head of a CLIP as $name', ({ changes, tolerance }) => {
  test('is found and agrees with the graph, or is refused by name', async () => {
    const bytes = await form(CLIP, changes);
    const original = await extractHead({ visionModel: CLIP });
    const confirmed = await confirmHead(ort, bytes, original, { session: QUIET });
    expect(confirmed.tolerance).toBe(tolerance);
    const isQuantized = /MatMulInteger|MatMulNBits/.test(readTower(bytes).blocks[0].out.op);
    if (isQuantized) {
      await expect(extractHead({ visionModel: bytes })).rejects.toMatchObject({
        code: 'ERR_GRAPH',
        message: expect.stringMatching(
          /the weight of q \((MatMulInteger|MatMulNBits|QAttention)\) is quantised; take the head from a float32 or float16 export, or from a safetensors file/,
        ),
      });
      return;
    }
    const head = await extractHead({ visionModel: bytes });
    await confirmHead(ort, bytes, head, { session: QUIET });
    for (const layer of ['q', 'k', 'v', 'out'] as const)
      for (const part of ['weight', 'bias'] as const)
        expect(relativeError(head[layer][part], original[layer][part])).toBeLessThan(1e-3);
  });
});

describe('pruning with a tower of another form', () => {
  const QUESTIONS = ['what color is the star ?', 'what color is the sun ?'];
  let images: ort.Tensor[];
  let wanted: number[][];

  /** The 16 patches kept of each image for each question. */
  async function kept(encoder: string): Promise<number[][]> {
    const vision = await LlavaVision.open(encoder, { clip: 'models/tiny-clip', session: QUIET });
    const sets: number[][] = [];
    for (const image of images)
      for (const question of QUESTIONS) {
        const { indices, features } = await vision.prune(image, question, { keep: 16 });
        expect(features.type).toBe('float32');
        expect(features.dims).toEqual([1, 16, WIDTH]);
        sets.push([...indices]);
      }
    await vision.dispose();
    return sets;
  }

  beforeAll(async () => {
    const processor = await ImageProcessor.open('models/tiny-llava');
    images = (await Promise.all(
      ['02', '03', '04'].map((name) => processor.process(`models/eval/demo/${name}.png`)),
    )) as ort.Tensor[];
    wanted = await kept(LLAVA);
  });

  // form, fewest of 16 patches that stay the same
  test.each([
    ['float16', 15],
    ['float16 at its ends too', 15],
    ['q8', 14],
    ['q4', 14],
    ['fused: Attention', 16],
  ])('%s', async (name, same) => {
    const path = join(FOLDER, 'vision_encoder.onnx');
    writeFileSync(path, await form(LLAVA, FORMS.find((candidate) => candidate.name === name)!.changes));
    const sets = await kept(path);
    const overlaps = sets.map((set, i) => set.filter((index) => wanted[i].includes(index)).length);
    expect(Math.min(...overlaps)).toBeGreaterThanOrEqual(same);
  });
});
