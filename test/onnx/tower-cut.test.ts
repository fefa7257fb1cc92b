/** Towers in two parts: against the whole tower, and rows that are dropped against Hugging Face's own modules (fixtures/tower-cut/make.py). */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import { HIDDEN } from '../../src/onnx/block-values.js';
import { type AnyTensor, crossed, crossingKind } from '../../src/onnx/crossing.js';
import type { Builder } from '../../src/onnx/format/builder.js';
import { readLastBlock } from '../../src/onnx/last-block.js';
import { findLastBlock } from '../../src/onnx/search/last-block.js';
import { enteringBlocks } from '../../src/onnx/search/residual.js';
import { batchFirst, blocksBefore, HIDDEN_STATES } from '../../src/onnx/split.js';
import { readTower, type TowerStructure } from '../../src/onnx/tower.js';
import { clipTowerCut, cutTower, type TowerCut } from '../../src/onnx/tower-cut.js';
import type { BlockFamily } from '../../src/vision/block-family.js';
import { blockTrials } from '../../src/vision/block-trials.js';
import { allRows, CutTower } from '../../src/vision/cut-tower.js';
import { FLAT } from '../../src/vision/flat.js';
import { IDEFICS3 } from '../../src/vision/idefics3.js';
import { LFM2 } from '../../src/vision/lfm2.js';
import { QWEN } from '../../src/vision/qwen-family.js';
import { pixelExtents, waves } from '../../src/vision/trial.js';
import { ROOT, relativeError } from '../support.js';

const FIXTURES = join(ROOT, 'test/fixtures');
const FAMILIES = join(FIXTURES, 'families');

interface Case {
  readonly family: string;
  readonly at: number;
  readonly feeds: Readonly<Record<string, number[] | number[][]>>;
  readonly rows: number[][];
  readonly dims: number[];
  readonly hidden: number[];
}

const cases = JSON.parse(readFileSync(join(FIXTURES, 'tower-cut/expected.json'), 'utf8')) as Case[];

/** Pixels of waves; grids and masks as the processors of the families make them. */
function feedsOf({ feeds }: Case): Record<string, ort.Tensor> {
  const pixels = feeds.pixel_values as number[];
  const size = (dims: readonly number[]) => dims.reduce((product, extent) => product * extent, 1);
  const made: Record<string, ort.Tensor> = { pixel_values: new ort.Tensor('float32', waves(size(pixels)), pixels) };
  const integers = (values: number[], dims: number[]) =>
    new ort.Tensor('int64', BigInt64Array.from(values, BigInt), dims);
  const { image_grid_thw: grid, spatial_shapes: shapes, pixel_attention_mask: mask } = feeds;
  for (const name of grid ? ['image_grid_thw', 'grid_thw'] : []) made[name] = integers(grid as number[], [1, 3]);
  if (mask)
    made.pixel_attention_mask = new ort.Tensor(
      'bool',
      new Uint8Array(size(mask as number[])).fill(1),
      mask as number[],
    );
  if (shapes) {
    const grids = shapes as number[][];
    const [tiles, patches] = pixels;
    const shown = grids.flatMap(([rows, columns]) =>
      Array.from({ length: patches }, (_, p) => Number(p < rows * columns)),
    );
    made.spatial_shapes = integers(grids.flat(), [tiles, 2]);
    made.pixel_attention_mask = integers(shown, [tiles, patches]);
  }
  return made;
}

const open = (cut: TowerCut, feeds: Record<string, ort.Tensor>) =>
  CutTower.open(ort as never, cut, {
    tolerance: 1e-4,
    trials: async ({ inputNames }) => [
      Object.fromEntries(Object.entries(feeds).filter(([name]) => inputNames.includes(name))) as never,
    ],
  });

describe.each(cases.map((one, i) => [`${one.family} ${i}`, one] as const))('%s', (_, one) => {
  it('computes of some rows what Hugging Face computes of them', async () => {
    const file = join(FAMILIES, one.family, 'onnx/vision_encoder.onnx');
    const isClip = one.family === 'llava_next';
    const cut = isClip ? clipTowerCut(readTower(file), one.at) : readLastBlock(file).cutAt(one.at, 'kernels');
    const feeds = feedsOf(one);
    const tower = await open(cut, feeds);
    const rows = one.rows.map((own) => Int32Array.from(own));
    const { late } = await tower.run(feeds as never, () => rows);
    const hidden = late[isClip ? HIDDEN_STATES : HIDDEN];
    expect(hidden.dims).toEqual(one.dims);
    expect(relativeError(hidden.data as Float32Array, one.hidden)).toBeLessThan(1e-5);
    await tower.release();
  });
});

/** A file of two blocks, cut between them: its rest ends behind the last. */
function endCut(tower: TowerStructure): TowerCut {
  const { graph, hidden: states } = tower;
  const [output] = graph.model.outputs.map(({ name }) => name).filter((name) => graph.sourcesOf(name).floats);
  const { value } = findLastBlock(graph, output).end;
  const turn = (builder: Builder, rows: string) => batchFirst(builder, tower, rows);
  return cutTower({
    ...{ graph, at: 1, states, turn },
    front: { inputs: [], nodes: [], outputs: [] },
    late: {
      ...{ outputs: ['end'], values: [value as string] },
      write: (builder) => void builder.float(turn(builder, value as string), 'end'),
    },
  });
}

const pixelTrials = async (session: ort.InferenceSession) => {
  const stated = pixelExtents(session as never);
  const dims = [1, 3, 32, 32].map((extent, axis) => stated[axis] ?? extent);
  const pixels = waves(dims.reduce((product, extent) => product * extent, 1));
  return [{ [session.inputNames[0]]: new ort.Tensor('float32', pixels, dims) }] as never;
};

/** Exports of CLIP towers that are read, each by another exporter or in another form. */
const CLIP_FILES: readonly (readonly [name: string, crossing: number])[] = [
  ['exports/models/llava_ts14_rows.onnx', 0],
  ['exports/models/llava_ts17_list.onnx', 0],
  ['exports/models/openai_vit_ts14.onnx', 0],
  ['exports/models/openclip_vit_ts17.onnx', 0],
  ['exports/models/timm_vit_dynamo18.onnx', 0],
  ['exports/models/vision_dynamo18_onnxsim.onnx', 0],
  // Its shapes are joined in front of the cut.
  ['exports/models/vision_dynamo18_raw.onnx', 5],
  ['exports/models/vision_ts17_onnxsim.onnx', 0],
  ['exports-more/models/llava_cat_dy18_onnxsim.onnx', 0],
  ['exports-more/models/llava_full_ts17.onnx', 0],
  ['exports-more/models/odd_chinese_ts17.onnx', 0],
  ['families/video_llava/onnx/vision_encoder.onnx', 0],
  ['families/forms/video_llava.q8.onnx', 0],
];

describe('every CLIP tower in two parts', () => {
  // Opening compares both parts with the whole, on all rows and on all rows twice.
  it.each(CLIP_FILES)('%s', async (name, crossing) => {
    const tower = readTower(join(FIXTURES, name));
    const before = blocksBefore(tower);
    const origin = (value: string) => tower.graph.origin(value);
    const inputs = [...tower.blocks.slice(0, before).map(({ input }) => input), tower.hidden];
    expect(enteringBlocks(tower.graph, tower.hidden).map(origin)).toEqual(inputs.map(origin));
    const cut = before < 2 ? endCut(tower) : clipTowerCut(tower, 1, [0, 1]);
    expect(cut.crossing.length).toBe(crossing);
    const opened = await CutTower.open(ort as never, cut, {
      tolerance: name.includes('q8') ? 5e-2 : 1e-4,
      trials: pixelTrials as never,
    });
    await opened.release();
  });
});

const FAMILY_OF: Readonly<Record<string, BlockFamily>> = {
  ...{ gemma3: FLAT, paligemma: FLAT, llava_onevision: FLAT, idefics3: IDEFICS3, lfm2_vl: LFM2 },
  ...{ qwen2_vl: QWEN, qwen2_5_vl: QWEN, qwen3_vl: QWEN },
};

/** Encoders of the families, and their forms: fused, in float16, quantised. */
const BLOCK_FILES = [
  ...Object.keys(FAMILY_OF).map((family) => `${family}/onnx/vision_encoder.onnx`),
  ...readdirSync(join(FAMILIES, 'forms'))
    .filter((name) => name.endsWith('.onnx') && name.split('.')[0] in FAMILY_OF)
    .map((name) => `forms/${name}`),
];

async function openEncoder(name: string, at: number, last: 'kernels' | 'file'): Promise<CutTower> {
  const family = name.split('/')[0] === 'forms' ? name.split(/[/.]/)[1] : name.split('/')[0];
  const config = JSON.parse(readFileSync(join(FAMILIES, family, 'config.json'), 'utf8'));
  const encoder = readLastBlock(join(FAMILIES, name));
  return CutTower.open(ort as never, encoder.cutAt(at, last), {
    tolerance: encoder.tolerance,
    trials: async (session) => {
      const trials = await blockTrials(FAMILY_OF[family], session, config);
      return trials.map(({ run: { feeds } }) =>
        Object.fromEntries(
          Object.entries(feeds)
            .filter(([input]) => session.inputNames.includes(input))
            .map(([input, { type, data, dims }]) => [input, new ort.Tensor(type as 'float32', data as never, dims)]),
        ),
      ) as never;
    },
  });
}

describe('every encoder with a last block of its own in two parts', () => {
  it.each(BLOCK_FILES)('%s', async (name) => {
    const encoder = readLastBlock(join(FAMILIES, name));
    if (encoder.blocks() === 0) {
      expect(() => encoder.cutAt(1, 'file')).toThrow(/between two blocks/);
      return;
    }
    // The file runs the last block of those that are quantised.
    await (await openEncoder(name, 1, name.startsWith('forms') ? 'file' : 'kernels')).release();
  });
});

describe('windows', () => {
  it('that stay are exact in windowed blocks, whatever windows go', async () => {
    const one = cases.find(({ family, rows }) => family === 'qwen2_5_vl' && rows[0].length === 80) as Case;
    const feeds = feedsOf(one);
    const file = join(FAMILIES, 'qwen2_5_vl/onnx/vision_encoder.onnx');
    const tower = await open(readLastBlock(file).cutAt(1, 'kernels'), feeds);
    const entered = await tower.enter(feeds as never);
    const whole = await tower.leave(entered, allRows(entered));
    const rows = Int32Array.from(one.rows[0]);
    const some = await tower.leave(entered, [rows]);
    const width = whole[HIDDEN].dims[1];
    const wanted = Array.from(rows, (row) => [
      ...(whole[HIDDEN].data as Float32Array).subarray(row * width, (row + 1) * width),
    ]);
    expect(relativeError(some[HIDDEN].data as Float32Array, wanted.flat())).toBeLessThan(1e-6);
    // The block that is cut sees windows of 16 rows: the whole second one is gone.
    expect([...rows].filter((row) => row >= 16 && row < 32)).toEqual([]);
    await tower.release();
  });
});

describe('what cannot be cut', () => {
  const file = (name: string) => join(FAMILIES, name, 'onnx/vision_encoder.onnx');
  const error = (work: () => unknown) => {
    try {
      work();
    } catch (cause) {
      return cause as Error & { code: string };
    }
    throw new Error('nothing was refused');
  };
  it('is a tower at another place than between its blocks', () => {
    const tower = readTower(file('llava_next'));
    for (const at of [0, 2, 1.5]) expect(error(() => clipTowerCut(tower, at))).toMatchObject({ code: 'ERR_VALUE' });
    expect(error(() => readLastBlock(file('idefics3')).cutAt(2, 'kernels')).message).toContain(
      'tower.at: got 2, wanted',
    );
  });
  it('is one of a single block in front of the last', () => {
    const tower = readTower(join(FIXTURES, 'exports/models/openai_vit_ts14.onnx'));
    expect(error(() => clipTowerCut(tower, 1))).toMatchObject({ code: 'ERR_GRAPH' });
  });
  it('are features with columns of earlier blocks', () => {
    const refused = error(() => readLastBlock(file('qwen3_vl_packed')).cutAt(1, 'kernels'));
    expect(refused.code).toBe('ERR_GRAPH');
    expect(refused.message).toContain('columns of earlier blocks');
  });
});

describe('what crosses', () => {
  const ints = (...values: number[]): AnyTensor => ({
    type: 'int64',
    data: BigInt64Array.from(values, BigInt),
    dims: [values.length],
  });
  const seen = (tensor: AnyTensor, rows: number, items = 1) => ({ tensor, rows, items });
  const kept = { of: [0], rows: [Int32Array.of(0, 1, 5, 6, 7)] };
  const integersAfter = (tensor: AnyTensor) => {
    const one = seen(tensor, 8);
    return Array.from(crossed('m', crossingKind([one]), one, kept).data as ArrayLike<bigint>, Number);
  };
  it('are bounds of sequences, lengths of them, and shapes', () => {
    expect(integersAfter(ints(0, 4, 8))).toEqual([0, 2, 5]);
    expect(integersAfter(ints(4, 4))).toEqual([2, 3]);
    expect(integersAfter(ints(2, 2, 2, 2))).toEqual([2, 1, 2]);
    expect(integersAfter(ints(1, 8, -1))).toEqual([1, 5, -1]);
    expect(integersAfter(ints(3, 4))).toEqual([3, 4]);
  });
  it('are told apart from what is as large by chance, where images differ', () => {
    const table = (rows: number) => ({ type: 'float32', data: new Float32Array(rows * 8), dims: [rows, 8] });
    expect(crossingKind([seen(table(8), 8)])).toEqual({ kind: 'axes', axes: [0, 1] });
    expect(crossingKind([seen(table(8), 8), seen(table(6), 6)])).toEqual({ kind: 'axes', axes: [0] });
  });
  it('are masks of each item', () => {
    const mask = { type: 'float32', data: Float32Array.from({ length: 2 * 9 }, (_, i) => i), dims: [2, 3, 3] };
    const one = seen(mask, 3, 2);
    const rows = [Int32Array.of(0, 2), Int32Array.of(1, 2)];
    const made = crossed('m', crossingKind([one]), one, { of: [0, 1], rows });
    expect(made.dims).toEqual([2, 2, 2]);
    expect([...(made.data as Float32Array)]).toEqual([0, 2, 6, 8, 13, 14, 16, 17]);
    const other = crossed('m', crossingKind([one]), one, { of: [1], rows: [Int32Array.of(0)] });
    expect([...(other.data as Float32Array)]).toEqual([9]);
  });
  it('is refused where items share it and keep rows of their own', () => {
    const one = seen({ type: 'float32', data: new Float32Array(6), dims: [3, 2] }, 3, 2);
    const work = () =>
      crossed('m', { kind: 'axes', axes: [0] }, one, { of: [0, 1], rows: [Int32Array.of(0), Int32Array.of(1)] });
    expect(work).toThrow(/2 tiles share/);
  });
});
