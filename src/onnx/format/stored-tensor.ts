import { WireType } from '@bufbuild/protobuf/wire';
import { DesapError, invalid } from '../../errors.js';
import { isInside } from '../../named-files.js';
import { halfToFloat } from '../../tensor.js';
import { DataType, EntryField, isFloat, itemSize, TensorField, typeName } from './proto.js';
import { type ByteSource, type Field, fields, floats, integers, longs, payload, text } from './wire.js';

/** Tensors up to this many bytes are held in memory and written into new graphs; shape inference needs the small ones. */
export const INLINE_LIMIT = 1024;

/** Of an enumeration in protobuf. */
const LARGEST_TYPE = 2 ** 31 - 1;

/** Where the elements of a tensor lie, little-endian and row-major: in memory, or at an offset of a file. */
export type TensorData =
  | { readonly bytes: Uint8Array }
  | {
      /** The `location` of ONNX external data; null for the model file itself. */
      readonly file: string | null;
      readonly offset: number;
      /** Bytes; null where external data names none (then the tensor's own size). */
      readonly length: number | null;
    };

/** A TensorProto without its weights, unless they are small. */
export interface StoredTensor {
  readonly name: string;
  /** TensorProto.DataType. */
  readonly type: number;
  readonly dims: readonly number[];
  readonly data: TensorData;
}

/** Elements of a tensor. */
export const elementCount = (tensor: { readonly dims: readonly number[] }): number =>
  tensor.dims.reduce((product, extent) => product * extent, 1);

/**
 * Reads the TensorProto at `start..end`. Large raw data in a file is skipped and remembered as offset and length.
 * @throws DesapError `ERR_FILE` when the data does not have the size that type and dims ask for
 */
export function readTensor(source: ByteSource, start = 0, end = source.size): StoredTensor {
  let name = '';
  let type: number = DataType.undefined;
  let raw: Field | null = null;
  let isExternal = false;
  const dims: number[] = [];
  const numbers: (number | bigint)[] = [];
  const entries = new Map<string, string>();
  for (const field of fields(source, start, end)) {
    switch (field.number) {
      case TensorField.dims:
        for (const extent of integers(source, field)) dims.push(extent);
        break;
      case TensorField.dataType:
        type = field.value;
        break;
      case TensorField.name:
        name = text(source, field);
        break;
      case TensorField.rawData:
        raw = field;
        break;
      case TensorField.floatData:
      case TensorField.doubleData:
        // Packed little-endian numbers are raw data under another field number.
        if (field.wire === WireType.LengthDelimited) raw = field;
        else for (const value of floats(source, field)) numbers.push(value);
        break;
      case TensorField.int32Data:
        for (const value of integers(source, field)) numbers.push(value);
        break;
      case TensorField.int64Data:
      case TensorField.uint64Data:
        for (const value of longs(source, field)) numbers.push(value);
        break;
      case TensorField.externalData: {
        const [key, value] = readEntry(source, field);
        entries.set(key, value);
        break;
      }
      case TensorField.dataLocation:
        isExternal = field.value === 1;
        break;
    }
  }
  const tensor = { name, type, dims };
  const what = `${source.name}: tensor '${name}' (${typeName(type)} [${dims.join(', ')}])`;
  if (type < 0 || type > LARGEST_TYPE) throw new DesapError('ERR_FILE', `${what}: got no type of ONNX's, wanted one`);
  if (!dims.every((extent) => Number.isSafeInteger(extent) && extent >= 0))
    throw new DesapError('ERR_FILE', `${what}: got an extent that is negative or above 2^53, wanted none`);
  if (isExternal) return { ...tensor, data: readExternal(what, entries) };
  const size = itemSize(type);
  // Fields of floating-point numbers hold them for types of these only.
  if (raw === null && !isFloat(type) && !numbers.every((value) => typeof value === 'bigint' || Number.isInteger(value)))
    throw new DesapError('ERR_FILE', `${what}: got numbers that are no integers, wanted integers`);
  const data = raw === null ? { bytes: pack(type, numbers) } : dataOf(source, raw);
  const length = 'bytes' in data ? data.bytes.length : data.length;
  if (size !== undefined && length !== size * elementCount(tensor))
    throw new DesapError('ERR_FILE', `${what}: got ${length} bytes of data, wanted ${size * elementCount(tensor)}`);
  return { ...tensor, data };
}

function dataOf(source: ByteSource, raw: Field): TensorData & { length?: number } {
  const length = raw.end - raw.start;
  if (source.resident) return { bytes: source.bytes(raw.start, length) };
  if (length <= INLINE_LIMIT) return { bytes: payload(source, raw) };
  return { file: null, offset: raw.start, length };
}

function readEntry(source: ByteSource, entry: Field): [string, string] {
  let key = '';
  let value = '';
  for (const field of fields(source, entry.start, entry.end)) {
    if (field.number === EntryField.key) key = text(source, field);
    if (field.number === EntryField.value) value = text(source, field);
  }
  return [key, value];
}

function readExternal(what: string, entries: ReadonlyMap<string, string>): TensorData {
  const number = (key: string) => {
    const given = entries.get(key);
    if (given === undefined) return null;
    const value = /^\d+$/.test(given) ? Number(given) : Number.NaN;
    if (!Number.isSafeInteger(value))
      throw new DesapError('ERR_FILE', `${what}: external data: got ${key} '${given}', wanted a byte count`);
    return value;
  };
  const file = entries.get('location') ?? '';
  if (!isInside(file))
    throw invalid('ERR_FILE', `${what}: external data: location`, file, "a path inside the model's folder");
  return { file, offset: number('offset') ?? 0, length: number('length') };
}

/** Numbers of the typed fields as the bytes that raw_data would have. */
function pack(type: number, values: readonly (number | bigint)[]): Uint8Array {
  const size = itemSize(type) ?? 0;
  const bytes = new Uint8Array(values.length * size);
  const view = new DataView(bytes.buffer);
  values.forEach((value, i) => {
    const at = i * size;
    if (type === DataType.float) view.setFloat32(at, Number(value), true);
    else if (type === DataType.double) view.setFloat64(at, Number(value), true);
    else if (size === 8) view.setBigInt64(at, BigInt(value), true);
    else if (size === 4) view.setInt32(at, Number(value), true);
    else if (size === 2) view.setInt16(at, Number(value), true);
    else if (size === 1) view.setInt8(at, Number(value));
  });
  return bytes;
}

/** The elements of a small tensor as numbers, or null when they are not in memory or not plain numbers. */
export function smallValues({ type, data }: StoredTensor): number[] | null {
  const size = itemSize(type);
  if (!('bytes' in data) || data.bytes.length > INLINE_LIMIT || size === undefined) return null;
  const view = new DataView(data.bytes.buffer, data.bytes.byteOffset, data.bytes.byteLength);
  return Array.from({ length: data.bytes.length / size }, (_, i) => READERS[type](view, i * size));
}

const READERS: Readonly<Record<number, (view: DataView, at: number) => number>> = {
  [DataType.float]: (view, at) => view.getFloat32(at, true),
  [DataType.double]: (view, at) => view.getFloat64(at, true),
  [DataType.float16]: (view, at) => halfToFloat(view.getUint16(at, true)),
  [DataType.bfloat16]: (view, at) => bfloat16(view.getUint16(at, true)),
  [DataType.int64]: (view, at) => Number(view.getBigInt64(at, true)),
  [DataType.uint64]: (view, at) => Number(view.getBigUint64(at, true)),
  [DataType.int32]: (view, at) => view.getInt32(at, true),
  [DataType.uint32]: (view, at) => view.getUint32(at, true),
  [DataType.int16]: (view, at) => view.getInt16(at, true),
  [DataType.uint16]: (view, at) => view.getUint16(at, true),
  [DataType.int8]: (view, at) => view.getInt8(at),
  [DataType.uint8]: (view, at) => view.getUint8(at),
  [DataType.bool]: (view, at) => view.getUint8(at),
};

const BITS = new Uint32Array(1);
const FLOAT = new Float32Array(BITS.buffer);

function bfloat16(bits: number): number {
  BITS[0] = bits << 16;
  return FLOAT[0];
}
