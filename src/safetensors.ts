import { DesapError } from './errors.js';
import { type OpenFile, readPart } from './files.js';
import { limits } from './limits.js';
import { bytesOf, halfToFloat } from './tensor.js';

/** A tensor as a safetensors file stores it: its type name, shape and bytes (not copied). */
export interface StoredTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** The content of a safetensors file. */
export interface SafeTensors {
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  readonly metadata: Readonly<Record<string, string>>;
}

/** Bytes of one element. Files may have tensors of other types too (F8_E4M3, F4, C64, ...): those are refused where one is read. */
const ITEM_SIZE: ReadonlyMap<string, number> = new Map(
  Object.entries({
    F64: 8,
    F32: 4,
    F16: 2,
    BF16: 2,
    I64: 8,
    I32: 4,
    I16: 2,
    I8: 1,
    U8: 1,
    U16: 2,
    U32: 4,
    U64: 8,
    BOOL: 1,
  }),
);

/**
 * Reads a safetensors container: 8 bytes header length, a JSON header, the tensors' bytes.
 * Every offset is checked against the file, and every extent of a known type against its offsets, before anything is handed out.
 *
 * @param bytes the whole file
 * @param name what the error messages call it
 * @throws DesapError `ERR_FILE` when the container is truncated, oversized or contradicts itself
 */
export function parseSafeTensors(bytes: Uint8Array, name = 'safetensors'): SafeTensors {
  const length = headerLength(bytes, bytes.length, name);
  const { places, metadata } = parseHeader(bytes.subarray(8, 8 + length), bytes.length - 8 - length, name);
  const data = bytes.subarray(8 + length);
  const tensors = [...places].map(
    ([key, { dtype, shape, begin, end }]) => [key, { dtype, shape, bytes: data.subarray(begin, end) }] as const,
  );
  return { tensors: new Map(tensors), metadata };
}

/** Where a tensor's bytes lie behind the header. */
interface Place {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

function unusable(name: string, why: string): DesapError {
  return new DesapError('ERR_FILE', `${name}: not a usable safetensors file: ${why}`);
}

/** The bytes of the header, by the first eight of a file of `total` bytes. */
function headerLength(first: Uint8Array, total: number, name: string): number {
  if (total < 8 || first.length < 8) throw unusable(name, `got ${total} bytes, wanted at least 8`);
  const length = Number(new DataView(first.buffer, first.byteOffset, 8).getBigUint64(0, true));
  const { headerBytes } = limits();
  if (length > headerBytes) throw unusable(name, `the header claims ${length} bytes, wanted at most ${headerBytes}`);
  if (8 + length > total)
    throw unusable(name, `the header claims ${length} bytes, the file has ${total - 8} after its length`);
  return length;
}

/** @param size bytes of data behind the header */
function parseHeader(text: Uint8Array, size: number, name: string) {
  const fail = (why: string) => unusable(name, why);
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(text));
  } catch (cause) {
    throw new DesapError('ERR_FILE', `${name}: not a usable safetensors file: the header is not JSON`, { cause });
  }
  if (typeof header !== 'object' || header === null || Array.isArray(header))
    throw fail('the header is not a JSON object');
  const places = new Map<string, Place>();
  let metadata: Record<string, string> = {};
  let claimed = 0;
  for (const [key, value] of Object.entries(header as Record<string, unknown>)) {
    if (key === '__metadata__') {
      if (typeof value !== 'object' || value === null) throw fail('__metadata__ is not an object');
      metadata = Object.fromEntries(Object.entries(value));
      if (!Object.values(metadata).every((text) => typeof text === 'string'))
        throw fail('__metadata__ has values that are no texts');
      continue;
    }
    const { dtype, shape, data_offsets: offsets } = (value ?? {}) as Record<string, unknown>;
    if (typeof dtype !== 'string') throw fail(`tensor ${key} has no type`);
    const isIndex = (n: unknown): n is number => Number.isSafeInteger(n) && (n as number) >= 0;
    if (!Array.isArray(shape) || !shape.every(isIndex)) throw fail(`tensor ${key} has a bad shape`);
    if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isIndex))
      throw fail(`tensor ${key} has bad offsets`);
    const [begin, end] = offsets as [number, number];
    if (begin > end || end > size)
      throw fail(`tensor ${key} lies at ${begin}..${end}, the file holds ${size} bytes of data`);
    const item = ITEM_SIZE.get(dtype);
    const wanted = item && shape.reduce((product: number, extent: number) => product * extent, item);
    if (wanted !== undefined && end - begin !== wanted)
      throw fail(
        `tensor ${key} is ${dtype} [${shape.join(', ')}], which is ${wanted} bytes, and lies at ${begin}..${end}`,
      );
    places.set(key, { dtype, shape, begin, end });
    claimed += end - begin;
  }
  // Else a small file would stand for any number of large tensors.
  if (claimed > size) throw fail(`its tensors claim ${claimed} bytes of the ${size} that it holds: they overlap`);
  return { places, metadata };
}

/**
 * The weights of a file of ours. Bytes are read before this returns its promise: the caller may change them then.
 * @param source its path or its bytes
 * @param what it is: a head, a block
 * @param isWanted the tensors to read from a path
 * @param weights of the tensors; `name` is for messages
 */
export async function readWeights<W>(
  source: string | Uint8Array | ArrayBuffer,
  what: string,
  isWanted: (name: string) => boolean,
  weights: (file: SafeTensors, name: string) => W,
): Promise<W> {
  if (typeof source === 'string') return weights(await readSafeTensors(source, isWanted), source);
  return weights(parseSafeTensors(bytesOf('source', source, `the path or the bytes of a ${what} file`), what), what);
}

/**
 * Reads a safetensors file of any size; see {@link parseSafeTensors}.
 * @param isWanted the tensors to read; default: all
 */
export async function readSafeTensors(path: string, isWanted = (_name: string) => true): Promise<SafeTensors> {
  return readPart(path, async (file) => {
    const { places, metadata, start } = await readHeader(file, path);
    const tensors = new Map<string, StoredTensor>();
    for (const [name, { dtype, shape, begin, end }] of places)
      if (isWanted(name)) tensors.set(name, { dtype, shape, bytes: await file.read(start + begin, end - begin) });
    return { tensors, metadata };
  });
}

/** The header of an open file, and where the data begins. */
async function readHeader({ size, read }: OpenFile, name: string) {
  const length = headerLength(await read(0, Math.min(8, size)), size, name);
  return { ...parseHeader(await read(8, length), size - 8 - length, name), start: 8 + length };
}

/** A safetensors file whose tensors are read one by one: checkpoints may be larger than memory. */
export interface SafeTensorsFile {
  /** Name and shape of each tensor. */
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** @throws DesapError `ERR_FILE` for a name that is not there, and for a file that cannot be read */
  read(name: string): Promise<StoredTensor>;
}

/**
 * Reads the header of a safetensors file; see {@link parseSafeTensors}.
 * @throws DesapError `ERR_FILE`
 */
export async function openSafeTensors(path: string): Promise<SafeTensorsFile> {
  const { places, start } = await readPart(path, (file) => readHeader(file, path));
  return {
    shapes: new Map([...places].map(([name, { shape }]) => [name, shape])),
    async read(name) {
      const place = places.get(name);
      if (!place) throw new DesapError('ERR_FILE', `${path}: looked for the tensor '${name}'; found none`);
      const { dtype, shape, begin, end } = place;
      return { dtype, shape, bytes: await readPart(path, ({ read }) => read(start + begin, end - begin)) };
    },
  };
}

/** The values of a floating-point tensor as float32 (F64 is rounded, F16 and BF16 are exact). */
export function toFloat32(tensor: StoredTensor, name = 'tensor'): Float32Array {
  const { dtype, bytes } = tensor;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const count = bytes.byteLength / (ITEM_SIZE.get(dtype) ?? 1);
  const values = new Float32Array(count);
  switch (dtype) {
    case 'F32':
      new Uint8Array(values.buffer).set(bytes);
      break;
    case 'F64':
      for (let i = 0; i < count; i++) values[i] = view.getFloat64(8 * i, true);
      break;
    case 'F16':
      for (let i = 0; i < count; i++) values[i] = halfToFloat(view.getUint16(2 * i, true));
      break;
    case 'BF16': {
      const bits = new Uint32Array(values.buffer);
      for (let i = 0; i < count; i++) bits[i] = view.getUint16(2 * i, true) << 16;
      break;
    }
    default:
      throw new DesapError('ERR_DTYPE', `${name}: got ${dtype}, wanted F32, F64, F16 or BF16`);
  }
  return values;
}

/** Tensors to write: float32 values with their shape. */
export type WritableTensors = Record<string, { readonly data: Float32Array; readonly shape: readonly number[] }>;

/** The bytes of a safetensors file of float32 tensors. */
export function formatSafeTensors(tensors: WritableTensors, metadata: Record<string, string> = {}): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: metadata };
  let offset = 0;
  for (const [name, { data, shape }] of Object.entries(tensors)) {
    header[name] = { dtype: 'F32', shape, data_offsets: [offset, offset + data.byteLength] };
    offset += data.byteLength;
  }
  const json = JSON.stringify(header);
  const padded = new TextEncoder().encode(json + ' '.repeat((8 - (json.length % 8)) % 8));
  const bytes = new Uint8Array(8 + padded.length + offset);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(padded.length), true);
  bytes.set(padded, 8);
  let at = 8 + padded.length;
  for (const { data } of Object.values(tensors)) {
    bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at);
    at += data.byteLength;
  }
  return bytes;
}
