import { DesapError, mismatch } from '../errors.js';
import { readPart } from '../files.js';
import { namedFile } from '../named-files.js';
import { toFloat32 } from '../safetensors.js';
import type { OnnxModel } from './format/model.js';
import { DataType, itemSize, typeName } from './format/proto.js';
import { elementCount, type StoredTensor } from './format/stored-tensor.js';
import { type Matrix, outputs, type Vector } from './search/linear.js';

/** Where in which file a tensor that is not in memory lies. */
export interface FileRange {
  /** A real path. */
  readonly path: string;
  readonly offset: number;
  readonly length: number;
}

/**
 * The file range behind a tensor that is not in memory; symbolic links are followed.
 * @throws DesapError `ERR_FILE` when the file is missing, or when the model was given as bytes and has no folder
 */
export function fileRange(model: OnnxModel, { name, type, dims, data }: StoredTensor): FileRange {
  if ('bytes' in data) throw new DesapError('ERR_INTERNAL', `${model.name}: tensor '${name}' is in memory`);
  const path = data.file === null ? model.file!.path : dataFile(model, `tensor '${name}'`, data.file);
  return { path, offset: data.offset, length: data.length ?? (itemSize(type) ?? 0) * elementCount({ dims }) };
}

/**
 * The real path of a file of external data.
 * @param what whose data it is
 * @throws DesapError `ERR_FILE` when it is missing or elsewhere, or when the model was given as bytes and has no folder
 */
export function dataFile({ name, file }: OnnxModel, what: string, data: string): string {
  if (file !== null) return namedFile(`${name}: ${what}`, file, data);
  throw mismatch(
    'ERR_FILE',
    `${name}: ${what}`,
    `external data '${data}' in a model given as bytes`,
    'the path of the model',
  );
}

/** The elements of a float32, float16, bfloat16 or float64 tensor as float32. */
export async function readFloats(model: OnnxModel, tensor: StoredTensor): Promise<Float32Array> {
  const what = `${model.name}: tensor '${tensor.name}'`;
  const dtype = SAFETENSORS_NAME[tensor.type];
  if (dtype === undefined)
    throw new DesapError('ERR_GRAPH', `${what}: got ${typeName(tensor.type)}, wanted floating-point weights`);
  const bytes = 'bytes' in tensor.data ? tensor.data.bytes : await readRange(what, fileRange(model, tensor));
  const wanted = elementCount(tensor) * (itemSize(tensor.type) ?? 0);
  if (bytes.length !== wanted) throw new DesapError('ERR_FILE', `${what}: got ${bytes.length} bytes, wanted ${wanted}`);
  return toFloat32({ dtype, shape: tensor.dims, bytes }, what);
}

const SAFETENSORS_NAME: Readonly<Record<number, string>> = {
  [DataType.float]: 'F32',
  [DataType.float16]: 'F16',
  [DataType.bfloat16]: 'BF16',
  [DataType.double]: 'F64',
};

async function readRange(what: string, { path, offset, length }: FileRange): Promise<Uint8Array> {
  const name = `${what}: ${path}`;
  return readPart(
    path,
    ({ size, read }) => {
      if (offset + length <= size) return read(offset, length);
      throw mismatch('ERR_FILE', name, `${size} bytes`, `${length} at offset ${offset}`);
    },
    name,
  );
}

/** A weight matrix as [out, in] row-major. */
export async function readMatrix(model: OnnxModel, matrix: Matrix): Promise<Float32Array> {
  const { tensor, order, part } = matrix;
  const stored = await readFloats(model, tensor);
  const [rows, cols] = tensor.dims;
  const count = outputs(matrix);
  const first = (part?.index ?? 0) * count;
  if (order === 'out-in') return stored.slice(first * cols, (first + count) * cols);
  const weight = new Float32Array(count * rows);
  for (let i = 0; i < rows; i++) for (let o = 0; o < count; o++) weight[o * rows + i] = stored[i * cols + first + o];
  return weight;
}

/** A bias, or the part of it that belongs to one of several packed layers. */
export async function readVector(model: OnnxModel, { tensor, part }: Vector): Promise<Float32Array> {
  const stored = await readFloats(model, tensor);
  const length = stored.length / (part?.count ?? 1);
  const first = (part?.index ?? 0) * length;
  return stored.slice(first, first + length);
}
