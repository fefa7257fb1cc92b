/** Towers in two parts: against the whole tower, and rows that are dropped against Hugging Face's own modules (fixtures/tower-cut/make.py). */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import { HIDDEN } from '../../src/onnx/block-values.js';
import { readLastBlock } from '../../src/onnx/last-block.js';
import { HIDDEN_STATES } from '../../src/onnx/split.js';
import { readTower } from '../../src/onnx/tower.js';
import { clipTowerCut, type TowerCut } from '../../src/onnx/tower-cut.js';
import { CutTower } from '../../src/vision/cut-tower.js';
import { waves } from '../../src/vision/trial.js';
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
  const integers = (values: number[], dims: number[]) => new ort.Tensor('int64', BigInt64Array.from(values, BigInt), dims);
  const { image_grid_thw: grid, spatial_shapes: shapes, pixel_attention_mask: mask } = feeds;
  if (grid) made.image_grid_thw = integers(grid as number[], [1, 3]);
  if (mask) made.pixel_attention_mask = new ort.Tensor('bool', new Uint8Array(size(mask as number[])).fill(1), mask as number[]);
  if (shapes) {
    const grids = shapes as number[][];
    const [tiles, patches] = pixels;
    const shown = grids.flatMap(([rows, columns]) => Array.from({ length: patches }, (_, p) => Number(p < rows * columns)));
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
