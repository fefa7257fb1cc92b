import { basename, dirname, join } from 'node:path';
import { DesapError, invalid } from '../errors.js';
import { isFile, readJson } from '../files.js';
import { oneOf } from '../tensor.js';

/** What Transformers.js adds to a file name for each dtype. */
export const SUFFIX = {
  fp32: '',
  fp16: '_fp16',
  int8: '_int8',
  uint8: '_uint8',
  q8: '_quantized',
  q4: '_q4',
  q2: '_q2',
  q1: '_q1',
  q4f16: '_q4f16',
  q2f16: '_q2f16',
  q1f16: '_q1f16',
  bnb4: '_bnb4',
} as const;

/** Forms of weights, by the names that Transformers.js has for them. */
export type Dtype = keyof typeof SUFFIX;
export const DTYPES = Object.keys(SUFFIX) as Dtype[];

/** What vision models read of a `config.json`. */
export interface ModelConfig {
  readonly model_type?: string;
  /** LLaVA-NeXT: sizes that an image may be brought to, [height, width] each. */
  readonly image_grid_pinpoints?: readonly (readonly [height: number, width: number])[];
  /** LFM2-VL: rows, and columns, of patches that become one visual token. */
  readonly downsample_factor?: number;
  /** nanoLLaVA and FastVLM: the name of the tower. */
  readonly mm_vision_tower?: string;
  readonly vision_config?: {
    readonly model_type?: string;
    readonly architecture?: string;
    readonly image_size?: number;
    readonly spatial_merge_size?: number;
    readonly patch_size?: number;
    readonly temporal_patch_size?: number;
    readonly tokens_per_second?: number;
    readonly in_channels?: number;
    readonly in_chans?: number;
    readonly depth?: number;
    readonly fullatt_block_indexes?: readonly number[];
  };
}

/** A model folder in the layout of Transformers.js: `config.json`, and the ONNX files in `onnx/`. */
export interface ModelFolder {
  readonly folder: string;
  readonly visionEncoder: string;
}

/** The name of a part's ONNX file. */
export function onnxName(part: string, dtype: Dtype = 'fp32'): string {
  return `${part}${SUFFIX[oneOf('dtype', dtype, DTYPES)]}.onnx`;
}

/** The folder that an ONNX file belongs to. */
export function folderOf(file: string): string {
  const beside = dirname(file);
  return basename(beside) === 'onnx' ? dirname(beside) : beside;
}

/**
 * The vision encoder of a model folder; or the folder of a vision encoder.
 * @throws DesapError `ERR_FILE` where there is none, `ERR_VALUE` for an unknown dtype
 */
export async function locateModel(model: string, dtype?: Dtype): Promise<ModelFolder> {
  if (typeof model !== 'string') throw invalid('ERR_VALUE', 'model', model, 'the path of a model folder');
  if (await isFile(model)) return { folder: folderOf(model), visionEncoder: model };
  const visionEncoder = join(model, 'onnx', onnxName('vision_encoder', dtype));
  if (await isFile(visionEncoder)) return { folder: model, visionEncoder };
  throw new DesapError('ERR_FILE', `${visionEncoder}: got no such file, wanted the vision encoder of a model folder`);
}

/** @throws DesapError `ERR_FILE` */
export function readConfig(folder: string): Promise<ModelConfig> {
  return readJson(join(folder, 'config.json'));
}

/**
 * The ONNX file of a part in whatever dtype there is, the given one first.
 * @throws DesapError `ERR_FILE` where there is none
 */
export async function anyOnnx(folder: string, part: string, first: Dtype = 'fp32'): Promise<string> {
  for (const dtype of [first, ...DTYPES]) {
    const file = join(folder, 'onnx', onnxName(part, dtype));
    if (await isFile(file)) return file;
  }
  throw new DesapError('ERR_FILE', `${join(folder, 'onnx', onnxName(part))}: got no such file, in no dtype`);
}
