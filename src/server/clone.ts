/** What a caller gave as a worker gets it, made at the call: he may change his afterwards, and what no thread takes is refused by its name. */
import { types } from 'node:util';
import { DesapError, messageOf } from '../errors.js';
import { field, reading } from '../options.js';
import { dataOf, dimsOf, isTensor, plain, type TensorLike } from '../tensor.js';

/** @throws DesapError `ERR_VALUE` for what no thread takes */
export function cloned<T>(argument: string, value: T): T {
  try {
    return structuredClone(value);
  } catch (cause) {
    throw new DesapError('ERR_VALUE', `${argument}: got what cannot go to a worker: ${messageOf(cause)}`, { cause });
  }
}

/**
 * An object with tensors among its fields. No thread takes their classes; their memory is copied once.
 * @throws DesapError `ERR_VALUE`, and as tensors are refused
 */
export function clonedTensors<T extends object>(argument: string, given: T): T {
  const fields = reading(argument, () => Object.entries(given)).map(([name, value]) => [
    name,
    isTensor(value) ? plainTensor(`${argument}.${name}`, value) : value,
  ]);
  return cloned(argument, Object.fromEntries(fields) as T);
}

function plainTensor(argument: string, tensor: TensorLike): TensorLike {
  const dims = dimsOf(argument, tensor);
  const type = field(argument, tensor, 'type');
  const data = dataOf(argument, tensor);
  return { data: isShared(data) ? sharedBytes(plain(data)) : data, dims, ...(type !== undefined && { type }) };
}

type Shared = Float32Array | Uint16Array | BigInt64Array | Int32Array | Uint8Array;
const SHARED = [
  types.isFloat32Array,
  types.isUint16Array,
  types.isBigInt64Array,
  types.isInt32Array,
  types.isUint8Array,
];
const isShared = (data: unknown): data is Shared => SHARED.some((is) => is(data));

/** Memory that both threads see: what is shared already stays where it is, and other memory is copied once. */
export function sharedBytes<T extends Shared>(view: T): T {
  if (types.isSharedArrayBuffer(view.buffer)) return view;
  const View = view.constructor as new (buffer: SharedArrayBuffer) => T;
  const copy = new View(new SharedArrayBuffer(view.byteLength));
  copy.set(view as never);
  return copy;
}
