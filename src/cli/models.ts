/** How the command line runs each family: the one table for all commands. */
import { join } from 'node:path';
import { requireFolder } from '../files.js';
import { familyOf } from '../vision/families.js';
import { readConfig } from '../vision/model-folder.js';
import { clientImages, ENCODER } from './client/images.js';
import { PHI3 } from './client/phi3.js';
import { expanded, imageFirst, type Processing, textFirst } from './client/processing.js';
import { llavaImages } from './images/llava.js';
import { llavaNextImages } from './images/llava-next.js';
import type { ImageReader } from './images/reader.js';
import { videoLlavaImages } from './images/video-llava.js';

/** What a command line says of images. */
export interface ImageFlags {
  /** Frames that are taken of a video file. */
  readonly frames?: number;
}

/** How one family reads images, and who generates. */
export interface ModelKind {
  /** Whether its vision tower is CLIP's, and a CLIP folder goes with it. */
  readonly isClip: boolean;
  /** Whether blocks of its tower can be tapped for methods that look into them. */
  readonly isTapped: boolean;
  /** Whether it takes videos. */
  readonly isForVideos: boolean;
  images(folder: string, flags?: ImageFlags): Promise<ImageReader>;
  /** How Transformers.js makes the inputs of its model; null for models that the command line runs itself. */
  readonly processing: Processing | null;
}

const own = (images: ModelKind['images'], isForVideos = false): ModelKind => {
  return { isClip: true, isTapped: true, isForVideos, images, processing: null };
};
const client = (processing: Processing): ModelKind => {
  return {
    isClip: false,
    isTapped: false,
    isForVideos: false,
    images: (folder) => clientImages(folder, ENCODER),
    processing,
  };
};

/** Towers that are CLIP's, by family. */
const CLIP: Readonly<Record<string, ModelKind>> = {
  llava: own(llavaImages),
  llava_next: own(llavaNextImages),
  video_llava: own((folder, { frames } = {}) => videoLlavaImages(folder, frames), true),
  phi3_v: {
    ...own((folder) => clientImages(folder, PHI3)),
    isTapped: false,
    processing: {
      ...{ call: textFirst, placeholder: '<|image_1|>', visual: '<|image|>' },
      loader: 'AutoModelForCausalLM',
    },
  },
};

/** All others, by `model_type`. */
const CLIENT: Readonly<Record<string, ModelKind>> = {
  // LLaVA's class with a SigLIP tower: nanoLLaVA.
  llava: client({ call: expanded }),
  llava_qwen2: client({ call: expanded }),
  llava_onevision: client({ call: expanded }),
  moondream1: client({ call: expanded, prompt: '{image}\n\nQuestion: {question}\n\nAnswer:' }),
  paligemma: client({ call: imageFirst, prompt: '{image}{question}' }),
  gemma3: client({ call: textFirst, placeholder: '<start_of_image>' }),
  idefics3: client({ call: textFirst }),
  smolvlm: client({ call: textFirst }),
  lfm2_vl: client({ call: imageFirst }),
  qwen2_vl: client({ call: textFirst }),
  qwen2_5_vl: client({ call: textFirst }),
  qwen3_vl: client({ call: textFirst }),
  qwen3_vl_moe: client({ call: textFirst }),
  qwen3_5: client({ call: textFirst }),
  qwen3_5_moe: client({ call: textFirst }),
};

/**
 * How the model of a folder is run.
 * @throws DesapError `ERR_FILE` for a folder without config; `ERR_VALUE` for a family that is not taken, with the reason
 */
export async function modelKind(folder: string): Promise<ModelKind> {
  await requireFolder(folder, 'a model folder');
  const config = await readConfig(folder);
  const { name } = familyOf(join(folder, 'config.json'), config);
  return CLIP[name] ?? CLIENT[config.model_type as string];
}
