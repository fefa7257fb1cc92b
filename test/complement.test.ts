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

/** The largest task scores, then farthest points from them among the rows. */
function expected(backend: Backend, task: Float32Array, rows: Tensor, keep: number, taskKeep: number) {
  const seeds = backend.sync.topK({ scores: task, k: taskKeep });
  const others = backend.sync.farthestPoints({ x: rows, seeds, count: keep - taskKeep });
  const indices = Int32Array.from([...seeds, ...others]).sort();
  return { indices, source: Uint8Array.from(indices, (index) => (seeds.includes(index) ? 0 : 1)) };
}

describe.each(backends)('complement: diversity on %s', (_, backend) => {
  it.each([
    [12, 0.5],
    [12, 0.25],
    [7, 0.5],
    [1, 0.5],
    [60, 0.5],
    [60, 0],
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

  it('needs no text with taskShare 0, and begins as DivPrune does', async () => {
    using image = from(backend);
    const { indices, source } = await image.prune(null, { keep: 11, taskShare: 0, complement: 'diversity' });
    expect(indices).toEqual(backend.sync.farthestPoints({ x: features, count: 11 }).sort());
    expect(source).toEqual(new Uint8Array(11).fill(1));
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
