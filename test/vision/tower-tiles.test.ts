/** Rows dropped inside the tower and tiles that are left out, together: each does what it does alone. */
import { expect, it } from 'vitest';
import {
  AnyresImageProcessor,
  openVisionModel,
  type PrunedFeatures,
  type VisionInputs,
  type VisionModel,
} from '../../src/vision/index.js';
import { normal, relativeError } from '../support.js';

const QUESTION = 'what color is the circle ?';
const TOWER = { at: 1, keep: 0.25 } as const;

/** Places of the units of one tile that stayed, of those that were dropped, and the kept rows by place. */
function rowsByPlace({ indices, features }: PrunedFeatures): Map<number, Float32Array> {
  const width = features.dims[2];
  const data = features.data as Float32Array;
  return new Map([...indices].map((place, row) => [place, data.subarray(row * width, (row + 1) * width)]));
}

async function both(open: (more: object) => Promise<VisionModel>, inputs: VisionInputs) {
  await using cut = await open({ tower: TOWER });
  await using looked = await open({ tower: TOWER, tiles: { keep: 2 } });
  await using plain = await open({});
  const [[want], [got], [whole]] = [await cut.encode(inputs), await looked.encode(inputs), await plain.encode(inputs)];
  // All that stayed.
  const every = { keepRatio: 1, merge: false } as const;
  const [wanted, pruned] = [await want.prune(QUESTION, every), await got.prune(QUESTION, every)];
  expect(pruned.looked!.taken).toHaveLength(2);
  const rows = rowsByPlace(wanted);
  const own = rowsByPlace(pruned);
  expect(own.size).toBeGreaterThan(0);
  expect(own.size).toBeLessThan(rows.size);
  for (const [place, row] of own) expect(relativeError(row, rows.get(place) as Float32Array)).toBeLessThan(1e-4);
  const dropped = new Set(wanted.dropped);
  expect(pruned.dropped!.length).toBeGreaterThan(0);
  expect([...pruned.dropped!].every((place) => dropped.has(place))).toBe(true);
  // Merged, each that was dropped goes where it goes without the other option.
  const merged = await got.prune(QUESTION, { keep: 4 });
  expect([...merged.dropped!].every((place) => merged.assignment[place] >= 0)).toBe(true);
  const method = await got.prune(QUESTION, { keep: 4, method: 'divprune' });
  expect([...method.indices].some((place) => dropped.has(place))).toBe(false);
  expect(relativeError((await got.all()).data as Float32Array, (await whole.all()).data as Float32Array)).toBeLessThan(
    1e-5,
  );
  for (const image of [want, got, whole]) image.dispose();
}

it.each(['block', 'task', 'kk', 'saliency'] as const)(
  'LLaVA-NeXT, by %s',
  async (by) => {
    const folder = 'models/tiny-llava-next';
    const inputs = await (await AnyresImageProcessor.open(folder)).process('models/eval-next/images/000.png');
    const open = ({ tiles, ...more }: { tiles?: object }) =>
      openVisionModel(folder, {
        clip: 'models/tiny-clip',
        ...(tiles && { tiles: { ...tiles, by } as never }),
        ...more,
      });
    await both(open, inputs);
  },
  120_000,
);

it('Idefics3', async () => {
  const pixelValues = { data: normal(7, 5 * 3 * 32 * 32), dims: [1, 5, 3, 32, 32] };
  const tileGrids = [[2, 2]] as const;
  await both((more) => openVisionModel('test/fixtures/families/idefics3', more), { pixelValues, tileGrids });
}, 120_000);
