/** The forms in which an image is given. Objects are recognised by their properties, since their class may be another realm's. */
import { fileURLToPath } from 'node:url';
import { types } from 'node:util';
import { DesapError, describe, invalid, mismatch } from '../../errors.js';
import { readBytes } from '../../files.js';
import { limits } from '../../limits.js';
import { fields } from '../../options.js';
import { isArray, plain } from '../../tensor.js';
import { decode, rgbOf } from './decode.js';
import type { RgbImage } from './extent.js';

/** Decoded pixels: row-major, one byte a channel, 1 (grey) to 4 (RGBA) channels; a `RawImage` of Transformers.js, an `ImageData`. */
export interface Pixels {
  readonly data: Uint8Array | Uint8ClampedArray;
  readonly width: number;
  readonly height: number;
  /** Default: what the length of `data` says. */
  readonly channels?: number;
}

/**
 * An image: an encoded file (PNG, JPEG, WebP, ...) as a path, a `file:` or `data:` URL, bytes (a typed array of bytes, a `Buffer`, an
 * `ArrayBuffer`), or a `Blob`; or its decoded pixels.
 */
export type ImageSource =
  | string
  | URL
  | Uint8Array
  | Uint8ClampedArray
  | DataView
  | ArrayBuffer
  | SharedArrayBuffer
  | { arrayBuffer(): Promise<ArrayBuffer> }
  | Pixels;

const WANTED =
  'a path, a file: or data: URL, the bytes of an encoded image (Uint8Array, ArrayBuffer, Blob) or pixels ({ data, width, height })';
/** Longer than any path: an image's bytes in base64, for example. */
const MAX_PATH = 4096;

/**
 * The pixels of an image in any of its forms, upright, RGB. Bytes are copied before anything else happens.
 * @throws DesapError `ERR_VALUE` for a value that is not an {@link ImageSource}; as {@link decode}
 */
export async function readImage(source: ImageSource): Promise<RgbImage> {
  if (typeof source === 'string') return fromText(source);
  if (typeof source !== 'object' || source === null) throw invalid('ERR_VALUE', 'image', source, WANTED);
  if (types.isAnyArrayBuffer(source) || ArrayBuffer.isView(source)) return decode(copyOf(source), 'image');
  const parts = fields<Parts>('image', source as Parts, [
    ...(['href', 'arrayBuffer', 'dims', 'data', 'width', 'height', 'channels'] as const),
  ]);
  if (typeof parts.href === 'string') return fromText(parts.href);
  if (typeof parts.arrayBuffer === 'function') return decode(await bytesOf(source as Blob), 'image');
  if (parts.dims === undefined && ArrayBuffer.isView(parts.data)) return fromPixels(parts as Pixels);
  if (parts.dims !== undefined) throw mismatch('ERR_VALUE', 'image', `a tensor ${describe(parts.dims)}`, WANTED);
  throw mismatch('ERR_VALUE', 'image', isArray(source) ? `an array of ${source.length}` : describe(source), WANTED);
}

/** What tells the forms of an image apart. */
type Parts = { readonly href?: unknown; readonly arrayBuffer?: unknown; readonly dims?: unknown } & Partial<Pixels>;

async function fromText(text: string): Promise<RgbImage> {
  const scheme = /^(https?|file|data|blob):/i.exec(text)?.[1].toLowerCase();
  switch (scheme) {
    case undefined:
      if (text.length > 0 && text.length <= MAX_PATH) return decode(await readBytes(text, limits().imageBytes), text);
      throw mismatch('ERR_VALUE', 'image', `a string of ${text.length} characters`, WANTED);
    case 'file':
      return decode(await readBytes(pathOf(text), limits().imageBytes), text);
    case 'data':
      return decode(fromDataUrl(text), 'image');
    default:
      throw invalid(
        'ERR_VALUE',
        'image',
        text,
        `what is behind the URL: nothing is fetched here; pass await (await fetch(url)).blob()`,
      );
  }
}

function pathOf(url: string): string {
  try {
    return fileURLToPath(url);
  } catch (cause) {
    throw new DesapError('ERR_VALUE', `image: got ${url}, wanted the URL of a file: ${(cause as Error).message}`, {
      cause,
    });
  }
}

function fromDataUrl(url: string): Uint8Array {
  const comma = url.indexOf(',');
  if (comma < 0 || !/;base64$/i.test(url.slice(0, comma).trimEnd()))
    throw mismatch('ERR_VALUE', 'image', `${url.slice(0, 60)}...`, 'a data: URL with ;base64, and the bytes behind it');
  return Buffer.from(unescaped(url.slice(comma + 1)), 'base64');
}

function unescaped(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch (cause) {
    throw new DesapError('ERR_VALUE', 'image: got a data: URL with broken % escapes, wanted base64', { cause });
  }
}

async function bytesOf(source: { arrayBuffer(): Promise<ArrayBuffer> }): Promise<Uint8Array> {
  try {
    return new Uint8Array(await source.arrayBuffer());
  } catch (cause) {
    const name = describe(source);
    throw new DesapError('ERR_VALUE', `image: got a ${name} that cannot be read: ${(cause as Error).message}`, {
      cause,
    });
  }
}

function copyOf(source: ArrayBufferLike | ArrayBufferView): Uint8Array {
  if (ArrayBuffer.isView(source) && !isBytes(source))
    throw invalid('ERR_VALUE', 'image', source, `${WANTED}; of typed arrays those of bytes`);
  try {
    const view = ArrayBuffer.isView(source)
      ? new Uint8Array(source.buffer, source.byteOffset, source.byteLength)
      : new Uint8Array(source);
    return new Uint8Array(view);
  } catch (cause) {
    throw new DesapError('ERR_DETACHED', 'image: got memory that was detached or transferred, wanted its bytes', {
      cause,
    });
  }
}

function isBytes(view: ArrayBufferView): boolean {
  return ((view as Uint8Array).BYTES_PER_ELEMENT ?? 1) === 1;
}

function fromPixels(source: Pixels): RgbImage {
  const { width, height } = source;
  if (!types.isUint8Array(source.data) && !types.isUint8ClampedArray(source.data))
    throw invalid('ERR_DTYPE', 'image.data', source.data, 'Uint8Array or Uint8ClampedArray');
  const data = plain(source.data);
  const sizes = [width, height].every((edge) => Number.isSafeInteger(edge) && edge > 0);
  const { imagePixels } = limits();
  if (!sizes || width * height > imagePixels)
    throw mismatch(
      'ERR_SHAPE',
      'image',
      `${describe(width)} x ${describe(height)} pixels`,
      `a width and a height, 1 to ${imagePixels} pixels`,
    );
  const channels = source.channels ?? data.length / (width * height);
  if (![1, 2, 3, 4].includes(channels) || data.length !== width * height * channels)
    throw mismatch(
      'ERR_SHAPE',
      'image.data',
      `${data.length} bytes for ${width} x ${height} pixels of ${describe(channels)} channels`,
      '1 to 4 bytes a pixel',
    );
  return rgbOf({ data: copyOf(data), width, height, channels });
}
