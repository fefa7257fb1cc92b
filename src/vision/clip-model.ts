import type { Tensor } from 'onnxruntime-common';
import { type Abortable, signalOf } from '../abort.js';
import type { Pruner, TensorLike, TextEmbeddings } from '../index.js';
import { checkQuestion } from './check-text.js';
import { type ClipEncoder, TOLERANCE } from './clip-encoder.js';
import type { ClipText } from './clip-text.js';
import { VisionModelBase } from './model-base.js';
import type { EncodedImage } from './vision-model.js';

/** What vision models with a CLIP tower have in common. */
export abstract class ClipVisionModel<Image extends EncodedImage, Others = never> extends VisionModelBase<
  Image,
  Others
> {
  /**
   * @param encoder @internal
   * @param asksBeside whether its text tower, where that has a thread of its own, is asked about all images
   */
  protected constructor(
    name: string,
    family: string,
    protected readonly encoder: ClipEncoder,
    asksBeside = true,
  ) {
    const { keep, keepRatio, text } = encoder.options;
    super(name, family, TOLERANCE, { keep, keepRatio }, asksBeside && text === 'worker');
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

  /**
   * The projector alone.
   * @param rows [K, D] of any selection
   * @returns features [1, K, W]
   */
  async project(rows: TensorLike, call?: Abortable): Promise<Tensor> {
    return this.life.call(() => this.encoder.project(rows), signalOf('call', call));
  }

  protected free(): Promise<unknown> {
    return this.encoder.dispose();
  }
}
