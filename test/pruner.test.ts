import { describe, expect, it } from 'vitest';
import { DesapError, formatHead, type PruneOptions, type PruneResult, Pruner } from '../src/index.js';
import { float32, floatToHalf, halfToFloat, Tensor } from '../src/tensor.js';
import { devicesUnderTest, embeddings, normal, normalTensor, randomHead, relativeError, values } from './support.js';

const shape = { width: 48, heads: 3, projectionDim: 20 };
const head = randomHead(1, shape);
const hidden = normalTensor(2, 50, 48);
const text = normalTensor(3, 7, 20);

describe.each(devicesUnderTest())('Pruner on %s', (_, options) => {
  it('agrees with the reference, synchronously and asynchronously', async () => {
    using reference = await Pruner.load(head, { device: 'reference' });
    using pruner = await Pruner.load(head, options);
    for (const extra of [
      {},
      { taskShare: 0 },
      { taskShare: 1 },
      { alignment: 'mean' },
      { merge: false },
    ] as Partial<PruneOptions>[]) {
      const request = { keep: 9, maps: true, matrices: true, ...extra };
      const want = reference.pruneSync(hidden, text, request);
      for (const got of [pruner.pruneSync(hidden, text, request), await pruner.prune(hidden, text, request)]) {
        expect(got.indices).toEqual(want.indices);
        expect(got.source).toEqual(want.source);
        expect(got.assignment).toEqual(want.assignment);
        expect(got.counts).toEqual(want.counts);
        expect(got.tokens.dims).toEqual([9, 48]);
        expect(relativeError(values(got.tokens), values(want.tokens))).toBeLessThan(1e-5);
        expect(relativeError(got.maps!.task!, want.maps!.task!)).toBeLessThan(1e-4);
        expect(relativeError(got.maps!.saliency, want.maps!.saliency)).toBeLessThan(1e-4);
        expect(relativeError(values(got.matrices!.similarity), values(want.matrices!.similarity))).toBeLessThan(1e-4);
        for (const time of Object.values(got.timings)) expect(time).toBeGreaterThanOrEqual(0);
        expect(Object.keys(got.timings).sort()).toEqual(Object.keys(want.timings).sort());
      }
    }
  });

  it('asks one image many questions', async () => {
    using pruner = await Pruner.load(head, options);
    using image = await pruner.analyze(hidden);
    const questions = [4, 5, 6].map((seed) => normalTensor(seed, seed, 20));
    const together = await Promise.all(questions.map((question) => image.prune(question, { keep: 8 })));
    for (const [i, question] of questions.entries()) {
      const alone = await pruner.prune(hidden, question, { keep: 8 });
      expect(together[i].indices).toEqual(alone.indices);
      expect(together[i].tokens.data).toEqual(alone.tokens.data);
    }
  });

  it('analyses images of different size in one call, as it does alone', async () => {
    using pruner = await Pruner.load(head, options);
    const images = [50, 2, 17, 65].map((rows) => normalTensor(rows, rows, 48));
    const batch = await pruner.analyzeBatch(images);
    for (const [i, image] of images.entries()) {
      using alone = await pruner.analyze(image);
      expect(batch[i].patches).toBe(image.dims[0] - 1);
      expect(embeddings(batch[i])).toEqual(embeddings(alone));
      expect(batch[i].saliency()).toEqual(alone.saliency());
    }
    const stacked = await pruner.analyzeBatch(
      float32(Float32Array.of(...values(hidden), ...values(hidden)), [2, 50, 48]),
    );
    expect(stacked[0].saliency()).toEqual(stacked[1].saliency());
    expect(await pruner.analyzeBatch([])).toEqual([]);
    for (const image of [...batch, ...stacked]) image.dispose();
  });

  it('prunes images of different size in one call, as it does alone, to the bit', async () => {
    using pruner = await Pruner.load(head, options);
    const images = [50, 2, 17, 65].map((rows) => normalTensor(rows, rows, 48));
    const texts = [7, 1, 3, 12].map((rows) => normalTensor(90 + rows, rows, 20));
    for (const extra of [{}, { maps: true }, { matrices: true, merge: false }] as Partial<PruneOptions>[]) {
      const request = { keepRatio: 0.2, ...extra };
      const batch = await pruner.pruneBatch(images, texts, request);
      expect(pruner.pruneBatchSync(images, texts, request).map(withoutTimings)).toEqual(batch.map(withoutTimings));
      for (const [i, image] of images.entries()) {
        expect(withoutTimings(await pruner.prune(image, texts[i], request))).toEqual(withoutTimings(batch[i]));
        using analysis = await pruner.analyze(image);
        expect(withoutTimings(await analysis.prune(texts[i], request))).toEqual(withoutTimings(batch[i]));
        expect(Object.keys(batch[i].timings)).toHaveLength(9);
        for (const time of Object.values(batch[i].timings)) expect(time).toBeGreaterThanOrEqual(0);
      }
    }
  });

  it('prunes a stack of images for one question', async () => {
    using pruner = await Pruner.load(head, options);
    const other = normalTensor(12, 50, 48);
    const stack = float32(Float32Array.of(...values(hidden), ...values(other)), [2, 50, 48]);
    const question = { embeddings: text, endOfText: 3 };
    const batch = await pruner.pruneBatch(stack, question, { keep: 6, encoding: 'kk' });
    for (const [i, image] of [hidden, other].entries())
      expect(withoutTimings(batch[i])).toEqual(
        withoutTimings(pruner.pruneSync(image, question, { keep: 6, encoding: 'kk' })),
      );
    expect(await pruner.pruneBatch([], text, { keep: 6 })).toEqual([]);
  });

  it('takes and returns float16', async () => {
    using pruner = await Pruner.load(head, options);
    const bits = Uint16Array.from(values(hidden), floatToHalf);
    const rounded = float32(Float32Array.from(bits, halfToFloat), [50, 48]);
    const want = await pruner.prune(rounded, text, { keep: 9 });
    for (const got of [
      await pruner.prune(new Tensor('float16', bits, [1, 50, 48]), text, { keep: 9 }),
      pruner.pruneSync({ data: bits, dims: [50, 48] }, text, { keep: 9 }),
    ]) {
      expect(got.tokens.type).toBe('float16');
      expect(got.indices).toEqual(want.indices);
      const tokens = got.tokens.data as unknown as Uint16Array;
      expect([...new Uint16Array(tokens.buffer, tokens.byteOffset, tokens.length)]).toEqual(
        Array.from(values(want.tokens), floatToHalf),
      );
    }
  });

  it('keeps a share, one token, and all of them', async () => {
    using pruner = await Pruner.load(head, options);
    using image = await pruner.analyze(hidden);
    expect((await image.prune(text, { keepRatio: 0.1 })).indices).toHaveLength(5);
    expect((await image.prune(text, { keepRatio: 0.001 })).indices).toHaveLength(1);
    expect((await image.prune(text, { keepRatio: 1 })).indices).toHaveLength(49);
    const one = await image.prune(text, { keep: 1 });
    expect([...one.counts]).toEqual([49]);
    expect([...one.source]).toEqual([0]);
    const all = await image.prune(text, { keep: 49 });
    expect([...all.indices]).toEqual(Array.from({ length: 49 }, (_, i) => i));
    expect(values(all.tokens)).toEqual(values(hidden).slice(48));
  });

  it('rounds the task share half up', async () => {
    using pruner = await Pruner.load(head, options);
    using image = await pruner.analyze(hidden);
    const byTask = async (keep: number, taskShare?: number) =>
      (await image.prune(text, { keep, taskShare })).source.filter((map) => map === 0).length;
    expect(await byTask(9)).toBe(5);
    expect(await byTask(13, 0.25)).toBe(3);
    expect(await byTask(10, 0.25)).toBe(3);
    expect(await byTask(10, 0.249)).toBe(2);
  });

  it("takes the caller's saliency map and features", async () => {
    using pruner = await Pruner.load(head, options);
    using image = await pruner.analyze(hidden);
    const saliency = new Float32Array(49);
    saliency.set([3, 2, 1], 20);
    const features = normalTensor(9, 49, 10);
    const result = await image.prune(text, { keep: 3, taskShare: 0, saliency, features, maps: true });
    expect([...result.indices]).toEqual([20, 21, 22]);
    expect(result.tokens.dims).toEqual([3, 10]);
    expect(result.maps!.saliency).toEqual(saliency);
    const merged = await pruner.backend.merge({ features, kept: result.indices });
    expect(result.tokens.data).toEqual(merged.tokens.data);
  });

  it('returns kept tokens untouched when merging is off', async () => {
    using pruner = await Pruner.load(head, options);
    const { tokens, indices, assignment, counts } = await pruner.prune(hidden, text, { keep: 4, merge: false });
    indices.forEach((patch, k) => {
      expect(values(tokens).slice(k * 48, (k + 1) * 48)).toEqual(
        values(hidden).slice((patch + 1) * 48, (patch + 2) * 48),
      );
      expect(assignment[patch]).toBe(k);
    });
    expect(assignment.filter((token) => token === -1)).toHaveLength(45);
    expect([...counts]).toEqual([1, 1, 1, 1]);
  });

  it('finds the end-of-text row by index or takes it as a vector', async () => {
    using pruner = await Pruner.load(head, options);
    using image = await pruner.analyze(hidden);
    const byIndex = await image.prune({ embeddings: text, endOfText: 3 }, { keep: 9, maps: true });
    const byVector = await image.prune(
      { embeddings: text, endOfText: values(text).slice(60, 80) },
      { keep: 9, maps: true },
    );
    expect(relativeError(byVector.maps!.task!, byIndex.maps!.task!)).toBeLessThan(1e-6);
    const byDefault = await image.prune(text, { keep: 9, maps: true });
    expect(relativeError(byDefault.maps!.task!, byIndex.maps!.task!)).toBeGreaterThan(1e-3);
  });

  it('keeps what it computed of an image when the caller writes over the hidden states', async () => {
    using pruner = await Pruner.load(head, options);
    const mine = float32(values(hidden).slice(), [50, 48]);
    using image = pruner.analyzeSync(mine);
    const before = await image.prune(text, { keep: 9 });
    values(mine).fill(7);
    expect((await image.prune(text, { keep: 9 })).tokens.data).toEqual(before.tokens.data);
  });

  it('has read its weights when the loading returns', async () => {
    const weights = randomHead(8, shape);
    const hidden = normalTensor(2, 17, shape.width);
    const saliency = async (loading: Promise<Pruner>) => {
      using pruner = await loading;
      return pruner.analyzeSync(hidden).saliency();
    };
    const want = await saliency(Pruner.load(weights, options));
    const bytes = formatHead(weights);
    const loadings = [Pruner.load(bytes, options), Pruner.load(weights, options)];
    bytes.fill(0);
    weights.q.weight.fill(0);
    for (const loading of loadings) expect(await saliency(loading)).toEqual(want);
  });

  it('works without a class token', async () => {
    const plain = randomHead(4, { ...shape, classToken: false });
    using reference = await Pruner.load(plain, { device: 'reference' });
    using pruner = await Pruner.load(plain, options);
    for (const rows of [1, 2, 33]) {
      const image = normalTensor(rows, rows, 48);
      const want = reference.pruneSync(image, text, { keep: 1, maps: true });
      const got = await pruner.prune(image, text, { keep: 1, maps: true });
      expect(got.indices).toEqual(want.indices);
      expect(relativeError(got.maps!.saliency, want.maps!.saliency)).toBeLessThan(1e-4);
      expect(relativeError(got.maps!.task!, want.maps!.task!)).toBeLessThan(1e-4);
    }
  });

  it('is disposed at any time: in flight work ends, later work is refused', async () => {
    const pruner = await Pruner.load(head, options);
    const image = await pruner.analyze(hidden);
    const [analysis, pruning] = [pruner.analyze(hidden), image.prune(text, { keep: 3 })];
    image.dispose();
    pruner.dispose();
    pruner.dispose();
    expect((await pruning).indices).toHaveLength(3);
    (await analysis).dispose();
    await expect(pruner.analyze(hidden)).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    await expect(image.prune(text, { keep: 3 })).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    expect(() => image.saliency()).toThrow(DesapError);
    expect(() => pruner.backend.sync.topK({ scores: Float32Array.of(1), k: 1 })).toThrow(/dispose/);
  });
});

function withoutTimings({ timings: _, tokens, matrices, ...rest }: PruneResult) {
  return { ...rest, tokens: tokens.data, similarity: matrices?.similarity.data };
}

describe('results', () => {
  it('are equal to the bit for every thread count and every run', async () => {
    const big = randomHead(5, { width: 160, heads: 5, projectionDim: 64 });
    const image = normalTensor(6, 145, 160);
    const question = normalTensor(7, 12, 64);
    for (const [, options] of devicesUnderTest().slice(1)) {
      let first: object | undefined;
      for (const threads of [1, 2, 3, 5, 2, 2]) {
        using pruner = await Pruner.load(big, { ...options, threads });
        using analysis = await pruner.analyze(image);
        const { maps, tokens } = await analysis.prune(question, { keep: 20, maps: true });
        const all = { embeddings: embeddings(analysis), ...maps!, tokens: tokens.data };
        first ??= all;
        expect(all).toEqual(first);
      }
    }
  });

  it('name the device and its arithmetic', async () => {
    for (const [name, options] of devicesUnderTest()) {
      using pruner = await Pruner.load(head, options);
      const { device, deviceDescription, precision, backend } = pruner;
      expect(device).toBe({ r: 'reference', c: options.device === 'cuda' ? 'cuda:0' : 'cpu' }[name[0]]);
      expect(precision).toBe('fp32');
      expect(backend).toMatchObject({ device, deviceDescription, precision });
      expect(pruner.backend.fallback).toBeNull();
    }
  });

  it('hold float32 to 1e-4 on data with outliers', async () => {
    const wide = randomHead(8, { width: 128, heads: 2, projectionDim: 64 });
    const image = normal(9, 65 * 128);
    for (const at of [5 * 128 + 3, 40 * 128 + 77]) image[at] += 80;
    const states = float32(image, [65, 128]);
    using reference = await Pruner.load(wide, { device: 'reference' });
    using exact = reference.analyzeSync(states);
    for (const [, options] of devicesUnderTest()) {
      using pruner = await Pruner.load(wide, options);
      using got = pruner.analyzeSync(states);
      expect(relativeError(embeddings(got), embeddings(exact))).toBeLessThan(1e-4);
      expect(relativeError(got.saliency(), exact.saliency())).toBeLessThan(1e-4);
    }
  });
});
