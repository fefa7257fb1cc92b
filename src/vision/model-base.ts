import { type Abortable, signalOf } from '../abort.js';
import { ASYNC_DISPOSE } from '../dispose-symbols.js';
import { invalid, mismatch } from '../errors.js';
import type { TextEmbeddings } from '../index.js';
import { Lifetime } from '../lifetime.js';
import { entries, isOf } from '../options.js';
import { isArray } from '../tensor.js';
import { traced } from '../trace.js';
import { askAhead } from './ask-ahead.js';
import { abortableOptions, EncodedImageBase, visionPruneOptions } from './image-base.js';
import { type AskedImage, mapTogether, pruneTogether } from './prune-together.js';
import {
  type Budget,
  type EncodedImage,
  INPUT_NAMES,
  type InputNames,
  type PrunedFeatures,
  type Question,
  type TokenMaps,
  type VisionInputs,
  type VisionModel,
  type VisionPruneOptions,
} from './vision-model.js';

/**
 * What vision models have in common: which calls are under way, and the one that does all of it for one image.
 * `Others`: further forms in which a family takes its inputs.
 */
export abstract class VisionModelBase<Image extends EncodedImage, Others = never> implements VisionModel {
  /** @internal Its images use it too. */
  readonly life: Lifetime;
  abstract readonly device: string;
  abstract readonly deviceDescription: string;

  /**
   * @param name of the class, for messages
   * @param budget @internal the default of every pruning
   * @param questionsBeside whether questions are encoded in another thread
   */
  protected constructor(
    name: string,
    readonly family: string,
    readonly tolerance: number,
    readonly budget: Budget,
    readonly questionsBeside = false,
  ) {
    this.life = new Lifetime(name);
  }

  async encode(inputs: VisionInputs | Others, names: InputNames = INPUT_NAMES, call?: Abortable): Promise<Image[]> {
    const work = () => this.encodeImages(inputs, names);
    return traced('VisionModel.encode', () => this.life.call(work, signalOf('call', call), disposeAll));
  }

  async encodeQuestion(question: string, call?: Abortable): Promise<TextEmbeddings> {
    const work = () => this.encodeText(question);
    return traced('VisionModel.encodeQuestion', () => this.life.call(work, signalOf('call', call)));
  }

  async prune(
    inputs: VisionInputs | Others,
    question: Question,
    given?: VisionPruneOptions & Abortable,
  ): Promise<PrunedFeatures> {
    const { signal, ...choice } = abortableOptions(given);
    const work = async () => {
      const prune = askAhead(this, question, choice);
      const images = await this.encode(inputs);
      try {
        if (images.length === 1) return await prune(images[0], choice);
        throw mismatch('ERR_SHAPE', 'pixelValues', `${images.length} images`, 'one (encode several, and prune each)');
      } finally {
        disposeAll(images);
      }
    };
    return traced('VisionModel.prune', () => this.life.call(work, signal));
  }

  async pruneImages(
    images: readonly EncodedImage[],
    questions: readonly Question[],
    options?: readonly (VisionPruneOptions | undefined)[],
    call?: Abortable,
  ): Promise<PrunedFeatures[]> {
    const work = async () => pruneTogether(this.#asked(images, questions, options));
    return traced('VisionModel.pruneImages', () => this.life.call(work, signalOf('call', call)));
  }

  async mapImages(
    images: readonly EncodedImage[],
    questions: readonly Question[],
    options?: readonly (VisionPruneOptions | undefined)[],
    call?: Abortable,
  ): Promise<TokenMaps[]> {
    const work = async () => mapTogether(this.#asked(images, questions, options));
    return traced('VisionModel.mapImages', () => this.life.call(work, signalOf('call', call)));
  }

  /** Its own images, each with its question and its options. */
  #asked(
    images: readonly EncodedImage[],
    questions: readonly Question[],
    given?: readonly (VisionPruneOptions | undefined)[],
  ): AskedImage[] {
    if (!isArray(images)) throw invalid('ERR_VALUE', 'images', images, 'a list of encoded images');
    const all = entries('images', images);
    const asked = oneOfEach('questions', questions, all.length);
    const options = given === undefined ? [] : oneOfEach('options', given, all.length);
    return all.map((image, i) => {
      const [argument, wanted] = [`images[${i}]`, 'one that this model encoded'];
      if (!isOf(EncodedImageBase, image)) throw invalid('ERR_VALUE', argument, image, wanted);
      if (!image.isOf(this)) throw mismatch('ERR_VALUE', argument, 'an image of another model', wanted);
      return { image, question: asked[i], options: visionPruneOptions(`options[${i}]`, options[i]) };
    });
  }

  dispose(): Promise<void> {
    return this.life.end(() => this.free());
  }

  /** As {@link VisionModel.dispose}. */
  [ASYNC_DISPOSE](): Promise<void> {
    return this.dispose();
  }

  protected abstract encodeImages(inputs: VisionInputs | Others, names: InputNames): Promise<Image[]>;
  protected abstract encodeText(question: string): Promise<TextEmbeddings>;
  protected abstract free(): Promise<unknown>;
}

function disposeAll(images: readonly EncodedImage[]): void {
  for (const image of images) image.dispose();
}

/** @throws DesapError `ERR_VALUE`, `ERR_SHAPE` */
function oneOfEach<T>(argument: string, given: readonly T[], images: number): T[] {
  if (!isArray(given)) throw invalid('ERR_VALUE', argument, given, 'a list with one for each image');
  const list = entries(argument, given);
  if (list.length === images) return list;
  throw mismatch('ERR_SHAPE', argument, `${list.length} of them`, `${images}, one for each image`);
}
