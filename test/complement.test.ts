/** What is left by the task scores goes to the rows that differ most: on every device as the kernels say it, one after the other. */
import { afterAll, describe, expect, it } from 'vitest';
import { type Backend, ImageAnalysis, type PruneOptions, Pruner } from '../src/index.js';
import { float32, floatToHalf, type Tensor } from '../src/tensor.js';
import { backendsUnderTest, devicesUnderTest, normal, normalTensor, randomHead, values } from './support.js';

const [PATCHES, SHARED, WIDTH] = [60, 16, 24];
const backends = backendsUnderTest();
const options = devicesUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

const text = normalTensor(2, 5, SHARED);
const features = normalTensor(4, PATCHES, WIDTH);
const from = (backend: Backend) =>
  ImageAnalysis.fromSync(
    { patchEmbeddings: normalTensor(1, PATCHES, SHARED), saliency: normal(3, PATCHES), features },
    backend,
  );

/** The largest task scores, or else the row with the largest sum of distances; then farthest points from them among the rows. */
function expected(backend: Backend, task: Float32Array | null, rows: Tensor, keep: number, taskKeep: number) {
  const byTask = task ? backend.sync.topK({ scores: task, k: taskKeep }) : new Int32Array();
  const seeds = byTask.length > 0 ? byTask : Int32Array.of(mostDistant(rows));
  const others = backend.sync.farthestPoints({ x: rows, seeds, count: keep - seeds.length });
  const indices = Int32Array.from([...seeds, ...others]).sort();
  return { indices, source: Uint8Array.from(indices, (index) => (byTask.includes(index) ? 0 : 1)) };
}

/** The row whose distances 1 - cos to all rows have the largest sum, summed one by one; equal sums: the lower index. */
function mostDistant(rows: Tensor): number {
  const [count, cols] = rows.dims;
  const x = values(rows);
  const dot = (i: number, j: number) => {
    let sum = 0;
    for (let c = 0; c < cols; c++) sum += x[i * cols + c] * x[j * cols + c];
    return sum;
  };
  const places = Array.from({ length: count }, (_, i) => i);
  const sums = places.map((i) => places.reduce((sum, j) => sum + 1 - dot(i, j) / Math.sqrt(dot(i, i) * dot(j, j)), 0));
  return sums.indexOf(Math.max(...sums));
}

describe.each(backends)('complement: diversity on %s', (_, backend) => {
  it.each([
    [12, 0.5],
    [12, 0.25],
    [7, 0.5],
    [1, 0.5],
    [60, 0.5],
    [60, 0],
    [9, 0],
    [2, 0.2],
    [1, 0],
  ])('keeps %i with taskShare %d', async (keep, taskShare) => {
    using image = from(backend);
    const kept = await image.prune(text, { keep, taskShare, complement: 'diversity', maps: true });
    const want = expected(backend, kept.maps!.task!, features, keep, Math.floor(keep * taskShare + 0.5));
    expect(kept).toMatchObject(want);
    expect(kept.maps!.saliency).toEqual(image.saliency());
    const { tokens, assignment, counts } = backend.sync.merge({ features, kept: kept.indices });
    expect([kept.tokens.data, kept.assignment, kept.counts]).toEqual([tokens.data, assignment, counts]);
  });

  it('leaves nothing to choose with taskShare 1', async () => {
    using image = from(backend);
    const { timings: _, ...printed } = await image.prune(text, { keep: 9, taskShare: 1 });
    expect(await image.prune(text, { keep: 9, taskShare: 1, complement: 'diversity' })).toMatchObject(printed);
  });

  it('needs no text with taskShare 0, and begins with the row of the largest sum of distances', async () => {
    using image = from(backend);
    const kept = await image.prune(null, { keep: 11, taskShare: 0, complement: 'diversity' });
    expect(kept).toMatchObject(expected(backend, null, features, 11, 0));
    expect(kept.source).toEqual(new Uint8Array(11).fill(1));
    expect(kept.indices).not.toEqual(backend.sync.farthestPoints({ x: features, count: 11 }).sort()); // as DivPrune begins
  });

  it('begins with the lower of two rows that are the same', async () => {
    using image = from(backend);
    const shifted = values(features).map((value, at) => (at % WIDTH === 0 ? value + 9 : value)); // alike, but for
    for (const twin of [41, 7]) shifted.fill(-1, twin * WIDTH, (twin + 1) * WIDTH); // two rows that turn away
    const how: PruneOptions = { taskShare: 0, complement: 'diversity', distances: float32(shifted, [PATCHES, WIDTH]) };
    expect((await image.prune(null, { ...how, keep: 1 })).indices).toEqual(Int32Array.of(7));
  });

  it('goes by the rows that are merged, or by distances that are given', async () => {
    using image = from(backend);
    const how: PruneOptions = { keep: 14, complement: 'diversity', maps: true };
    const [wide, others] = [normalTensor(7, PATCHES, 40), normalTensor(8, PATCHES, 9)];
    for (const merge of [true, false]) {
      const kept = await image.prune(text, { ...how, features: wide, merge });
      expect(kept).toMatchObject(expected(backend, kept.maps!.task!, wide, 14, 7));
      for (const given of [{}, { features: wide }]) {
        const apart = await image.prune(text, { ...how, ...given, merge, distances: others });
        expect(apart).toMatchObject(expected(backend, apart.maps!.task!, others, 14, 7));
      }
    }
    const half = { type: 'float16', data: Uint16Array.from(values(others), floatToHalf), dims: others.dims };
    expect((await image.prune(text, { ...how, distances: half })).indices).toHaveLength(14);
  });

  it('prunes several images with budgets of their own as each alone', async () => {
    using image = from(backend);
    const own = [
      { keep: 12, complement: 'diversity' },
      { keep: 20, complement: 'diversity', taskShare: 0.3 },
      { keep: 8, complement: 'diversity', taskShare: 0 },
      { keep: 8 },
    ] as const;
    const together = await ImageAnalysis.pruneBatch([image, image, image, image], text, own);
    for (const [i, how] of own.entries()) {
      const { timings: _, ...alone } = await image.prune(text, how);
      expect(together[i]).toMatchObject(alone);
    }
  });

  it('names the rows that are not finite', async () => {
    using image = from(backend);
    const bad = normalTensor(9, PATCHES, 10);
    values(bad)[13 * 10 + 3] = Number.NaN;
    const how: PruneOptions = { keep: 10, complement: 'diversity' };
    const failure = (name: string) => ({
      code: 'ERR_NOT_FINITE',
      message: expect.stringMatching(new RegExp(`^${name}: .*row 13`)),
    });
    await expect(image.prune(text, { ...how, distances: bad })).rejects.toMatchObject(failure('distances'));
    await expect(image.prune(text, { ...how, features: bad })).rejects.toMatchObject(failure('features'));
  });

  it.each([
    [{ complement: 'random' }, /^complement: got 'random', wanted 'saliency' \| 'diversity'/],
    [{ distances: features }, /^distances: got rows beside complement: 'saliency', wanted complement: 'diversity'/],
    [
      { complement: 'diversity', distances: float32(new Float32Array(8), [2, 4]) },
      /^distances.dims: got \[2, 4\], wanted \[60, columns\]/,
    ],
  ])('refuses %o', (given, message) => {
    using image = from(backend);
    expect(() => image.pruneSync(text, { keep: 4, ...(given as object) })).toThrow(message);
  });
});

describe.each(options)('complement: diversity of a head on %s', (_, device) => {
  it('is that of its hidden states, analysed before or in one go', async () => {
    using pruner = await Pruner.load(randomHead(5, { width: 32, heads: 2, projectionDim: SHARED }), device);
    const hidden = normalTensor(6, PATCHES + 1, 32);
    using image = await pruner.analyze(hidden);
    const how = { keep: 16, complement: 'diversity', maps: true } as const;
    const kept = await image.prune(text, how);
    const patches = float32(values(hidden).slice(32), [PATCHES, 32]);
    expect(kept).toMatchObject(expected(pruner.backend, kept.maps!.task!, patches, 16, 8));
    const { timings: __, ...result } = kept;
    expect(await pruner.prune(hidden, text, how)).toMatchObject(result);
  });
});
