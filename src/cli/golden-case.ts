import { headFromSafeTensors } from '../head.js';
import type { Alignment, Encoding, HeadWeights, TensorLike } from '../index.js';
import { readSafeTensors, type SafeTensors } from '../safetensors.js';
import { configOf, float32Tensor, float64Values, integerValues, storedTensor } from './golden-file.js';

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
 * A case of a head from a `.safetensors` file: `input.*`, `weight.*`, `output.*` and the metadata key `config`.
 * @throws DesapError `ERR_FILE`, `ERR_DTYPE` when it is not one, or when its config has a key that is not known here
 */
export function goldenCase(file: SafeTensors, path: string): GoldenCase {
  const config = configOf<Config>(file, path, KEYS);
  const find = (name: string) => storedTensor(file, name, path);
  const values = (name: string) => float64Values(find(`output.${name}`), `${path}: output.${name}`);
  const choices = (name: string) => integerValues(find(`output.${name}`), `${path}: output.${name}`);
  return {
    head: headFromSafeTensors(file, path),
    hidden: float32Tensor(file, 'input.hidden', path),
    text: float32Tensor(file, 'input.text', path),
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

/** Reads a case of a head; see {@link goldenCase}. */
export async function readGoldenCase(path: string): Promise<GoldenCase> {
  return goldenCase(await readSafeTensors(path), path);
}
