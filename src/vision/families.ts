/** Which vision model a config asks for: the one table of model types that are taken, and why others are not. */
import type { InferenceSession } from 'onnxruntime-common';
import { alternatives, describe, invalid, mismatch } from '../errors.js';
import type { Pruner } from '../index.js';
import type { OptionNames } from '../options.js';
import type { BlockFamily } from './block-family.js';
import { blockTrials } from './block-trials.js';
import { BLOCK_OPTIONS, BlockVision, type BlockVisionOptions } from './block-vision.js';
import { fileTrials, type Trial } from './file-features.js';
import { FLAT } from './flat.js';
import { IDEFICS3 } from './idefics3.js';
import { LFM2 } from './lfm2.js';
import { LlavaVision, type LlavaVisionOptions } from './llava.js';
import { LLAVA_NEXT_OPTIONS, LlavaNextVision, type LlavaNextVisionOptions } from './llava-next.js';
import type { ModelConfig, ModelFolder } from './model-folder.js';
import { PHI3_OPTIONS, Phi3Vision, type Phi3VisionOptions } from './phi3.js';
import { QwenVision } from './qwen.js';
import { QWEN } from './qwen-family.js';
import { refuseTiles } from './tile-options.js';
import { llavaTrials, phi3Trials } from './trial.js';
import { VIDEO_LLAVA_OPTIONS, VideoLlavaVision, type VideoLlavaVisionOptions } from './video-llava.js';
import type { VisionModel } from './vision-model.js';

/**
 * Options of every family. A family refuses those that mean nothing to it: `clip` and `head` are of towers that are CLIP's,
 * `embedQuestion` of all others; `tiles` is of LLaVA-NeXT, Idefics3, SmolVLM and LFM2-VL; `anyres`, `newline` and `newlineVector` are LLaVA-NeXT's (`newline` Phi-3.5-vision's too); `kind`, `classRows`, `imageEncoder` and
 * `imageClip` are Video-LLaVA's.
 */
export interface VisionModelOptions
  extends LlavaVisionOptions,
    Omit<LlavaNextVisionOptions, 'model' | 'config'>,
    VideoLlavaVisionOptions,
    Phi3VisionOptions,
    Omit<BlockVisionOptions, 'model' | 'config'> {
  /**
   * An open pruner, which stays the caller's. LLaVA: in place of the CLIP folder's head. The folder then needs no `vision_model.onnx`, and
   * is not needed at all where questions come as embeddings. Other families: only its device is used.
   */
  pruner?: Pruner;
}

const { model, config, ...NAMES } = {
  ...BLOCK_OPTIONS,
  ...LLAVA_NEXT_OPTIONS,
  ...VIDEO_LLAVA_OPTIONS,
  ...PHI3_OPTIONS,
};
export const VISION_MODEL_OPTIONS: OptionNames<VisionModelOptions> = NAMES;

/** A model folder and what its config says. */
export interface Described extends ModelFolder {
  readonly config: ModelConfig;
}

/** One implementation of `VisionModel`. */
export interface Family {
  /** As {@link VisionModel.family}. */
  readonly name: string;
  open(model: Described, options: VisionModelOptions): Promise<VisionModel>;
  /** For a model that Transformers.js has loaded; null where it has no class for it. */
  readonly loaded: LoadedFamily | null;
}

/** A family beside an open session of its whole file. */
export interface LoadedFamily {
  /** Whether blocks of its tower can be tapped (option `taps`). */
  readonly isTapped: boolean;
  /** Opens it without the checks that {@link LoadedFamily.trials} make. */
  open(model: Described, options: VisionModelOptions): Promise<VisionModel>;
  /** Inputs on which it is compared with the session. */
  trials(session: InferenceSession, config: ModelConfig): Trial[] | Promise<Trial[]>;
  /** What else is wanted of a file whose features differ, behind a comma; empty where that is nothing. */
  readonly premise: string;
}

const FILE = 'the vision encoder';

/** Options of a family whose images have no tiles that could be left out. */
function whole<T extends Pick<VisionModelOptions, 'tiles'>>({ tiles, ...options }: T): Omit<T, 'tiles'> {
  refuseTiles(tiles);
  return options;
}

const LLAVA: Family = {
  name: 'llava',
  open: ({ visionEncoder }, { dtype: _, ...options }) => LlavaVision.open(visionEncoder, whole(options)),
  loaded: {
    isTapped: true,
    // Its own checks are those of its parts; its questions are for the CLIP text tower.
    open: ({ visionEncoder }, { embedQuestion: _, ...options }) => LlavaVision.open(visionEncoder, whole(options)),
    trials: (session, config) => fileTrials(session, FILE, llavaTrials(session, config)),
    premise: '',
  },
};

const LLAVA_NEXT: Family = {
  name: 'llava_next',
  open: ({ visionEncoder, folder, config }, { dtype: _, ...options }) =>
    LlavaNextVision.open(visionEncoder, { ...options, model: folder, config }),
  loaded: null,
};

const VIDEO_LLAVA: Family = {
  name: 'video_llava',
  open: ({ visionEncoder }, { dtype: _, ...options }) => VideoLlavaVision.open(visionEncoder, whole(options)),
  loaded: null,
};

const PHI3: Family = {
  name: 'phi3_v',
  open: ({ visionEncoder }, { dtype: _, ...options }) => Phi3Vision.open(visionEncoder, whole(options)),
  loaded: {
    isTapped: false,
    // Its questions are for the CLIP text tower.
    open: ({ visionEncoder }, { embedQuestion: _, ...options }) => Phi3Vision.open(visionEncoder, whole(options)),
    trials: (session) => fileTrials(session, FILE, phi3Trials(session)),
    premise: '',
  },
};

/** The config of the original is that of a LLaVA, with a tower for videos beside that for images. */
const ORIGINAL_VIDEO: Family = {
  name: 'video_llava',
  open: ({ visionEncoder }, { dtype: _, ...options }) =>
    VideoLlavaVision.open(visionEncoder, { kind: 'video-llava', ...whole(options) }),
  loaded: null,
};

function block(family: BlockFamily, Vision = BlockVision): Family {
  return {
    name: family.name,
    open: ({ visionEncoder, folder, config }, options) =>
      Vision.openAs(family, visionEncoder, { ...options, model: folder, config }),
    loaded: {
      isTapped: false,
      open: ({ visionEncoder, folder, config }, options) =>
        Vision.openAs(family, visionEncoder, { ...options, model: folder, config }, true),
      trials: (session, config) => blockTrials(family, session, config),
      premise: family.premise,
    },
  };
}

const OF_FLAT = block(FLAT);
const OF_IDEFICS3 = block(IDEFICS3);
const OF_QWEN = block(QWEN, QwenVision);

/** By `model_type`. Each encoder is read by its structure, and refused where that is another. */
const FAMILIES: Readonly<Record<string, Family>> = {
  llava: LLAVA,
  llava_qwen2: LLAVA,
  llava_next: LLAVA_NEXT,
  video_llava: VIDEO_LLAVA,
  phi3_v: PHI3,
  llava_onevision: OF_FLAT,
  moondream1: OF_FLAT,
  paligemma: OF_FLAT,
  gemma3: OF_FLAT,
  idefics3: OF_IDEFICS3,
  smolvlm: OF_IDEFICS3,
  lfm2_vl: block(LFM2),
  qwen2_vl: OF_QWEN,
  qwen2_5_vl: OF_QWEN,
  qwen3_vl: OF_QWEN,
  qwen3_vl_moe: OF_QWEN,
  qwen3_5: OF_QWEN,
  qwen3_5_moe: OF_QWEN,
};

/** Every `model_type` that is taken. */
export const MODEL_TYPES: readonly string[] = Object.keys(FAMILIES);

/** Families whose encoder has no last self-attention over patches, and what can be done for them all the same. */
const BY_HAND = 'ImageAnalysis.from prunes its features by a saliency map of your own';
const FASTVLM = `with a FastViT encoder: convolutions stand where a last self-attention over patches is needed; ${BY_HAND}`;
const PIXTRAL = 'with a Pixtral tower: its files are not read yet';
const MOONDREAM = 'which no Transformers.js loads: crops of one image are put together again behind the encoder';

/** Why other types are refused. */
const REFUSED: Readonly<Record<string, string>> = {
  florence2: `with a DaViT encoder: convolutions, windows and channels stand where a last self-attention over patches is needed; ${BY_HAND}`,
  fast_vlm: FASTVLM,
  gemma3n: `with a MobileNet encoder: it has no self-attention over patches, and its decoder takes inputs of each layer for each token; ${BY_HAND}`,
  moondream2: MOONDREAM,
  moondream3: MOONDREAM,
  mistral3: PIXTRAL,
  lighton_ocr: PIXTRAL,
  glm_ocr: 'with a tower that merges patches by a convolution',
  internvl: `which no Transformers.js loads, with a tower whose text encoder was never released; ${BY_HAND}`,
  internvl_chat: `which no Transformers.js loads, with a tower whose text encoder was never released; ${BY_HAND}`,
};

const CLIP = 'clip_vision_model';
const SIGLIP = ['siglip_vision_model', 'siglip2_vision_model'];

/**
 * The family of a config, by its `model_type`.
 *
 * @param name of the config, for messages
 * @throws DesapError `ERR_VALUE` for a type that is not taken, with the reason
 */
export function familyOf(name: string, config: ModelConfig): Family {
  const { model_type: type = '' } = config;
  const family = Object.hasOwn(FAMILIES, type) ? FAMILIES[type] : undefined;
  if (family === LLAVA) return config.mm_video_tower ? ORIGINAL_VIDEO : familyOfTower(name, config);
  if (family !== undefined) return family;
  const why = Object.hasOwn(REFUSED, type) ? ` ${REFUSED[type]}` : '';
  throw mismatch('ERR_VALUE', `${name}.model_type`, `${describe(type)}${why}`, alternatives(MODEL_TYPES));
}

/**
 * The family of a model that Transformers.js has loaded.
 * @throws DesapError as {@link familyOf}
 */
export function loadedFamilyOf(name: string, config: ModelConfig): LoadedFamily {
  const { loaded } = familyOf(name, config);
  if (loaded !== null) return loaded;
  const type = describe(config.model_type);
  throw mismatch(
    'ERR_VALUE',
    `${name}.model_type`,
    type,
    'one that Transformers.js has a class for (openVisionModel takes it)',
  );
}

/** LLaVA's class of Transformers.js takes any tower: a CLIP folder fits that of CLIP, and SigLIP's has a last block of its own. */
function familyOfTower(name: string, { vision_config: vision = {}, mm_vision_tower: named = '' }: ModelConfig): Family {
  const kinds = [vision.model_type, vision.architecture, named].map((kind) => kind ?? '').filter((kind) => kind !== '');
  const isOf = (pattern: RegExp) => kinds.some((kind) => pattern.test(kind));
  if (isOf(/fastvit|mobileclip/i)) throw mismatch('ERR_VALUE', name, `a model ${FASTVLM}`, 'a CLIP or a SigLIP tower');
  if (isOf(/siglip/i)) return OF_FLAT;
  const tower = vision.model_type ?? CLIP;
  if (tower === CLIP) return LLAVA;
  const wanted = `${alternatives([CLIP, ...SIGLIP])}: towers of other kinds are not read`;
  throw invalid('ERR_VALUE', `${name}.vision_config.model_type`, tower, wanted);
}
