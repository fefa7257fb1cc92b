/** What cases of the golden format share: `.safetensors` files with `input.*`, `weight.*`, `output.*` and the metadata key `config`. */
import { alternatives, DesapError, describe } from '../errors.js';
import type { TensorLike } from '../index.js';
import { type SafeTensors, type StoredTensor, toFloat32 } from '../safetensors.js';

/** What a value of a config may be. */
type ValueType = 'number' | 'boolean' | 'string' | 'list' | 'number or list';

/**
 * The config of a case.
 * @param keys that it may have, each with its type
 */
export function configOf<T extends object>(
  { metadata }: SafeTensors,
  path: string,
  keys: ReadonlyMap<string, ValueType>,
): T {
  const config = parsed(metadata.config);
  if (config === null)
    throw new DesapError('ERR_FILE', `${path}: got no metadata key 'config' in JSON, wanted a golden case`);
  for (const [key, value] of Object.entries(config)) {
    const type = keys.get(key);
    if (type === undefined)
      throw new DesapError(
        'ERR_FILE',
        `${path}: config: got the key '${key}', wanted ${alternatives([...keys.keys()])}`,
      );
    if (!type.split(' or ').includes(Array.isArray(value) ? 'list' : typeof value))
      throw new DesapError('ERR_FILE', `${path}: config.${key}: got ${describe(value)}, wanted a ${type}`);
  }
  return config as T;
}

/** A tensor that a case has to have. */
export function storedTensor(file: SafeTensors, name: string, path: string): StoredTensor {
  const tensor = file.tensors.get(name);
  if (!tensor) throw new DesapError('ERR_FILE', `${path}: got no tensor ${name}, wanted a golden case`);
  return tensor;
}

/** Whether a file is a case of the last block of an encoder. */
export function isBlockCase({ metadata }: SafeTensors): boolean {
  return (parsed(metadata.config) as { kind?: unknown } | null)?.kind === 'block';
}

/** Whether a file is a case of a method that DeSAP is compared with. */
export function isMethodCase({ metadata }: SafeTensors): boolean {
  return Object.hasOwn(parsed(metadata.config) ?? {}, 'method');
}

/** The object that is written in JSON, or null: missing and malformed are the same to the user. */
function parsed(json: string): object | null {
  try {
    const value: unknown = JSON.parse(json);
    return typeof value === 'object' && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

/** A tensor of a case as float32. */
export function float32Tensor(file: SafeTensors, name: string, path: string): TensorLike {
  const tensor = storedTensor(file, name, path);
  return { type: 'float32', data: toFloat32(tensor, `${path}: ${name}`), dims: tensor.shape };
}

/** Floating-point numbers of a case in float64. */
export function float64Values(tensor: StoredTensor, name: string): Float64Array {
  if (tensor.dtype !== 'F64') return Float64Array.from(toFloat32(tensor, name));
  return new Float64Array(tensor.bytes.slice().buffer);
}

/** Integers of a case. */
export function integerValues(tensor: StoredTensor, name: string): number[] {
  if (tensor.dtype !== 'I64') throw new DesapError('ERR_DTYPE', `${name}: got ${tensor.dtype}, wanted I64`);
  return Array.from(new BigInt64Array(tensor.bytes.slice().buffer), Number);
}
