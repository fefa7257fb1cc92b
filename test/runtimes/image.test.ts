import { readFile } from 'node:fs/promises';
import sharp from 'sharp';
import { describe, expect, it } from 'vitest';
import { ImageProcessor } from '../../src/runtimes/image.js';

const FOLDER = 'models/tiny-llava';
const PICTURE = 'models/eval/images/000.png';
const processor = await ImageProcessor.open(FOLDER);

const plain = (options: object = {}) =>
  sharp({ create: { width: 150, height: 100, channels: 3, background: { r: 10, g: 200, b: 30 }, ...options } });

describe('ImageProcessor', () => {
  it('does not resample a picture of the right size', async () => {
    const pixels = await processor.process(PICTURE);
    const { data } = await sharp(PICTURE).removeAlpha().raw().toBuffer({ resolveWithObject: true });
    expect(pixels.dims).toEqual([1, 3, 96, 96]);
    const values = pixels.data as Float32Array;
    for (let c = 0; c < 3; c++)
      for (let i = 0; i < 96 * 96; i++)
        expect(Math.abs(values[c * 96 * 96 + i] - (data[3 * i + c] - 127.5) / 64)).toBeLessThan(1e-6);
  });

  it('takes bytes as well as a path', async () => {
    const fromBytes = await processor.process(new Uint8Array(await readFile(PICTURE)));
    expect(fromBytes.data).toEqual((await processor.process(PICTURE)).data);
  });

  it.each([
    ['transparent', () => plain({ channels: 4, background: { r: 10, g: 200, b: 30, alpha: 0.5 } }).png()],
    ['grey', () => plain().greyscale().png()],
    ['16-bit grey', () => plain().toColourspace('grey16').png()],
    ['16-bit', () => plain().toColourspace('rgb16').png()],
    ['CMYK', () => plain().toColourspace('cmyk').jpeg()],
    ['lossy', () => plain().webp()],
    ['tall and thin', () => plain({ width: 8, height: 900 }).png()],
  ])('reads a %s picture', async (_, make) => {
    const { data, width, height } = await processor.picture(await make().toBuffer());
    expect([width, height, data.length]).toEqual([96, 96, 3 * 96 * 96]);
    expect(new Set(data).size).toBeGreaterThan(0);
  });

  it('drops transparency without blending', async () => {
    const png = await plain({ channels: 4, background: { r: 10, g: 200, b: 30, alpha: 0.25 } })
      .png()
      .toBuffer();
    const [r, g, b] = (await processor.picture(png)).data;
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
    const { data } = await processor.picture(turned);
    // Turned by 90 degrees clockwise, the left half lies on top.
    expect(data[3 * (10 * 96 + 48)]).toBeGreaterThan(240);
    expect(data[3 * (85 * 96 + 48)]).toBeLessThan(20);
  });

  it('resizes the shortest edge and crops the centre', async () => {
    const wide = await ImageProcessor.open({ size: { shortest_edge: 50 }, crop_size: 40, resample: 0 });
    const { width, height, data } = await wide.picture(await plain().png().toBuffer());
    expect([width, height]).toEqual([40, 40]);
    expect([...data.subarray(0, 3)]).toEqual([10, 200, 30]);
  });

  it('fills what a crop lacks with black', async () => {
    const larger = await ImageProcessor.open({ do_resize: false, crop_size: { width: 152, height: 102 } });
    const { data } = await larger.picture(await plain().png().toBuffer());
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

  it('refuses a truncated picture', async () => {
    const bytes = await readFile(PICTURE);
    await expect(processor.process(bytes.subarray(0, bytes.length >> 1))).rejects.toMatchObject({ code: 'ERR_FILE' });
  });

  it.each([
    [{ resample: 6 }],
    [{ image_std: [1, 0, 1] }],
    [{ image_mean: [0] }],
    [{ size: 0 }],
    [{ crop_size: { width: 3 } }],
  ])('refuses the configuration %j', async (config) => {
    const attempt = async () => (await ImageProcessor.open(config)).process(PICTURE);
    await expect(attempt()).rejects.toMatchObject({ code: 'ERR_VALUE' });
  });

  it('refuses a folder without a configuration', async () => {
    await expect(ImageProcessor.open('test')).rejects.toMatchObject({ code: 'ERR_FILE' });
  });
});
