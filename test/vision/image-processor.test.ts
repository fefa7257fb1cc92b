import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import sharp from 'sharp';
import { describe, expect, it } from 'vitest';
import { ImageProcessor, type ImageProcessorConfig } from '../../src/vision/image-processor.js';

const FOLDER = 'models/tiny-llava';
const IMAGE = 'models/eval/images/000.png';
const processor = await ImageProcessor.open(FOLDER);

const plain = (options: object = {}) =>
  sharp({ create: { width: 150, height: 100, channels: 3, background: { r: 10, g: 200, b: 30 }, ...options } });

describe('ImageProcessor', () => {
  it('does not resample an image of the right size', async () => {
    const pixels = await processor.process(IMAGE);
    const { data } = await sharp(IMAGE).removeAlpha().raw().toBuffer({ resolveWithObject: true });
    expect(pixels.dims).toEqual([1, 3, 96, 96]);
    const values = pixels.data as Float32Array;
    for (let c = 0; c < 3; c++)
      for (let i = 0; i < 96 * 96; i++)
        expect(Math.abs(values[c * 96 * 96 + i] - (data[3 * i + c] - 127.5) / 64)).toBeLessThan(1e-6);
  });

  it('takes bytes as well as a path', async () => {
    const fromBytes = await processor.process(new Uint8Array(await readFile(IMAGE)));
    expect(fromBytes.data).toEqual((await processor.process(IMAGE)).data);
  });

  it.each([
    ['transparent', () => plain({ channels: 4, background: { r: 10, g: 200, b: 30, alpha: 0.5 } }).png()],
    ['grey', () => plain().greyscale().png()],
    ['16-bit grey', () => plain().toColourspace('grey16').png()],
    ['16-bit', () => plain().toColourspace('rgb16').png()],
    ['CMYK', () => plain().toColourspace('cmyk').jpeg()],
    ['lossy', () => plain().webp()],
    ['tall and thin', () => plain({ width: 8, height: 900 }).png()],
  ])('reads a %s image', async (_, make) => {
    const { data, width, height } = await processor.rgb(await make().toBuffer());
    expect([width, height, data.length]).toEqual([96, 96, 3 * 96 * 96]);
    expect(new Set(data).size).toBeGreaterThan(0);
  });

  it('drops transparency without blending', async () => {
    const png = await plain({ channels: 4, background: { r: 10, g: 200, b: 30, alpha: 0.25 } })
      .png()
      .toBuffer();
    const [r, g, b] = (await processor.rgb(png)).data;
    expect([r, g, b]).toEqual([10, 200, 30]);
  });

  it('applies the EXIF orientation', async () => {
    const half = { create: { width: 75, height: 100, channels: 3 as const, background: '#ff0000' } };
    const upright = plain()
      .composite([{ input: await sharp(half).png().toBuffer(), left: 0, top: 0 }])
      .png();
    const turned = await sharp(await upright.toBuffer())
      .withMetadata({ orientation: 6 })
      .png()
      .toBuffer();
    const { data } = await processor.rgb(turned);
    // Turned by 90 degrees clockwise, the left half lies on top.
    expect(data[3 * (10 * 96 + 48)]).toBeGreaterThan(240);
    expect(data[3 * (85 * 96 + 48)]).toBeLessThan(20);
  });

  it('resizes the shortest edge and crops the centre', async () => {
    const wide = await ImageProcessor.open({ size: { shortest_edge: 50 }, crop_size: 40, resample: 0 });
    const { width, height, data } = await wide.rgb(await plain().png().toBuffer());
    expect([width, height]).toEqual([40, 40]);
    expect([...data.subarray(0, 3)]).toEqual([10, 200, 30]);
  });

  it('fills what a crop lacks with black', async () => {
    const larger = await ImageProcessor.open({ do_resize: false, crop_size: { width: 152, height: 102 } });
    const { data } = await larger.rgb(await plain().png().toBuffer());
    expect([...data.subarray(0, 3)]).toEqual([0, 0, 0]);
    expect([...data.subarray(3 * 153, 3 * 154)]).toEqual([10, 200, 30]);
  });

  it('refuses an animation', async () => {
    const frames = [await plain().png().toBuffer(), await plain({ background: 'blue' }).png().toBuffer()];
    const gif = await sharp(frames, { join: { animated: true } })
      .gif()
      .toBuffer();
    await expect(processor.process(gif)).rejects.toMatchObject({ code: 'ERR_VALUE', message: /2 frames/ });
  });

  it.each([
    ['a missing file', 'no/such.png'],
    ['a text file', 'package.json'],
    ['a folder', 'models'],
    ['noise', new Uint8Array(64).fill(7)],
    ['nothing', new Uint8Array(0)],
  ])('refuses %s', async (_, source) => {
    await expect(processor.process(source)).rejects.toMatchObject({ name: 'DesapError' });
  });

  it('refuses a truncated image', async () => {
    const bytes = await readFile(IMAGE);
    await expect(processor.process(bytes.subarray(0, bytes.length >> 1))).rejects.toMatchObject({ code: 'ERR_FILE' });
  });

  it.each<[string, object]>([
    ["image_processor_type: got 'LlavaNextImageProcessor'", { image_processor_type: 'LlavaNextImageProcessor' }],
    ["image_processor_type: got 'Qwen2VLImageProcessorFast'", { image_processor_type: 'Qwen2VLImageProcessorFast' }],
    ["image_processor_type: got 'constructor'", { image_processor_type: 'constructor' }],
    ['image_processor_type: got 7', { image_processor_type: 7 }],
    ["feature_extractor_type: got 'DetrFeatureExtractor'", { feature_extractor_type: 'DetrFeatureExtractor' }],
    ['image_grid_pinpoints: got', { image_processor_type: 'CLIPImageProcessor', image_grid_pinpoints: [[336, 672]] }],
    ['do_image_splitting: got true', { do_image_splitting: true }],
    ["image_aspect_ratio: got 'pad'", { image_aspect_ratio: 'pad' }],
    ['crop_pct: got 0.9', { crop_pct: 0.9 }],
    ['do_pad: got true, wanted an image_processor_type', { do_pad: true }],
    ["do_pad: got 'yes'", { image_processor_type: 'LlavaImageProcessor', do_pad: 'yes' }],
    ['image_mean: got [100, 0, 0], wanted numbers from 0 to 1', llavaPad({ image_mean: [100, 0, 0] })],
    ['pad_size: got the edges shortest_edge', clipPad({ shortest_edge: 4 })],
    ['do_resize: got 1,', { do_resize: 1 }],
    ['resample: got 6', { resample: 6 }],
    ['resample: got null', { resample: null }],
    ["resample: got 'bicubic'", { resample: 'bicubic' }],
    ['size: got null', { size: null }],
    ["size: got '224'", { size: '224' }],
    ['size: got the edges longest_edge', { size: { longest_edge: 224 } }],
    ['size: got the edges max_pixels min_pixels', { size: { min_pixels: 9, max_pixels: 99 } }],
    ['size: got 0', { size: 0 }],
    ['size.shortest_edge: got 1000000000', { size: { shortest_edge: 1e9 } }],
    ['size.width: got 0.5', { size: { height: 3, width: 0.5 } }],
    ['crop_size: got the edges width', { crop_size: { width: 3 } }],
    ['crop_size: got null', { crop_size: null }],
    ['crop_size.height: got 1000000000', { crop_size: { width: 3, height: 1e9 } }],
    ['rescale_factor: got null', { rescale_factor: null }],
    ['image_mean: got null', { image_mean: null }],
    ['image_mean: got [0]', { image_mean: [0] }],
    ["image_mean: got '0.5'", { image_mean: '0.5' }],
    ['image_std: got [1, 0, 1]', { image_std: [1, 0, 1] }],
    ['mean: got [0.5, 0.5, 0.5], wanted the field image_mean', { mean: [0.5, 0.5, 0.5] }],
    ['std: got 1, wanted the field image_std', { std: 1 }],
    ['source: got null, wanted a model folder', null as never],
    ['source: got undefined, wanted a model folder', undefined as never],
    [
      "image_processor_type: got 'PixtralImageProcessor', wanted 'CLIPImageProcessor' | ",
      { image_processor_type: 'PixtralImageProcessor' },
    ],
  ])('refuses with "%s"', async (message, config) => {
    await expect(ImageProcessor.open(config)).rejects.toMatchObject({
      name: 'DesapError',
      code: 'ERR_VALUE',
      message: expect.stringContaining(message),
    });
  });

  it('normalises images only', () => {
    const refused = (message: RegExp) =>
      expect.objectContaining({ name: 'DesapError', message: expect.stringMatching(message) });
    expect(() => processor.normalize(null as never)).toThrow(refused(/^image: got null, wanted an image/));
    expect(() => processor.normalize({ data: new Uint8Array(5), width: 1, height: 2 })).toThrow(
      refused(/^image\.data: got 5 bytes for 1 x 2 pixels, wanted 3 a pixel/),
    );
  });

  it('ignores fields that change nothing', async () => {
    const config = JSON.parse(await readFile(join(FOLDER, 'preprocessor_config.json'), 'utf8'));
    const more = { image_grid_pinpoints: [], do_image_splitting: false, crop_pct: null, patch_size: 14, device: 'cpu' };
    const same = await ImageProcessor.open({ ...config, ...more });
    expect((await same.process(IMAGE)).data).toEqual((await processor.process(IMAGE)).data);
  });

  it('reads processor_config.json of transformers 5, which goes before preprocessor_config.json', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'desap-image-'));
    const write = (name: string, value: object) => writeFile(join(folder, name), JSON.stringify(value));
    const size = async () => (await (await ImageProcessor.open(folder)).rgb(IMAGE)).width;
    try {
      await write('processor_config.json', { processor_class: 'LlavaProcessor', patch_size: 14 });
      await expect(size()).rejects.toMatchObject({
        code: 'ERR_FILE',
        message: expect.stringMatching(/neither preprocessor_config.json nor processor_config.json/),
      });
      await write('preprocessor_config.json', { crop_size: 40 });
      expect(await size()).toBe(40);
      await write('processor_config.json', { image_processor: { crop_size: 48 }, patch_size: 14 });
      expect(await size()).toBe(48);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it('computes only what a crop keeps: long thin images cost little', async () => {
    const clip = await ImageProcessor.open({ size: { shortest_edge: 336 }, crop_size: 336 });
    const square = await ImageProcessor.open(llavaPad({ size: { shortest_edge: 336 }, crop_size: 336 }));
    for (const [width, height] of [
      [1, 13_000],
      [100_000, 1],
    ]) {
      const png = await plain({ width, height }).png().toBuffer();
      const memory = process.memoryUsage().arrayBuffers;
      const start = performance.now();
      const whole = await clip.rgb(png);
      const padded = await square.rgb(png);
      expect(performance.now() - start).toBeLessThan(5_000);
      expect(process.memoryUsage().arrayBuffers - memory).toBeLessThan(64e6);
      expect([...whole.data.subarray(0, 3)]).toEqual([10, 200, 30]);
      // The mean colour of CLIP in bytes.
      expect([...padded.data.subarray(0, 3)]).toEqual([122, 116, 104]);
      expect([whole.width, whole.height, padded.width, padded.height]).toEqual([336, 336, 336, 336]);
    }
  });

  it.each<[string, ImageProcessorConfig, number, number, RegExp]>([
    ['too many pixels', {}, 200_000, 1_000, /^image: got 200000 x 1000 pixels, wanted at most 178956970/],
    [
      'a result without end',
      { do_center_crop: false },
      1,
      5_000,
      /^image: got 1 x 5000 pixels, which become 224 x 1120000/,
    ],
    ['nothing left', { size: { shortest_edge: 9, longest_edge: 9 } }, 1, 40, /which become 0 x 9/],
  ])('refuses %s', async (_, config, width, height, message) => {
    const png = claiming(await plain({ width: 1, height }).png().toBuffer(), width);
    await expect((await ImageProcessor.open(config)).process(png)).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(message),
    });
  });

  it('refuses an image beyond pad_size', async () => {
    const small = await ImageProcessor.open(clipPad({ height: 100, width: 300 }));
    await expect(small.process(IMAGE)).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: 'image: got 224 x 224 pixels, wanted at most pad_size, 300 x 100',
    });
  });

  it('refuses a folder without a configuration', async () => {
    await expect(ImageProcessor.open('test')).rejects.toMatchObject({ code: 'ERR_FILE' });
  });
});

/** The PNG with another width in its header. */
function claiming(png: Buffer, width: number): Buffer {
  png.writeUInt32BE(width, 16);
  png.writeUInt32BE(crc32(png.subarray(12, 29)), 29);
  return png;
}

function llavaPad(more: object): ImageProcessorConfig {
  return { image_processor_type: 'LlavaImageProcessor', do_pad: true, ...more };
}

function clipPad(pad_size: ImageProcessorConfig['pad_size']): ImageProcessorConfig {
  return { image_processor_type: 'CLIPImageProcessor', do_pad: true, pad_size };
}
