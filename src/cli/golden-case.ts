import { alternatives, DesapError, describe } from '../errors.js';
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
    readonly lambda: number;
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
  lambda?: number;
}

/** The keys of a config, those of its head included. A case that is run without regard to a further one would prove nothing. */
const KEYS = new Map([
  ...['heads', 'epsilon', 'eos', 'keep', 'task_share', 'lambda'].map((key) => [key, 'number'] as const),
  ...['cls', 'alignment', 'clamp'].map((key) => [key, 'boolean'] as const),
  ['encoding', 'string'] as const,
]);

/**
 * Reads a `.safetensors` case: `input.*`, `weight.*`, `output.*` and the metadata key `config`.
 * @throws DesapError `ERR_FILE`, `ERR_DTYPE` when it is not one, or when its config has a key that is not known here
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
      lambda: config.lambda ?? 0.1,
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
  const config = parsed(metadata.config);
  if (config === null)
    throw new DesapError('ERR_FILE', `${path}: got no metadata key 'config' in JSON, wanted a golden case`);
  for (const [key, value] of Object.entries(config)) {
    const type = KEYS.get(key);
    if (type === undefined)
      throw new DesapError(
        'ERR_FILE',
        `${path}: config: got the key '${key}', wanted ${alternatives([...KEYS.keys()])}`,
      );
    if (typeof value !== type)
      throw new DesapError('ERR_FILE', `${path}: config.${key}: got ${describe(value)}, wanted a ${type}`);
  }
  return config;
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

function float64(tensor: StoredTensor, name: string): Float64Array {
  if (tensor.dtype !== 'F64') return Float64Array.from(toFloat32(tensor, name));
  return new Float64Array(tensor.bytes.slice().buffer);
}

function integers(tensor: StoredTensor, name: string): number[] {
  if (tensor.dtype !== 'I64') throw new DesapError('ERR_DTYPE', `${name}: got ${tensor.dtype}, wanted I64`);
  return Array.from(new BigInt64Array(tensor.bytes.slice().buffer), Number);
}
