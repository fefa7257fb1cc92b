import type { InferenceSession } from 'onnxruntime-common';
import type { BlockWeights } from '../block-weights.js';
import { invalid, mismatch } from '../errors.js';
import type { Backend } from '../index.js';
import type { OrtModule } from '../onnx/edit.js';
import type { BlockEncoder } from '../onnx/last-block.js';
import { type OptionNames, options } from '../options.js';
import { nonEmpty, oneOf } from '../tensor.js';
import { fitSiglip, readSiglipFolder, type SiglipFit } from './siglip-head.js';
import type { SiglipTextOptions } from './siglip-text.js';

/** How a SigLIP's read-out is used. */
export interface SiglipOptions extends Pick<SiglipTextOptions, 'text' | 'longText' | 'filter'> {
  /**
   * The SigLIP that the vision encoder was made from, as Transformers.js has it: `onnx/vision_model.onnx` (or `model.safetensors`),
   * `onnx/text_model.onnx`, `tokenizer.json`, `tokenizer_config.json`, `config.json`.
   */
  readonly folder: string;
  /**
   * What stands out: `columns` (default), the attention that each patch receives in the last block; `probe`, the attention of the
   * pooling head's probe.
   */
  readonly saliency?: 'columns' | 'probe';
}

const NAMES: OptionNames<SiglipOptions> = {
  ...{ folder: true, text: true, longText: true, filter: true },
  ...{ saliency: true },
};
const FORMS = ['llm', 'siglip'] as const;
const SALIENCIES = ['columns', 'probe'] as const;

/** The options of a SigLIP, checked. */
export interface CheckedSiglip {
  readonly folder: string;
  readonly saliency: (typeof SALIENCIES)[number];
  readonly text: Pick<SiglipTextOptions, 'text' | 'longText' | 'filter'>;
}

/**
 * What `task` and `siglip` ask for; null for the language model's space.
 * @throws DesapError `ERR_VALUE` for one without the other
 */
export function siglipOptions({
  task = 'llm',
  siglip,
}: {
  task?: 'llm' | 'siglip';
  siglip?: string | SiglipOptions;
}): CheckedSiglip | null {
  oneOf('task', task, FORMS);
  if (task === 'llm') {
    if (siglip === undefined) return null;
    throw mismatch('ERR_VALUE', 'siglip', "a SigLIP beside task: 'llm'", "task: 'siglip', which uses it");
  }
  if (siglip === undefined)
    throw invalid('ERR_VALUE', 'siglip', siglip, 'the folder of the SigLIP that the vision encoder was made from');
  const given = typeof siglip === 'string' ? { folder: siglip } : options<SiglipOptions>('siglip', siglip, NAMES);
  const { folder, saliency = 'columns', text, longText, filter } = given;
  return {
    folder: nonEmpty('siglip.folder', folder, 'the folder of a SigLIP'),
    saliency: oneOf('siglip.saliency', saliency, SALIENCIES),
    text: { text, longText, filter },
  };
}

/**
 * The block of an encoder with the pooling head of a SigLIP folder.
 * @throws DesapError those of {@link readSiglipFolder} and {@link fitSiglip}; `ERR_HEAD_MISMATCH` for an encoder that rotates or reorders
 */
export async function openFit(
  ort: OrtModule,
  weights: BlockWeights,
  { rotary, order, model }: Pick<BlockEncoder, 'rotary' | 'order' | 'model'>,
  folder: string,
  device: { readonly backend: Backend; readonly session: InferenceSession.SessionOptions },
): Promise<SiglipFit> {
  if (rotary || order)
    throw mismatch(
      'ERR_HEAD_MISMATCH',
      'siglip',
      `a SigLIP for ${model.name}, which rotates queries and keys, or reorders its patches`,
      "task: 'llm': this encoder is none",
    );
  return fitSiglip(weights, await readSiglipFolder(ort, folder, device), folder);
}
