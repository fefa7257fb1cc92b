import type { InferenceSession } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import { DataType } from '../onnx/format/proto.js';
import type { BlockFamily, EncoderFacts, EncoderRun } from './block-family.js';
import type { Trial } from './file-features.js';
import type { ModelConfig } from './model-folder.js';
import { INPUT_NAMES } from './vision-model.js';

/** Trial images as one run of the encoder. */
export interface BlockTrial extends Trial {
  readonly run: EncoderRun;
}

/** Element types by the names that sessions have for them. */
const TYPES: Readonly<Record<string, number>> = { ...DataType, float32: DataType.float, float64: DataType.double };

/**
 * Trial images of a family, as a session of a whole file takes them.
 * @throws DesapError `ERR_GRAPH` for inputs that are no tensors of known types
 */
export async function blockTrials(
  family: BlockFamily,
  session: InferenceSession,
  config: ModelConfig,
): Promise<BlockTrial[]> {
  const inputs = session.inputMetadata.map((input) => {
    if (input.isTensor && input.type in TYPES) return { name: input.name, type: TYPES[input.type], dims: input.shape };
    throw new DesapError('ERR_GRAPH', `the vision encoder: got the input ${input.name}, wanted tensors of known types`);
  });
  const facts: EncoderFacts = { config, inputs, several: async () => false, rowsAtOnce: Number.POSITIVE_INFINITY };
  const trials: BlockTrial[] = [];
  for (const given of family.trials(session, config)) {
    const [run] = await family.read(given, INPUT_NAMES, facts);
    trials.push({ inputs: given, feeds: run.feeds, run });
  }
  return trials;
}
