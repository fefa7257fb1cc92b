import type { BlockImage } from './block-image.js';
import { BlockVision, type BlockVisionOptions } from './block-vision.js';
import { QWEN } from './qwen-family.js';
import type { InputNames, VisionInputs } from './vision-model.js';

export { BlockImage as QwenImage } from './block-image.js';

export interface QwenVisionOptions extends BlockVisionOptions {}

/**
 * The vision encoder of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and what inherits from them, with pruning, over onnxruntime-node: an encoder of its
 * own without class token, two by two patches merged to one visual token. The unit of pruning is that token. A video is an image of
 * several frames; `keep` is of all of them unless `allocation` is `tile`, which makes it that of each frame.
 *
 * The paper does not say what the task signal of such a model is. Here: the last block's decoupled attention through the merger, so
 * that it lies in the language model's space (A_d), against the language model's own embeddings of the question (S); both sides'
 * global vectors are normalised means. `taskShare: 0` leaves it out.
 *
 * ```ts
 * const vision = await QwenVision.open('Qwen2-VL-2B-Instruct/onnx/vision_encoder.onnx');
 * const [image] = await vision.encode({ pixelValues, imageGridThw });
 * const { features, indices } = await image.prune('is the fence wood or metal?', { keep: 64 });
 * const [video] = await vision.encode({ pixelValuesVideos, videoGridThw });
 * ```
 */
export class QwenVision extends BlockVision {
  /**
   * Opens the encoder, and checks on trial images that its parts compute what the file by itself computes. The file runs first, and is
   * closed before the encoder is opened: memory holds the weights once.
   *
   * @param visionEncoder path of a `vision_encoder.onnx`
   * @throws DesapError `ERR_FILE`; `ERR_GRAPH` when the encoder is not built as expected, with what was looked for;
   *   `ERR_HEAD_MISMATCH` when it was not read right; `ERR_DEVICE_UNAVAILABLE`; `ERR_MISSING_PACKAGE`; `ERR_VALUE` for the options
   */
  static async open(visionEncoder: string, given: QwenVisionOptions = {}): Promise<QwenVision> {
    return QwenVision.openAs(QWEN, visionEncoder, given);
  }

  /** As {@link BlockVision.encode}. Its images have no tiles that could be left out. */
  override encode(inputs: VisionInputs, names?: InputNames): Promise<BlockImage[]> {
    return super.encode(inputs, names) as Promise<BlockImage[]>;
  }
}
