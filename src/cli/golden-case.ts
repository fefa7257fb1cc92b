import { DesapError } from '../errors.js';
import { type Alignment, type Encoding, type HeadWeights, loadHead, type TensorLike } from '../index.js';
import { readSafeTensors, type SafeTensors, type StoredTensor, toFloat32 } from '../safetensors.js';

/** One case of the golden format: inputs, weights, options, and the value that every intermediate must have. */
export interface GoldenCase {
  readonly head: HeadWeights;
  readonly hidden: TensorLike;
  readonly text: TensorLike;
  readonly options: {
    readonly keep: number;
    readonly endOfText: number;
    readonly encoding: Encoding;
    readonly alignment: Alignment;
    readonly taskShare: number;
  };
  /** Floating-point results. */
  readonly values: Record<'context' | 'attention' | 'embedding' | 'task' | 'saliency' | 'tokens', Float64Array>;
  /** Decisions. */
  readonly choices: Record<'kept' | 'source' | 'assignment' | 'count', readonly number[]>;
}

interface Config {
  eos?: number;
  keep?: number;
  encoding?: Encoding;
  alignment?: boolean;
  clamp?: boolean;
  task_share?: number;
}

/**
 * Reads a `.safetensors` case: `input.*`, `weight.*`, `output.*` and the metadata key `config`.
 * @throws DesapError `ERR_FILE`, `ERR_DTYPE` when it is not one
 */
export async function readGoldenCase(path: string): Promise<GoldenCase> {
  const file = await readSafeTensors(path);
  const config = configOf(file, path);
  const find = (name: string) => {
    const tensor = file.tensors.get(name);
    if (!tensor) throw new DesapError('ERR_FILE', `${path}: got no tensor ${name}, wanted a golden case`);
    return tensor;
  };
  const float32 = (name: string): TensorLike => {
    const tensor = find(name);
    return { type: 'float32', data: toFloat32(tensor, name), dims: tensor.shape };
  };
  const values = (name: string) => float64(find(`output.${name}`), `${path}: output.${name}`);
  const choices = (name: string) => integers(find(`output.${name}`), `${path}: output.${name}`);
  return {
    head: await loadHead(path),
    hidden: float32('input.hidden'),
    text: float32('input.text'),
    options: {
      keep: config.keep ?? Number.NaN,
      endOfText: config.eos ?? find('input.text').shape[0] - 1,
      encoding: config.encoding ?? 'qq',
      alignment: config.alignment === false ? 'mean' : config.clamp ? 'fcma-clamped' : 'fcma',
      taskShare: config.task_share ?? 0.5,
    },
    values: {
      context: values('context'),
      attention: values('attention'),
      embedding: values('embedding'),
      task: values('task'),
      saliency: values('saliency'),
      tokens: values('tokens'),
    },
    choices: {
      kept: choices('kept'),
      source: choices('source'),
      assignment: choices('assignment'),
      count: choices('count'),
    },
  };
}

function configOf({ metadata }: SafeTensors, path: string): Config {
  try {
    const config: unknown = JSON.parse(metadata.config);
    if (typeof config === 'object' && config !== null) return config;
  } catch {
    // Missing and malformed are the same to the user.
  }
  throw new DesapError('ERR_FILE', `${path}: got no metadata key "config" in JSON, wanted a golden case`);
}

function float64(tensor: StoredTensor, name: string): Float64Array {
  if (tensor.dtype !== 'F64') return Float64Array.from(toFloat32(tensor, name));
  return new Float64Array(tensor.bytes.slice().buffer);
}

function integers(tensor: StoredTensor, name: string): number[] {
  if (tensor.dtype !== 'I64') throw new DesapError('ERR_DTYPE', `${name}: got ${tensor.dtype}, wanted I64`);
  return Array.from(new BigInt64Array(tensor.bytes.slice().buffer), Number);
}
