import { expect, it } from 'vitest';
import { EncodeOnce } from '../../src/cli/client/encode-once.js';
import type { EncodedImage, VisionModel } from '../../src/vision/vision-model.js';

it('encodes an image once, and forgets with it what a failed call left', async () => {
  const log: string[] = [];
  const vision = {
    encode: async () => [{ dispose: () => log.push('freed') } as unknown as EncodedImage],
    pruneImages: async () => {
      throw new Error('refused');
    },
  } as unknown as VisionModel;
  const once = new EncodeOnce();
  once.watch(vision);
  const pixelValues = { data: new Float32Array(3), dims: [1, 3] };
  const [image] = await vision.encode({ pixelValues });
  const first = once.take();
  expect(first.encoding).toBeGreaterThan(0);
  expect(first.milliseconds).toBeGreaterThanOrEqual(first.encoding);
  expect(await vision.encode({ pixelValues })).toEqual([image]);
  image.dispose();
  await expect(vision.pruneImages([image], [null])).rejects.toThrow('refused');
  expect(log).toEqual([]);
  once.forget();
  expect(log).toEqual(['freed']);
  expect(once.take()).toEqual({ pruned: undefined, milliseconds: 0, encoding: 0 });
});
