import { types } from 'node:util';
import * as common from 'onnxruntime-common';
import { alternatives, DesapError, describe, invalid, messageOf, mismatch } from './errors.js';
import { entries, field } from './options.js';
import { nodeRequire, resolvePackage } from './package.js';

/** Typed arrays that this package makes or is given, each with a tensor type that it holds. */
const HELD = [
  ['Float32Array', 'float32'],
  ['Uint16Array', 'uint16'],
  ['BigInt64Array', 'int64'],
  ['Int32Array', 'int32'],
  ['Uint8Array', 'uint8'],
] as const;

/**
 * onnxruntime's tensor, the class that the installed onnxruntime-node itself uses. A session tells preallocated outputs by
 * `instanceof`, and silently ignores those of another copy of onnxruntime-common (its ES module form is one).
 */
export const Tensor = tensorClass();
export type Tensor = common.Tensor;

/**
 * What every function takes as a tensor: an onnxruntime `Tensor`, or any object with the same three fields.
 * `data` is row-major; float16 travels as its bits in a `Uint16Array`, or as a `Float16Array` where the runtime has one.
 */
export interface TensorLike {
  readonly type?: string;
  readonly data: unknown;
  readonly dims: readonly number[];
}

/** Memory of a float tensor as the kernels take it. */
export type FloatData = Float32Array | Uint16Array;

/** A checked matrix: `rows * cols` contiguous elements. `half` means that `data` holds binary16 bits. */
export interface FloatMatrix {
  readonly data: FloatData;
  readonly half: boolean;
  readonly rows: number;
  readonly cols: number;
}

/** The float memory of a tensor, checked for type and element count. Nothing is copied; each field is read once. */
export function floatData(
  argument: string,
  tensor: TensorLike,
): { data: FloatData; half: boolean; dims: readonly number[] } {
  const dims = dimsOf(argument, tensor);
  const type = field(argument, tensor, 'type');
  const given = dataOf(argument, tensor);
  const kind = floatKind(given);
  if (kind === null || (type !== undefined && type !== kind))
    throw mismatch(
      'ERR_DTYPE',
      argument,
      `${typeof type === 'string' ? type : type === undefined ? 'data' : describe(type)} in ${describe(given)}`,
      'float32 (Float32Array) or float16 (Uint16Array, Float16Array)',
    );
  const data = plain(given as FloatData);
  const size = dims.reduce((product, extent) => product * extent, 1);
  if (data.length !== size) {
    if (data.length < size && isGone(given as FloatData))
      throw mismatch(
        'ERR_DETACHED',
        argument,
        `${data.length} elements behind dims [${dims.join(', ')}]`,
        `${size} elements; the buffer was detached, transferred or resized`,
      );
    throw mismatch('ERR_SHAPE', argument, `${data.length} elements for dims [${dims.join(', ')}]`, `${size} elements`);
  }
  return { data, half: kind === 'float16', dims };
}

/** More extents than any tensor here has. */
const MOST_DIMS = 16;

/**
 * The extents of a tensor as they are now.
 * @throws DesapError `ERR_DTYPE` for what has none, `ERR_SHAPE`
 */
export function dimsOf(argument: string, tensor: TensorLike): readonly number[] {
  const given = typeof tensor === 'object' && tensor !== null ? field(argument, tensor, 'dims') : null;
  if (!isArray(given))
    throw invalid('ERR_DTYPE', argument, tensor, 'a tensor ({ data, dims }, for example an onnxruntime Tensor)');
  const count = field(`${argument}.dims`, given, 'length');
  if (!(count <= MOST_DIMS))
    throw mismatch('ERR_SHAPE', `${argument}.dims`, `${count} extents`, `at most ${MOST_DIMS}`);
  const dims = entries(`${argument}.dims`, given as readonly number[]);
  if (!dims.every((extent) => Number.isSafeInteger(extent) && extent >= 0))
    throw invalid('ERR_SHAPE', `${argument}.dims`, dims, 'non-negative integers');
  return dims;
}

/** Whether a value is an array; a Proxy that was revoked is none. */
export function isArray(value: unknown): value is readonly unknown[] {
  try {
    return Array.isArray(value);
  } catch {
    return false;
  }
}

const TYPED_ARRAY = Object.getPrototypeOf(Uint8Array.prototype) as object;

/** What typed arrays of any realm are and have, whatever their own properties or their class say of it. */
const intrinsic = <T>(name: PropertyKey): ((array: unknown) => T) => {
  const { get } = Object.getOwnPropertyDescriptor(TYPED_ARRAY, name) as { get: () => T };
  return (array) => get.call(array);
};
const [bufferOf, offsetOf, lengthOf] = [
  intrinsic<ArrayBuffer>('buffer'),
  intrinsic<number>('byteOffset'),
  intrinsic<number>('length'),
];
/** `Float16Array`, which exists from Node 24 on; undefined for what is no typed array. */
const classOf = intrinsic<string | undefined>(Symbol.toStringTag);

function floatKind(data: unknown): 'float32' | 'float16' | null {
  const name = classOf(data);
  if (name === 'Float32Array') return 'float32';
  return name === 'Uint16Array' || name === 'Float16Array' ? 'float16' : null;
}

/** Classes of typed arrays that are taken; numbers of 16 bits are their bits. */
const VIEWS = {
  ...{ Float32Array, Uint16Array, Float16Array: Uint16Array },
  ...{ Int32Array, BigInt64Array, Uint8Array, Uint8ClampedArray },
};

/**
 * A view of the same memory that has nothing of the caller's class, realm or own properties: it is as long as it says. Of memory that is
 * gone, an empty one.
 */
export function plain<T extends ArrayBufferView>(data: T): T {
  const View = VIEWS[classOf(data) as keyof typeof VIEWS] as Uint8ArrayConstructor;
  const length = lengthOf(data);
  return (length === 0 ? new View(0) : new View(bufferOf(data), offsetOf(data), length)) as unknown as T;
}

/**
 * A Float32Array of any realm as it is: as long as its memory.
 * @throws DesapError `ERR_DTYPE`
 */
export function float32Array(argument: string, data: unknown, wanted = 'a Float32Array'): Float32Array {
  if (!types.isFloat32Array(data)) throw invalid('ERR_DTYPE', argument, data, wanted);
  return plain(data);
}

/**
 * The bytes that a caller gave, not copied.
 * @throws DesapError `ERR_VALUE` for anything else than a Uint8Array or an ArrayBuffer; `ERR_DETACHED`
 */
export function bytesOf(argument: string, given: unknown, wanted: string): Uint8Array {
  if (types.isUint8Array(given)) return plain(given);
  if (!types.isAnyArrayBuffer(given)) throw invalid('ERR_VALUE', argument, given, wanted);
  try {
    return new Uint8Array(given);
  } catch (cause) {
    throw new DesapError('ERR_DETACHED', `${argument}: got a buffer that was transferred, wanted ${wanted}`, { cause });
  }
}

/** An Int32Array of any realm, likewise. */
export function int32Array(argument: string, data: unknown, wanted = 'an Int32Array'): Int32Array {
  if (!types.isInt32Array(data)) throw invalid('ERR_DTYPE', argument, data, wanted);
  return plain(data);
}

function isGone(memory: FloatData): boolean {
  const buffer = bufferOf(memory) as ArrayBuffer & { detached?: boolean; resizable?: boolean };
  return buffer.detached ?? (buffer.byteLength === 0 || buffer.resizable === true);
}

/** The tensor as a matrix [rows, cols]; leading extents of 1 are dropped ([1, N, D] is [N, D]). */
export function matrix(argument: string, tensor: TensorLike, want: { rows?: number; cols?: number } = {}): FloatMatrix {
  const { data, half, dims } = floatData(argument, tensor);
  const shape = [...dims];
  while (shape.length > 2 && shape[0] === 1) shape.shift();
  const wanted = `[${want.rows ?? 'rows'}, ${want.cols ?? 'columns'}]`;
  if (shape.length !== 2) throw invalid('ERR_SHAPE', `${argument}.dims`, dims, wanted);
  const [rows, cols] = shape;
  if (rows < 1 || cols < 1 || (want.rows ?? rows) !== rows || (want.cols ?? cols) !== cols)
    throw invalid('ERR_SHAPE', `${argument}.dims`, dims, wanted);
  return { data, half, rows, cols };
}

/**
 * A tensor's memory as it was given.
 * @throws DesapError `ERR_DISPOSED` for a tensor that was disposed
 */
export function dataOf(argument: string, tensor: TensorLike): unknown {
  try {
    return (tensor as { readonly data: unknown }).data;
  } catch (cause) {
    throw new DesapError('ERR_DISPOSED', `${argument}: got a tensor without its data: ${messageOf(cause)}`, { cause });
  }
}

/** Memory of integers: int64, int32, or bool. */
export type IntegerData = BigInt64Array | Int32Array | Uint8Array;

/**
 * An integer tensor of the caller's as it is now, checked for its element count; nothing is copied.
 * @param wanted what it is, for messages
 * @throws DesapError `ERR_DTYPE`, `ERR_SHAPE`
 */
export function integerData(
  argument: string,
  tensor: TensorLike,
  wanted: string,
): { readonly data: IntegerData; readonly dims: readonly number[] } {
  if (!isTensor(tensor)) throw invalid('ERR_DTYPE', argument, tensor, wanted);
  const dims = dimsOf(argument, tensor);
  const type = field(argument, tensor, 'type');
  const given = dataOf(argument, tensor);
  if (!types.isUint8Array(given) && !types.isInt32Array(given) && !types.isBigInt64Array(given))
    throw mismatch('ERR_DTYPE', argument, typeof type === 'string' ? type : describe(given), wanted);
  const data: IntegerData = plain(given);
  const size = dims.reduce((product, extent) => product * extent, 1);
  if (data.length === size) return { data, dims };
  throw mismatch('ERR_SHAPE', argument, `${data.length} elements for dims [${dims.join(', ')}]`, `${size} elements`);
}

/** Whether a value is a tensor of ONNX Runtime, of Transformers.js or of the same form: whether it has `dims`. */
export function isTensor(value: unknown): value is TensorLike {
  try {
    return typeof value === 'object' && value !== null && Array.isArray((value as TensorLike).dims);
  } catch {
    return false;
  }
}

/** The tensor (or plain Float32Array) as a float32 vector of `length` elements. */
export function vector(argument: string, value: TensorLike | Float32Array, length?: number): Float32Array {
  const tensor = types.isFloat32Array(value) ? { data: value, dims: [lengthOf(value)] } : value;
  const { data, half } = floatData(argument, tensor);
  if (half) throw mismatch('ERR_DTYPE', argument, 'float16', 'float32');
  if (data.length < 1 || (length !== undefined && data.length !== length))
    throw mismatch('ERR_SHAPE', argument, `${data.length} elements`, `${length ?? 'at least 1'} elements`);
  return data as Float32Array;
}

/** A float32 tensor over existing memory. */
export function float32(data: Float32Array, dims: readonly number[]): Tensor {
  return new Tensor('float32', data, dims);
}

/** An integer in [low, high], or an error that names the argument. */
export function integer(argument: string, value: number, low: number, high: number): number {
  if (!Number.isInteger(value) || value < low || value > high)
    throw invalid('ERR_VALUE', argument, value, `an integer from ${low} to ${high}`);
  return value;
}

/** A finite number in [low, high], or an error that names the argument. */
export function finite(argument: string, value: number, low = -Number.MAX_VALUE, high = Number.MAX_VALUE): number {
  if (typeof value !== 'number' || !Number.isFinite(value) || value < low || value > high)
    throw invalid('ERR_VALUE', argument, value, `a finite number from ${low} to ${high}`);
  return value;
}

/** true or false, or an error that names the argument. */
export function boolean(argument: string, value: boolean): boolean {
  if (typeof value !== 'boolean') throw invalid('ERR_VALUE', argument, value, 'true or false');
  return value;
}

/** One of the listed strings, or an error that names the argument. */
export function oneOf<T extends string>(argument: string, value: T, names: readonly T[]): T {
  if (!names.includes(value)) throw invalid('ERR_VALUE', argument, value, alternatives(names));
  return value;
}

/** An object, or an error that names the argument. */
export function object<T extends object>(argument: string, value: T, wanted = 'an object of options'): T {
  if (typeof value !== 'object' || value === null) throw invalid('ERR_VALUE', argument, value, wanted);
  return value;
}

/** A string with something in it, such as a path, or an error that names the argument. */
export function nonEmpty(argument: string, value: string, wanted: string): string {
  if (typeof value !== 'string' || value === '') throw invalid('ERR_VALUE', argument, value, wanted);
  return value;
}

/** Fails when the object was disposed. */
export function assertAlive(what: string, alive: boolean): void {
  if (!alive) throw new DesapError('ERR_DISPOSED', `${what}: used after dispose()`);
}

const HALF_SCRATCH = new Float32Array(1);
const HALF_BITS = new Uint32Array(HALF_SCRATCH.buffer);

/** The value of one binary16 number. */
export function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Float memory as float32: as it is, or widened from float16. */
export function widened({ data, half }: { readonly data: FloatData; readonly half: boolean }): Float32Array {
  return half ? Float32Array.from(data, halfToFloat) : (data as Float32Array);
}

/** A number rounded to binary16 bits, nearest even. */
export function floatToHalf(value: number): number {
  HALF_SCRATCH[0] = value;
  const bits = HALF_BITS[0];
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    const scaled = Math.abs(HALF_SCRATCH[0]) * 2 ** 24;
    const floor = Math.floor(scaled);
    const rest = scaled - floor;
    return sign | (floor + (rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? 1 : 0));
  }
  const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1);
  return sign | ((rounded - 0x38000000) >>> 13);
}

function tensorClass(): typeof common.Tensor {
  const runtime = resolvePackage('onnxruntime-node');
  const file = runtime && resolvePackage('onnxruntime-common', runtime);
  return forAnyRealm(file ? (nodeRequire(file) as typeof common).Tensor : common.Tensor);
}

/**
 * A Tensor class that takes typed arrays of any realm. The class tells them by `instanceof`; where each file of a test has a realm of its
 * own, some come from that and some from the main one, as native code makes them. The class gets views of its own kind over the memory.
 */
export function forAnyRealm(TensorClass: typeof common.Tensor): typeof common.Tensor {
  const own = (type: string) => new TensorClass(type as 'float32', [], [0]).data.constructor as Float32ArrayConstructor;
  const arrays = new Map<unknown, Float32ArrayConstructor>(HELD.map(([name, type]) => [name, own(type)]));
  const view = (argument: unknown) => {
    const Own = ArrayBuffer.isView(argument) && arrays.get((argument as Float32Array)[Symbol.toStringTag]);
    if (!Own || argument instanceof Own) return argument;
    const { buffer, byteOffset, length } = argument as Float32Array;
    return new Own(buffer, byteOffset, length);
  };
  return new Proxy(TensorClass, {
    construct: (target, given, caller) => Reflect.construct(target, given.map(view), caller),
  });
}
