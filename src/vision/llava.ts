import { DEVICE_OPTIONS } from '../devices/open.js';
import { invalid } from '../errors.js';
import type { TensorLike } from '../index.js';
import { type OptionNames, options } from '../options.js';
import { floatData, isTensor, widened } from '../tensor.js';
import { ClipEncoder, type ClipEncoderOptions } from './clip-encoder.js';
import { ClipVisionModel } from './clip-model.js';
import { LlavaImage } from './llava-image.js';
import { clipSource } from './method-source.js';
import type { InputNames, VisionInputs } from './vision-model.js';

/** Options of {@link LlavaVision.open}. */
export interface LlavaVisionOptions extends ClipEncoderOptions {}

export const LLAVA_OPTIONS: OptionNames<LlavaVisionOptions> = {
  ...DEVICE_OPTIONS,
  ...{ clip: true, head: true, pruner: true, keep: true, keepRatio: true, encoding: true },
  ...{ longText: true, filter: true, text: true, taps: true, tower: true, session: true, ort: true },
};
const RENAMED = { clipFolder: 'clip' };

/**
 * LLaVA's vision encoder with pruning between its tower and its projector, over onnxruntime-node.
 *
 * The user's `vision_encoder.onnx` is opened in two parts that share its weights on disk. The tower writes its hidden states
 * straight into memory that the pruner reads in place; the kept tokens are the projector's input as they are.
 *
 * ONNX Runtime blocks Node's event loop while a session runs (version 1.30 runs on the main thread); the pruner does not.
 * A server puts the whole pipeline into a worker thread.
 *
 * ```ts
 * const vision = await LlavaVision.open('llava/onnx/vision_encoder.onnx', { clip: 'clip-vit-large-patch14-336' });
 * const { features, indices } = await vision.prune(pixelValues, 'is the fence wood or metal?', { keep: 64 });
 * ```
 */
export class LlavaVision extends ClipVisionModel<LlavaImage, TensorLike> {
  /**
   * Opens the encoder in two parts, takes the head out of the CLIP folder, and checks by numbers that both belong to one tower.
   *
   * @param visionEncoder path of a LLaVA `vision_encoder.onnx`
   * @throws DesapError `ERR_FILE`; `ERR_GRAPH` when a file holds another kind of model; `ERR_HEAD_MISMATCH` when head and tower
   *   do not belong together; `ERR_DEVICE_UNAVAILABLE`; `ERR_MISSING_PACKAGE`; `ERR_VALUE` for the options
   */
  static async open(visionEncoder: string, given: LlavaVisionOptions): Promise<LlavaVision> {
    const checked = options('options', given, LLAVA_OPTIONS, RENAMED);
    return new LlavaVision('LlavaVision', 'llava', await ClipEncoder.open(visionEncoder, checked));
  }

  protected async encodeImages(inputs: VisionInputs | TensorLike, names: InputNames): Promise<LlavaImage[]> {
    const pixels = floatData(names.pixelValues, pixelsOf(inputs));
    const [count, ...extents] = pixels.dims;
    if (pixels.dims.length !== 4 || count < 1)
      throw invalid('ERR_SHAPE', `${names.pixelValues}.dims`, pixels.dims, '[images, 3, H, W]');
    const { encoding } = this.encoder.options;
    const encoded = await this.encoder.encode(widened(pixels), pixels.dims, names.pixelValues);
    return encoded.map(
      (one) =>
        new LlavaImage(this, one, {
          ...{ extents, encoding },
          source: (grid) => clipSource(this.encoder, one, { patches: null, grid }),
        }),
    );
  }
}

function pixelsOf(inputs: VisionInputs | TensorLike): TensorLike {
  if (typeof inputs !== 'object' || inputs === null || isTensor(inputs)) return inputs;
  return options<Pick<VisionInputs, 'pixelValues'>>('inputs', inputs, { pixelValues: true }).pixelValues as TensorLike;
}
