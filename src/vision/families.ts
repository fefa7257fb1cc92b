/** Which vision model a config asks for: the one table of model types that are taken, and why others are not. */
import type { InferenceSession } from 'onnxruntime-common';
import { alternatives, describe, invalid, mismatch } from '../errors.js';
import type { Pruner } from '../index.js';
import type { OptionNames } from '../options.js';
import { LLAVA_OPTIONS, LlavaVision, type LlavaVisionOptions } from './llava.js';
import type { ModelConfig, ModelFolder } from './model-folder.js';
import { QWEN_OPTIONS, QWEN_PREMISE, QwenVision, type QwenVisionOptions } from './qwen.js';
import { llavaTrials, qwenTrials } from './trial.js';
import type { VisionInputs, VisionModel } from './vision-model.js';

/**
 * Options of every family. A family refuses those that mean nothing to it: `clip`, `head` and `longText` are LLaVA's, `embedQuestion` is
 * Qwen-VL's.
 */
export interface VisionModelOptions extends LlavaVisionOptions, Omit<QwenVisionOptions, 'model' | 'config'> {
  /**
   * An open pruner, which stays the caller's. LLaVA: in place of the CLIP folder's head. The folder then needs no `vision_model.onnx`, and
   * is not needed at all where questions come as embeddings. Qwen-VL: only its device is used.
   */
  pruner?: Pruner;
}

const { model, config, ...OF_QWEN } = QWEN_OPTIONS;
export const VISION_MODEL_OPTIONS: OptionNames<VisionModelOptions> = { ...LLAVA_OPTIONS, ...OF_QWEN };

/** A model folder and what its config says. */
export interface Described extends ModelFolder {
  readonly config: ModelConfig;
}

/** One implementation of `VisionModel`. */
export interface Family {
  open(model: Described, options: VisionModelOptions): Promise<VisionModel>;
  /** Opens it where an open session of the whole file is there to compare with, by {@link Family.trials}. */
  openBeside(model: Described, options: VisionModelOptions): Promise<VisionModel>;
  trials(session: InferenceSession, config: ModelConfig): VisionInputs[];
  /** What else is wanted of a file whose features differ, behind a comma; empty where that is nothing. */
  readonly premise: string;
}

const LLAVA: Family = {
  open: ({ visionEncoder }, { dtype: _, ...options }) => LlavaVision.open(visionEncoder, options),
  // Its own checks are those of its parts; its questions are for the CLIP text tower.
  openBeside: ({ visionEncoder }, { embedQuestion: _, ...options }) => LlavaVision.open(visionEncoder, options),
  trials: llavaTrials,
  premise: '',
};

const QWEN: Family = {
  open: ({ visionEncoder, folder, config }, options) =>
    QwenVision.open(visionEncoder, { ...options, model: folder, config }),
  openBeside: ({ visionEncoder, folder, config }, options) =>
    QwenVision.openBeside(visionEncoder, { ...options, model: folder, config }),
  trials: qwenTrials,
  premise: QWEN_PREMISE,
};

/** Model types whose class is Transformers.js' `LlavaForConditionalGeneration` or inherits from it, and whose tower can be that of CLIP. */
const LLAVA_TYPES = ['llava', 'llava_qwen2'];

/** Those of `Qwen2VLForConditionalGeneration` with a tower of its kind; each encoder is read by its structure, and refused where that is another. */
const QWEN_TYPES = ['qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'qwen3_vl_moe', 'qwen3_5', 'qwen3_5_moe'];

const SIGLIP = 'with a SigLIP tower: it has no class token, and no CLIP folder fits it';
const PIXTRAL = 'with a Pixtral tower: it has no class token, and no CLIP folder fits it';

/** Why other types are refused that one of the two classes loads. */
const REFUSED: Readonly<Record<string, string>> = {
  llava_onevision: SIGLIP,
  moondream1: SIGLIP,
  lfm2_vl: SIGLIP,
  mistral3: PIXTRAL,
  lighton_ocr: PIXTRAL,
  glm_ocr: 'with a tower that merges patches by a convolution',
};

const CLIP = 'clip_vision_model';

/**
 * The family of a config, by its `model_type`.
 *
 * @param name of the config, for messages
 * @throws DesapError `ERR_VALUE` for a type that is not taken, with the reason
 */
export function familyOf(name: string, { model_type: type = '', vision_config: vision }: ModelConfig): Family {
  if (QWEN_TYPES.includes(type)) return QWEN;
  if (!LLAVA_TYPES.includes(type)) {
    const why = REFUSED[type] ? ` ${REFUSED[type]}` : '';
    const wanted = alternatives([...LLAVA_TYPES, ...QWEN_TYPES]);
    throw mismatch('ERR_VALUE', `${name}.model_type`, `${describe(type)}${why}`, wanted);
  }
  const tower = vision?.model_type ?? CLIP;
  if (tower === CLIP) return LLAVA;
  const wanted = `'${CLIP}': a tower without class token, or of another kind, is one that no CLIP folder fits`;
  throw invalid('ERR_VALUE', `${name}.vision_config.model_type`, tower, wanted);
}
