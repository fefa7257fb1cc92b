import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { readSafeTensors } from '../../src/safetensors.js';
import { AnyresImageProcessor, type AnyresImageProcessorConfig } from '../../src/vision/anyres-images.js';

const FOLDER = 'test/fixtures/images';

/** make_anyres.py says how it was made. */
interface Case {
  readonly files: readonly string[];
  readonly config: AnyresImageProcessorConfig;
  readonly sizes: readonly (readonly number[])[];
  readonly dims: readonly number[];
  readonly expected: string;
}

const cases: Case[] = JSON.parse(readFileSync(join(FOLDER, 'anyres.json'), 'utf8'));
const { tensors } = await readSafeTensors(join(FOLDER, 'anyres.safetensors'));

describe('AnyresImageProcessor', () => {
  it.each(cases.map((one) => [one.files.join(' '), one] as const))(
    'makes the tiles of Hugging Face: %s',
    async (_, { files, config, sizes, dims, expected }) => {
      const processor = await AnyresImageProcessor.open(config);
      const { pixelValues, imageSizes } = await processor.process(files.map((file) => join(FOLDER, file)));
      expect(pixelValues.dims).toEqual(dims);
      expect([...(imageSizes.data as BigInt64Array)].map(Number)).toEqual(sizes.flat());
      const { dtype, bytes } = tensors.get(expected)!;
      const wanted = dtype === 'U8' ? bytes : new Float32Array(bytes.slice().buffer);
      expect(Float32Array.from(pixelValues.data as Float32Array)).toEqual(Float32Array.from(wanted));
    },
  );

  it('takes a wire of pixels and a single one', async () => {
    const processor = await AnyresImageProcessor.open('test/fixtures/families/llava_next');
    for (const [width, height] of [
      [10000, 1],
      [1, 10000],
      [1, 1],
    ]) {
      const { pixelValues } = await processor.process({
        data: new Uint8Array(3 * width * height).fill(9),
        width,
        height,
      });
      expect(pixelValues.dims.slice(2)).toEqual([3, 32, 32]);
    }
  });

  it.each([
    ['another kind', { image_processor_type: 'CLIPImageProcessor' }, /^image_processor_type: got 'CLIPImageProcessor'/],
    ['no sizes', { image_grid_pinpoints: [] }, /^image_grid_pinpoints: got \[\], wanted 1 to/],
    [
      'a size that is cut with a rest',
      { image_grid_pinpoints: [[24, 30]] },
      /^image_grid_pinpoints\[0\]: got \[24, 30\]/,
    ],
    [
      'tiles that are no squares',
      { crop_size: { height: 12, width: 16 } },
      /^size: got the edges 12, 12, 16, 12 of size and crop_size/,
    ],
    ['fields of other processors', { crop_to_patches: true }, /^crop_to_patches: got true/],
  ])('refuses %s', async (_, change, message) => {
    const config = { ...cases[0].config, ...change } as AnyresImageProcessorConfig;
    await expect(AnyresImageProcessor.open(config)).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(message),
    });
  });

  it('refuses no image', async () => {
    const processor = await AnyresImageProcessor.open(cases[0].config);
    await expect(processor.process([])).rejects.toMatchObject({ code: 'ERR_VALUE', message: /^images: got \[\]/ });
  });
});
