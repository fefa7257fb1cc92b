/** What needs a real GPU: run by `npm run test:cuda` on a machine that has one. */
import { describe, expect, it } from 'vitest';
import { findCudaAddon } from '../../src/devices/cuda.js';
import { HostBuffer, type ImageAnalysis, Pruner } from '../../src/index.js';
import { normal, normalTensor, ROOT, randomHead, realGpu, relativeError, values } from '../support.js';

const reason = realGpu() ? '' : findCudaAddon(ROOT).status.reason;

describe.skipIf(reason)(`on a GPU${reason && ` (skipped: ${reason})`}`, () => {
  const PRECISIONS = ['fp32', 'fp16', 'bf16'] as const;
  // CLIP ViT-L/14 at 336 pixels.
  const head = randomHead(1, { width: 1024, heads: 16, projectionDim: 768 });
  const hidden = normalTensor(2, 577, 1024);
  const text = normalTensor(3, 20, 768);
  const options = { keep: 64, maps: true };

  it('a head of CLIP keeps the tokens that the CPU keeps', async () => {
    using cpu = await Pruner.load(head, { device: 'cpu' });
    using gpu = await Pruner.load(head, { device: 'cuda' });
    const [want, got] = [await cpu.prune(hidden, text, options), await gpu.prune(hidden, text, options)];
    expect(relativeError(got.maps!.task!, want.maps!.task!)).toBeLessThan(1e-4);
    expect(relativeError(got.maps!.saliency, want.maps!.saliency)).toBeLessThan(1e-4);
    expect(got.indices).toEqual(want.indices);
    expect(relativeError(values(got.tokens), values(want.tokens))).toBeLessThan(1e-5);
  });

  it.each(PRECISIONS)('%s gives the same bits a hundred times, alone and among others', async (precision) => {
    using pruner = await Pruner.load(head, { device: 'cuda', precision });
    const first = await pruner.prune(hidden, text, options);
    const others = Array.from({ length: 4 }, (_, i) => normalTensor(10 + i, 100 + 150 * i, 1024));
    for (let run = 0; run < 100; run++) {
      const alone = await pruner.prune(hidden, text, options);
      expect(alone.tokens.data).toEqual(first.tokens.data);
      expect(alone.maps).toEqual(first.maps);
    }
    for (let place = 0; place <= others.length; place++) {
      const batch = await pruner.pruneBatch(others.toSpliced(place, 0, hidden), text, options);
      expect(batch[place].tokens.data).toEqual(first.tokens.data);
      expect(batch[place].maps).toEqual(first.maps);
    }
  });

  it('reads a HostBuffer in place', async () => {
    using pruner = await Pruner.load(head, { device: 'cuda' });
    using buffer = HostBuffer.forTensor('float32', [577, 1024]);
    expect(buffer.pinned).toBe(true);
    buffer.float32().set(values(hidden));
    using image = await pruner.analyze(buffer.tensor('float32', [577, 1024]));
    expect(image.featuresAddress).toBe(buffer.address);
    const [got, want] = [await image.prune(text, options), await pruner.prune(hidden, text, options)];
    expect(got.tokens.data).toEqual(want.tokens.data);
  });

  it('keeps many images in flight apart', async () => {
    using pruner = await Pruner.load(head, { device: 'cuda', precision: 'fp16' });
    const images = Array.from({ length: 16 }, (_, i) => normalTensor(30 + i, 65 + 32 * i, 1024));
    const together = await Promise.all(images.map((image) => pruner.prune(image, text, options)));
    for (const [i, image] of images.entries())
      expect(together[i].tokens.data).toEqual(pruner.pruneSync(image, text, options).tokens.data);
  });

  it('runs out of memory and works again', { timeout: 600_000 }, async () => {
    using pruner = await Pruner.load(randomHead(4, { width: 1024, heads: 16, projectionDim: 32 }), { device: 'cuda' });
    const image = { data: normal(5, 4096 * 1024), dims: [4096, 1024] };
    const analyses: ImageAnalysis[] = [];
    const fill = async () => {
      for (;;) analyses.push(...(await pruner.analyzeBatch(Array(32).fill(image))));
    };
    await expect(fill()).rejects.toMatchObject({ code: 'ERR_OUT_OF_MEMORY' });
    for (const analysis of analyses) analysis.dispose();
    (await pruner.analyze(image)).dispose();
  });
});
