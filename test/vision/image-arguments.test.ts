import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { runInNewContext } from 'node:vm';
import { RawImage, Tensor as TransformersTensor } from '@huggingface/transformers';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Tensor, type TensorLike } from '../../src/tensor.js';
import { ImageProcessor, type ImageSource } from '../../src/vision/image-processor.js';
import { openVisionModel } from '../../src/vision/open.js';
import type { VisionModel } from '../../src/vision/vision-model.js';

const IMAGE = 'models/eval/demo/02.png';
const QUESTION = 'what color is the star ?';
const bytes = new Uint8Array(await readFile(IMAGE));
const raw = await sharp(IMAGE).ensureAlpha().raw().toBuffer({ resolveWithObject: true });
const rgba = { data: new Uint8Array(raw.data), width: raw.info.width, height: raw.info.height };

let images: ImageProcessor;
let vision: VisionModel;
beforeAll(async () => {
  images = await ImageProcessor.open('models/tiny-llava');
  vision = await openVisionModel('models/tiny-llava', { clip: 'models/tiny-clip' });
});
afterAll(() => vision.dispose());

/** A value of another realm, whose classes are not those of this one. */
function foreign<T>(expression: string, values: object): T {
  return runInNewContext(expression, values);
}

/** Vitest compares arrays of this length too slowly. */
function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length > 0 && Buffer.compare(a, b) === 0;
}

function detached(): ArrayBuffer {
  const buffer = new ArrayBuffer(64);
  structuredClone(buffer, { transfer: [buffer] });
  return buffer;
}

describe('images are taken as', () => {
  const shared = new SharedArrayBuffer(bytes.length);
  new Uint8Array(shared).set(bytes);
  const offset = new Uint8Array(bytes.length + 7);
  offset.set(bytes, 5);
  const grey = Uint8Array.from({ length: 96 * 96 }, (_, i) => rgba.data[4 * i]);
  const base64 = Buffer.from(bytes).toString('base64');

  it.each<[string, () => unknown]>([
    ['a path', () => IMAGE],
    ['a file: URL', () => pathToFileURL(resolve(IMAGE))],
    ['the text of a file: URL', () => pathToFileURL(resolve(IMAGE)).href],
    ['a data: URL', () => `data:image/png;base64,${base64}`],
    ['a data: URL with escapes', () => new URL(`data:image/png;base64,${encodeURIComponent(base64)}`)],
    ['a Buffer', () => Buffer.from(bytes)],
    ['a Uint8Array', () => bytes],
    ['a part of one', () => offset.subarray(5, 5 + bytes.length)],
    ['a Uint8ClampedArray', () => new Uint8ClampedArray(bytes)],
    ['a DataView', () => new DataView(offset.buffer, 5, bytes.length)],
    ['an ArrayBuffer', () => bytes.slice().buffer],
    ['a SharedArrayBuffer', () => shared],
    ['a Blob', () => new Blob([bytes])],
    ['a File', () => new File([bytes], 'a.png')],
    ['a Response', () => new Response(bytes)],
    ["another realm's Uint8Array", () => foreign('Uint8Array.from(bytes)', { bytes })],
    ["another realm's ArrayBuffer", () => foreign('Uint8Array.from(bytes).buffer', { bytes })],
    ['a RawImage', () => new RawImage(rgba.data, 96, 96, 4)],
    ['a RawImage of three channels', () => new RawImage(rgba.data, 96, 96, 4).rgb()],
    ['an ImageData', () => ({ ...rgba, data: new Uint8ClampedArray(rgba.data), colorSpace: 'srgb' })],
    ["another realm's pixels", () => foreign('({ ...rgba, data: Uint8Array.from(rgba.data) })', { rgba })],
    ['its own image', () => images.rgb(IMAGE)],
  ])('%s', async (_, make) => {
    const image = await images.rgb((await make()) as ImageSource);
    expect(same(image.data, (await images.rgb(IMAGE)).data)).toBe(true);
  });

  it('grey pixels, with and without transparency', async () => {
    const both = Uint8Array.from({ length: 2 * grey.length }, (_, i) => (i % 2 ? 9 : grey[i >> 1]));
    const rgb = await images.rgb({ data: grey, width: 96, height: 96 });
    expect(
      same(
        rgb.data,
        rgb.data.map((_, i) => grey[Math.floor(i / 3)]),
      ),
    ).toBe(true);
    const { data } = await images.rgb({ data: both, width: 96, height: 96, channels: 2 });
    expect(same(data, rgb.data)).toBe(true);
  });

  it('bytes that are changed or transferred afterwards', async () => {
    const mine = bytes.slice();
    const pixels = { ...rgba, data: rgba.data.slice() };
    const pending = [images.rgb(mine), images.rgb(pixels)];
    mine.fill(0);
    structuredClone(pixels.data, { transfer: [pixels.data.buffer] });
    const want = await images.rgb(IMAGE);
    for (const image of await Promise.all(pending)) expect(same(image.data, want.data)).toBe(true);
  });

  it.each<[string, (values: Float32Array) => unknown]>([
    ["onnxruntime's tensor", (values) => new Tensor('float32', values, [1, 3, 96, 96])],
    ["Transformers.js's tensor", (values) => new TransformersTensor('float32', values, [1, 3, 96, 96])],
    ['data and dims', (data) => ({ data, dims: [1, 3, 96, 96] })],
    ["another realm's", (data) => foreign('({ data: Float32Array.from(data), dims: [1, 3, 96, 96] })', { data })],
  ])('pixel_values: %s', async (_, make) => {
    const values = (await images.process(IMAGE)).data as Float32Array;
    const [plain] = await vision.encode({ pixelValues: new Tensor('float32', values, [1, 3, 96, 96]) });
    const [image] = await vision.encode({ pixelValues: make(values) as TensorLike });
    const options = { keep: 16 };
    expect((await image.prune(QUESTION, options)).indices).toEqual((await plain.prune(QUESTION, options)).indices);
    expect((await image.all()).data).toEqual((await plain.all()).data);
    for (const one of [image, plain]) one.dispose();
  });
});

describe('images are refused', () => {
  const spent = async () => {
    const response = new Response(bytes);
    await response.arrayBuffer();
    return response;
  };

  it.each<[string, () => unknown, string, RegExp]>([
    ['undefined', () => undefined, 'ERR_VALUE', /^image: got undefined, wanted a path, a file:/],
    ['null', () => null, 'ERR_VALUE', /^image: got null/],
    ['a number', () => 7, 'ERR_VALUE', /^image: got 7/],
    ['a function', () => () => bytes, 'ERR_VALUE', /^image: got/],
    ['no text', () => '', 'ERR_VALUE', /^image: got a string of 0 characters/],
    [
      'bare base64',
      () => Buffer.from(bytes).toString('base64').padEnd(5000),
      'ERR_VALUE',
      /a string of \d+ characters/,
    ],
    ['an http URL', () => 'https://example.org/a.png', 'ERR_VALUE', /^image: got 'https:.*await fetch/],
    ['an http URL object', () => new URL('http://example.org/a.png'), 'ERR_VALUE', /^image: got 'http:.*await fetch/],
    ['a blob: URL', () => URL.createObjectURL(new Blob([bytes])), 'ERR_VALUE', /^image: got 'blob:/],
    ['a file: URL of another host', () => 'file://host/a.png', 'ERR_VALUE', /wanted the URL of a file/],
    ['a file: URL of no file', () => 'file:///no/such.png', 'ERR_FILE', /^\/no\/such.png: cannot be read/],
    ['a data: URL of text', () => 'data:text/plain,hello', 'ERR_VALUE', /^image: got data:text.*base64/],
    ['a data: URL with broken escapes', () => 'data:image/png;base64,%E0%A4', 'ERR_VALUE', /broken % escapes/],
    ['a data: URL of something else', () => 'data:image/png;base64,aGVsbG8=', 'ERR_FILE', /^image: not an image/],
    ['an array', () => [IMAGE, IMAGE], 'ERR_VALUE', /^image: got an array of 2/],
    ['an empty object', () => ({}), 'ERR_VALUE', /^image: got Object/],
    ['an object without a class', () => Object.create(null), 'ERR_VALUE', /^image: got an object/],
    ['a promise', () => ({ promise: Promise.resolve(IMAGE) }).promise.then(() => Promise), 'ERR_VALUE', /^image: got/],
    ['floats', () => new Float32Array(12), 'ERR_VALUE', /^image: got Float32Array.*those of bytes/],
    ['an empty Blob', () => new Blob([]), 'ERR_FILE', /^image: not an image/],
    ['a Response that was read', spent, 'ERR_VALUE', /^image: got a Response that cannot be read/],
    ['a detached buffer', detached, 'ERR_DETACHED', /^image: got memory that was detached/],
    ['float pixels', () => ({ ...rgba, data: new Float32Array(9216) }), 'ERR_DTYPE', /^image.data: got Float32Array/],
    ['pixels without a size', () => ({ data: bytes }), 'ERR_SHAPE', /^image: got undefined x undefined/],
    ['too few pixels', () => ({ ...rgba, height: 97 }), 'ERR_SHAPE', /^image.data: got 36864 bytes for 96 x 97/],
    ['other channels', () => ({ ...rgba, channels: 3 }), 'ERR_SHAPE', /of 3 channels/],
  ])('%s', async (_, make, code, message) => {
    await expect(images.process((await make()) as ImageSource)).rejects.toMatchObject({
      name: 'DesapError',
      code,
      message: expect.stringMatching(message),
    });
  });

  it('a tensor', async () => {
    const tensor = { data: new Float32Array(3 * 96 * 96), dims: [1, 3, 96, 96] };
    await expect(images.process(tensor as never)).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(/^image: got a tensor \[1, 3, 96, 96\], wanted a path/),
    });
  });
});

describe('pixel_values are refused', () => {
  const pixels = (dims: number[], length = dims.reduce((a, b) => a * b)) => ({ data: new Float32Array(length), dims });
  const disposed = () => {
    const tensor = new Tensor('float32', new Float32Array(3), [1, 3, 1, 1]);
    tensor.dispose();
    return tensor;
  };

  it.each<[string, () => unknown, string, RegExp]>([
    ['one without a batch', () => pixels([3, 96, 96]), 'ERR_SHAPE', /^pixelValues.dims: got \[3, 96, 96\]/],
    ['another channel count', () => pixels([1, 4, 96, 96]), 'ERR_SHAPE', /^pixelValues: got .*which the vision/],
    ['another size', () => pixels([1, 3, 40, 40]), 'ERR_SHAPE', /got .*\[1, 3, 40, 40\], which the vision/],
    ['too few values', () => pixels([1, 3, 96, 96], 9), 'ERR_SHAPE', /^pixelValues: got 9 elements/],
    [
      'doubles',
      () => ({ data: new Float64Array(27648), dims: [1, 3, 96, 96] }),
      'ERR_DTYPE',
      /^pixelValues: got data in Float64/,
    ],
    ['a disposed tensor', disposed, 'ERR_DISPOSED', /^pixelValues: got a tensor without its data/],
  ])('%s', async (_, make, code, message) => {
    const encoded = vision.encode({ pixelValues: make() as TensorLike });
    await expect(encoded.then(([image]) => image.all())).rejects.toMatchObject({
      name: 'DesapError',
      code,
      message: expect.stringMatching(message),
    });
  });
});
