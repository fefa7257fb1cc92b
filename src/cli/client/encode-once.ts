import type { EncodedImage, PrunedFeatures, VisionInputs, VisionModel } from '../../vision/vision-model.js';

/** What a vision model did for one call of the language model. */
export interface Seen {
  /** Of the first image; undefined where nothing was pruned. */
  readonly pruned?: PrunedFeatures;
  /** Milliseconds of encoding and pruning together, within the call. */
  readonly milliseconds: number;
  /** Milliseconds of encoding the images, whichever call did it. */
  readonly encoding: number;
}

/**
 * Lets a vision model encode an image once for all calls with the same pixels, until it is to be forgotten; and tells what each call
 * took. One call at a time.
 */
export class EncodeOnce {
  #held: Held | undefined;
  #pruned: PrunedFeatures | undefined;
  #milliseconds = 0;

  /** Puts itself in front of a vision model's methods. */
  readonly watch = (vision: VisionModel): void => {
    const encode = vision.encode.bind(vision);
    const pruneImages = vision.pruneImages.bind(vision);
    vision.encode = (inputs, names) =>
      this.#timed(async () => {
        const pixels = pixelsOf(inputs);
        if (this.#held?.pixels !== pixels) {
          this.forget();
          const start = performance.now();
          this.#held = held(pixels, await encode(inputs, names), start);
        }
        return [...(this.#held as Held).images];
      });
    vision.pruneImages = (images, questions, options) =>
      this.#timed(async () => {
        const pruned = await pruneImages(images, questions, options);
        this.#pruned = pruned[0];
        return pruned;
      });
  };

  /** What happened since it was last asked. */
  take(): Seen {
    const encoding = this.#held?.milliseconds ?? 0;
    const seen = { pruned: this.#pruned, milliseconds: this.#milliseconds, encoding };
    this.#pruned = undefined;
    this.#milliseconds = 0;
    return seen;
  }

  /** Frees the image, and forgets what happened, which a call that failed left here. */
  forget(): void {
    this.#held?.free();
    this.#held = undefined;
    this.take();
  }

  async #timed<T>(work: () => Promise<T>): Promise<T> {
    const start = performance.now();
    try {
      return await work();
    } finally {
      this.#milliseconds += performance.now() - start;
    }
  }
}

/** The memory of the pixels: the client wraps it anew for each call. */
function pixelsOf({ pixelValues, pixelValuesVideos }: VisionInputs): unknown {
  return (pixelValues ?? pixelValuesVideos)?.data;
}

interface Held {
  readonly pixels: unknown;
  readonly images: readonly EncodedImage[];
  /** What encoding them took. */
  readonly milliseconds: number;
  free(): void;
}

/** Images that outlive the calls that dispose of them. */
function held(pixels: unknown, images: readonly EncodedImage[], start: number): Held {
  const milliseconds = performance.now() - start;
  const frees = images.map((image) => image.dispose.bind(image));
  for (const image of images) image.dispose = () => {};
  return {
    pixels,
    images,
    milliseconds,
    free: () => {
      for (const free of frees) free();
    },
  };
}
