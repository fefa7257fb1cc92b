import type { Tensor } from 'onnxruntime-common';
import { DEVICE_OPTIONS } from '../devices/open.js';
import { invalid } from '../errors.js';
import type { Pruner, TensorLike, TextEmbeddings } from '../index.js';
import { type OptionNames, options } from '../options.js';
import { floatData, isTensor, widened } from '../tensor.js';
import { checkQuestion } from './check-question.js';
import { ClipEncoder, type ClipEncoderOptions, TOLERANCE } from './clip-encoder.js';
import type { ClipText } from './clip-text.js';
import { LlavaImage } from './llava-image.js';
import { VisionModelBase } from './model-base.js';
import type { InputNames, VisionInputs } from './vision-model.js';

/** Options of {@link LlavaVision.open}. */
export interface LlavaVisionOptions extends ClipEncoderOptions {}

export const LLAVA_OPTIONS: OptionNames<LlavaVisionOptions> = {
  ...DEVICE_OPTIONS,
  ...{ clip: true, head: true, pruner: true, keep: true, keepRatio: true, encoding: true, longText: true },
  ...{ session: true, ort: true },
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
export class LlavaVision extends VisionModelBase<LlavaImage, TensorLike> {
  private constructor(private readonly encoder: ClipEncoder) {
    const { keep, keepRatio } = encoder.options;
    super('LlavaVision', 'llava', TOLERANCE, { keep, keepRatio });
  }

  /**
   * Opens the encoder in two parts, takes the head out of the CLIP folder, and checks by numbers that both belong to one tower.
   *
   * @param visionEncoder path of a LLaVA `vision_encoder.onnx`
   * @throws DesapError `ERR_FILE`; `ERR_GRAPH` when a file holds another kind of model; `ERR_HEAD_MISMATCH` when head and tower
   *   do not belong together; `ERR_DEVICE_UNAVAILABLE`; `ERR_MISSING_PACKAGE`; `ERR_VALUE` for the options
   */
  static async open(visionEncoder: string, given: LlavaVisionOptions): Promise<LlavaVision> {
    const checked = options('options', given, LLAVA_OPTIONS, RENAMED);
    return new LlavaVision(await ClipEncoder.open(visionEncoder, checked));
  }

  /** The pruner, for single kernels and other text than a question. */
  get pruner(): Pruner {
    return this.encoder.pruner;
  }

  /** Whether the file itself leaves the class token out of its features, or has none. */
  get dropsClassToken(): boolean {
    return this.encoder.dropsClassToken;
  }

  /**
   * The CLIP text tower.
   * @throws DesapError `ERR_VALUE` when there is none: without a CLIP folder, or one without it
   */
  get text(): ClipText {
    return this.encoder.text;
  }

  get device(): string {
    return this.pruner.device;
  }

  get deviceDescription(): string {
    return this.pruner.deviceDescription;
  }

  protected async encodeText(question: string): Promise<TextEmbeddings> {
    return this.text.encode(checkQuestion(question));
  }

  protected async encodeImages(inputs: VisionInputs | TensorLike, names: InputNames): Promise<LlavaImage[]> {
    const pixels = floatData(names.pixelValues, pixelsOf(inputs));
    const [count, ...extents] = pixels.dims;
    if (pixels.dims.length !== 4 || count < 1)
      throw invalid('ERR_SHAPE', `${names.pixelValues}.dims`, pixels.dims, '[images, 3, H, W]');
    const { encoding } = this.encoder.options;
    const encoded = await this.encoder.encode(widened(pixels), pixels.dims, names.pixelValues);
    return encoded.map(
      ({ batch, index, milliseconds }) => new LlavaImage(this, batch, index, { extents, encoding, milliseconds }),
    );
  }

  /**
   * The projector alone.
   * @param rows [K, D] of any selection
   * @returns features [1, K, W]
   */
  async project(rows: TensorLike): Promise<Tensor> {
    return this.life.call(() => this.encoder.project(rows));
  }

  protected free(): Promise<void> {
    return this.encoder.dispose();
  }
}

function pixelsOf(inputs: VisionInputs | TensorLike): TensorLike {
  if (typeof inputs !== 'object' || inputs === null || isTensor(inputs)) return inputs;
  return options<Pick<VisionInputs, 'pixelValues'>>('inputs', inputs, { pixelValues: true }).pixelValues as TensorLike;
}
