import { join } from 'node:path';
import { opening } from '../abort.js';
import { reading } from '../options.js';
import { object } from '../tensor.js';
import { familyOf, type VisionModelOptions } from './families.js';
import { locateModel, readConfig } from './model-folder.js';
import type { VisionModel } from './vision-model.js';

/**
 * Opens the vision model of a folder, of whichever family it is: `model_type` of its `config.json` says which.
 *
 * ```ts
 * const vision = await openVisionModel('Qwen2-VL-2B-Instruct', { keep: 64 });
 * const llava = await openVisionModel('llava-1.5-7b-hf', { clip: 'clip-vit-large-patch14-336', keep: 64 });
 * ```
 *
 * @param model a model folder in the layout of Transformers.js (`config.json`, `onnx/vision_encoder.onnx`), or the path of its vision
 *   encoder; the option `dtype` names another file: `fp16` opens `onnx/vision_encoder_fp16.onnx`
 * @throws DesapError `ERR_FILE` where files are missing; `ERR_VALUE` for a family that is not taken, with the reason, and for the options;
 *   `ERR_ABORTED`; else as the family's own `open`
 */
export async function openVisionModel(model: string, options: VisionModelOptions = {}): Promise<VisionModel> {
  object('options', options);
  const { signal, ...given } = reading('options', () => ({ ...options }));
  const open = async () => {
    const files = await locateModel(model, given.dtype);
    const config = await readConfig(files.folder);
    return familyOf(join(files.folder, 'config.json'), config).open({ ...files, config }, given);
  };
  return opening(signal, open, (vision) => vision.dispose());
}
