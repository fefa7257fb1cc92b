import { blockFromSafeTensors } from '../block-weights.js';
import { alternatives, DesapError } from '../errors.js';
import type { BlockAnalysis, BlockHead, BlockInput, BlockWeights, Encoding } from '../index.js';
import type { SafeTensors } from '../safetensors.js';
import { configOf, float32Tensor, float64Values, integerValues, storedTensor } from './golden-file.js';

/** One case of the last block of an encoder: weights, one sequence, and the values that the case has. */
export interface GoldenBlock {
  readonly block: BlockWeights;
  readonly input: BlockInput;
  readonly encoding: Encoding;
  readonly values: { readonly [Output in BlockValue]?: Float64Array };
}

/** Results of a block, by their names in files. */
const OUTPUTS = {
  attention: ({ attention }: BlockAnalysis) => attention?.data as Float32Array,
  saliency: ({ saliency }: BlockAnalysis) => saliency,
  unit_saliency: ({ unitSaliency }: BlockAnalysis) => unitSaliency ?? [],
  embedding: ({ siglip }: BlockAnalysis) => (siglip?.embeddings.data ?? []) as ArrayLike<number>,
  global: ({ siglip }: BlockAnalysis) => siglip?.global ?? [],
  probe_saliency: ({ siglip }: BlockAnalysis) => siglip?.probeSaliency ?? [],
} satisfies Record<string, (analysis: BlockAnalysis) => ArrayLike<number>>;
export type BlockValue = keyof typeof OUTPUTS;
export const BLOCK_VALUES = Object.keys(OUTPUTS) as readonly BlockValue[];

const INPUTS = ['hidden', 'cos', 'sin', 'unit'] as const;

interface Config {
  valid?: number;
  encoding?: Encoding;
}

/** A case that is run without regard to a further key would prove nothing. */
const KEYS = new Map([
  ...['kind', 'norm', 'encoding'].map((key) => [key, 'string'] as const),
  ...['heads', 'eps', 'valid'].map((key) => [key, 'number'] as const),
  ...['cls', 'siglip'].map((key) => [key, 'boolean'] as const),
]);

/**
 * A case of a block from a `.safetensors` file.
 * @throws DesapError `ERR_FILE`, `ERR_DTYPE` when it is not one, or when it has a key, an input or a result that is not known here
 */
export function goldenBlock(file: SafeTensors, path: string): GoldenBlock {
  const config = configOf<Config>(file, path, KEYS);
  const known = [...INPUTS.map((name) => `input.${name}`), ...BLOCK_VALUES.map((name) => `output.${name}`)];
  for (const name of file.tensors.keys())
    if (/^(input|output)\./.test(name) && !known.includes(name))
      throw new DesapError('ERR_FILE', `${path}: got the tensor '${name}', wanted ${alternatives(known)}`);
  const results = BLOCK_VALUES.filter((name) => file.tensors.has(`output.${name}`));
  if (results.length === 0) throw new DesapError('ERR_FILE', `${path}: got no output.*, wanted a golden case`);

  const table = (name: 'cos' | 'sin') =>
    file.tensors.has(`input.${name}`) ? { [name]: float32Tensor(file, `input.${name}`, path) } : {};
  const unit = file.tensors.get('input.unit');
  const values = (name: BlockValue) =>
    float64Values(storedTensor(file, `output.${name}`, path), `${path}: output.${name}`);
  return {
    block: blockFromSafeTensors(file, path),
    input: {
      hidden: float32Tensor(file, 'input.hidden', path),
      valid: config.valid,
      ...table('cos'),
      ...table('sin'),
      ...(unit && { unit: Int32Array.from(integerValues(unit, `${path}: input.unit`)) }),
    },
    encoding: config.encoding ?? 'qq',
    values: Object.fromEntries(results.map((name) => [name, values(name)])),
  };
}

/** What a block computes of a case, by the names of the results that the case has. */
export async function computeBlock(
  head: BlockHead,
  { input, encoding, values }: GoldenBlock,
): Promise<{ [Output in BlockValue]?: ArrayLike<number> }> {
  const [analysis] = await head.analyzeBatch([input], { encoding });
  return Object.fromEntries((Object.keys(values) as BlockValue[]).map((name) => [name, OUTPUTS[name](analysis)]));
}
