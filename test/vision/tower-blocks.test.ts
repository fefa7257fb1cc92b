/** Rows dropped inside the towers of encoders with a last block of their own. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openVisionModel, type VisionInputs } from '../../src/vision/index.js';
import { normal, relativeError } from '../support.js';
import { ROOT } from '../transformers/family-cases.js';

const pixels = (dims: number[]) => ({ data: normal(7, dims.reduce((size, extent) => size * extent, 1)), dims });
const grid = (...sizes: number[]) => ({ data: BigInt64Array.from(sizes, BigInt), dims: [sizes.length / 3, 3] });

/** Images of each family: several tiles, several images, grids that are no squares. */
const INPUTS: Readonly<Record<string, VisionInputs>> = {
  paligemma: { pixelValues: pixels([2, 3, 32, 32]) },
  gemma3: { pixelValues: pixels([2, 3, 32, 32]) },
  llava_onevision: { pixelValues: pixels([3, 3, 24, 24]) },
  idefics3: { pixelValues: pixels([1, 3, 3, 32, 32]) },
};

describe.each(Object.keys(INPUTS))('%s', (family) => {
  const folder = join(ROOT, family);
  it('drops', async () => {
    const at = { at: 1, keep: 0.5 };
    await using plain = await openVisionModel(folder, { keep: 3 });
    await using cut = await openVisionModel(folder, { keep: 3, tower: at });
    await using all = await openVisionModel(folder, { keep: 3, tower: { at: 1, keep: 100000 } });
    const [a, b, c] = [await plain.encode(INPUTS[family]), await cut.encode(INPUTS[family]), await all.encode(INPUTS[family])];
    for (const [i, image] of b.entries()) {
      const p = await image.prune(null, { taskShare: 0 });
      const q = await a[i].prune(null, { taskShare: 0 });
      const r = await c[i].prune(null, { taskShare: 0 });
      console.log(family, p.dropped?.length, image.tokenCount, p.indices, q.indices, p.counts, [...p.assignment], relativeError((await image.all()).data as Float32Array, (await a[i].all()).data as Float32Array), relativeError(r.features.data as Float32Array, q.features.data as Float32Array));
      expect(r.features).toEqual(q.features);
    }
  });
});
