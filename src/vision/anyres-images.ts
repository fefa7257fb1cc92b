import { type Abortable, abortable, checkAborted, signalOf } from '../abort.js';
import { invalid, mismatch } from '../errors.js';
import { object, Tensor } from '../tensor.js';
import { bestSize, type ImageSize, PINPOINTS, type TileRule } from './anyres.js';
import type { ImageProcessorConfig } from './image/config.js';
import type { RgbImage } from './image/extent.js';
import { readRecipe } from './image/recipe.js';
import { resample } from './image/resample.js';
import { type ImageSource, readImage } from './image/source.js';
import { ImageProcessor, imageConfig } from './image-processor.js';

/** The fields that `LlavaNextImageProcessor` has beyond those of other processors. */
export interface AnyresImageProcessorConfig extends ImageProcessorConfig {
  /** Sizes that an image may be brought to before it is cut into tiles, [height, width] each. */
  readonly image_grid_pinpoints?: readonly (readonly [height: number, width: number])[] | null;
}

/** Images in tiles, as LLaVA-NeXT takes them. */
export interface AnyresImages {
  /** [images, tiles, 3, side, side] float32: the whole image, then its tiles row by row, then zeros up to the most that an image of the call has. */
  readonly pixelValues: Tensor;
  /** [images, 2] int64: height and width of each image, upright, before anything was done to it. */
  readonly imageSizes: Tensor;
}

const BLACK = [0, 0, 0] as const;
const TYPE = /^LlavaNextImageProcessor(Fast|Pil)?$/;
/** Many more than any model has: a list is gone through for each image. */
const MAX_PINPOINTS = 4096;

/**
 * Images to tiles, as Hugging Face's `LlavaNextImageProcessor` (the PIL one, version 5) makes them: the whole image squeezed into a square,
 * and the image brought to the size of `image_grid_pinpoints` that suits it best, centred on black and cut into squares. What is said of
 * {@link ImageProcessor} holds here too.
 */
export class AnyresImageProcessor {
  private constructor(
    /** What turns bytes into `pixel_values`. */
    private readonly values: ImageProcessor,
    /** How images are cut into tiles. */
    readonly rule: TileRule,
    private readonly resampling: number,
  ) {}

  /**
   * @param source a model folder with `preprocessor_config.json` (or `processor_config.json`), or the configuration itself
   * @throws DesapError `ERR_FILE` for a folder without these files; `ERR_VALUE` for an unsupported kind of processor, field or value
   */
  static async open(source: string | AnyresImageProcessorConfig, call?: Abortable): Promise<AnyresImageProcessor> {
    return abortable(signalOf('call', call), () => AnyresImageProcessor.#open(source));
  }

  static async #open(source: string | AnyresImageProcessorConfig): Promise<AnyresImageProcessor> {
    const config: AnyresImageProcessorConfig = await imageConfig(source);
    const { image_processor_type: type, image_grid_pinpoints: pinpoints, do_pad: _, ...others } = config;
    if (type != null && !TYPE.test(type))
      throw invalid('ERR_VALUE', 'image_processor_type', type, "'LlavaNextImageProcessor'");
    const { resize, crop } = readRecipe({ ...others, do_resize: true });
    const { rule, resampling } = resize!;
    const edges = rule.to === 'shortest' ? [rule.edge, rule.edge] : [rule.extent.width, rule.extent.height];
    if (crop) edges.push(crop.width, crop.height);
    const [side] = edges;
    if (rule.to === 'within' || edges.some((edge) => edge !== side))
      throw mismatch('ERR_VALUE', 'size', `the edges ${edges.join(', ')} of size and crop_size`, 'one square');
    return new AnyresImageProcessor(
      await ImageProcessor.open(others),
      { side, pinpoints: checkPinpoints('image_grid_pinpoints', pinpoints ?? PINPOINTS, side) },
      resampling,
    );
  }

  /**
   * The tiles of one image or of several.
   * @throws DesapError as {@link ImageProcessor.process}; `ERR_VALUE` for no image
   */
  async process(images: ImageSource | readonly ImageSource[], call?: Abortable): Promise<AnyresImages> {
    return abortable(signalOf('call', call), () => this.#process(images));
  }

  async #process(images: ImageSource | readonly ImageSource[]): Promise<AnyresImages> {
    const sources = Array.isArray(images) ? (images as readonly ImageSource[]) : [images as ImageSource];
    if (sources.length < 1) throw invalid('ERR_VALUE', 'images', images, 'at least one image');
    const sizes: ImageSize[] = [];
    const tiles: Float32Array[][] = [];
    for (const source of sources) {
      const image = await readImage(source);
      checkAborted();
      sizes.push({ height: image.height, width: image.width });
      tiles.push(this.#tiles(image).map((tile) => this.values.normalize(tile).data as Float32Array));
    }
    const [{ side }, most] = [this.rule, Math.max(...tiles.map((own) => own.length))];
    const size = 3 * side * side;
    const pixels = new Float32Array(sources.length * most * size);
    tiles.forEach((own, image) => {
      own.forEach((tile, i) => {
        pixels.set(tile, (image * most + i) * size);
      });
    });
    const extents = BigInt64Array.from(
      sizes.flatMap(({ height, width }) => [height, width]),
      BigInt,
    );
    return {
      pixelValues: new Tensor('float32', pixels, [sources.length, most, 3, side, side]),
      imageSizes: new Tensor('int64', extents, [sources.length, 2]),
    };
  }

  /** The whole image, and the tiles of the image on black. */
  #tiles(image: RgbImage): RgbImage[] {
    const { side } = this.rule;
    const best = bestSize(image, this.rule);
    const map = onBlack(this.#resized(image, within(image, best)), best);
    const tiles = [this.#resized(image, { height: side, width: side })];
    for (let top = 0; top < map.height; top += side)
      for (let left = 0; left < map.width; left += side) tiles.push(cut(map, top, left, side));
    return tiles;
  }

  #resized(image: RgbImage, { height, width }: ImageSize): RgbImage {
    const canvas = { image, width: image.width, height: image.height, left: 0, top: 0, background: BLACK };
    return resample(canvas, { width, height }, { left: 0, top: 0, width, height }, this.resampling);
  }
}

/**
 * Sizes that are cut into tiles of a side without rest.
 * @throws DesapError `ERR_VALUE`
 */
export function checkPinpoints(
  argument: string,
  given: AnyresImageProcessorConfig['image_grid_pinpoints'],
  side: number,
): TileRule['pinpoints'] {
  const fits = (edge: unknown) =>
    Number.isSafeInteger(edge) && (edge as number) >= side && (edge as number) % side === 0;
  const wanted = `[height, width] in multiples of ${side}, the side of a tile`;
  if (!Array.isArray(given) || given.length < 1 || given.length > MAX_PINPOINTS)
    throw invalid('ERR_VALUE', argument, given, `1 to ${MAX_PINPOINTS} sizes, each ${wanted}`);
  given.forEach((size, i) => {
    const edges = object(`${argument}[${i}]`, size, wanted);
    if (edges.length !== 2 || !edges.every(fits)) throw invalid('ERR_VALUE', `${argument}[${i}]`, size, wanted);
  });
  return given as TileRule['pinpoints'];
}

/** The size of an image that is made as large as fits: the edge that decides is met, the other is rounded up. */
function within({ height, width }: ImageSize, best: ImageSize): ImageSize {
  const [across, down] = [best.width / width, best.height / height];
  return across < down
    ? { width: best.width, height: Math.min(Math.ceil(height * across), best.height) }
    : { height: best.height, width: Math.min(Math.ceil(width * down), best.width) };
}

function onBlack({ data, width, height }: RgbImage, size: ImageSize): RgbImage {
  const [top, left] = [Math.floor((size.height - height) / 2), Math.floor((size.width - width) / 2)];
  const canvas = new Uint8Array(3 * size.height * size.width);
  for (let y = 0; y < height; y++)
    canvas.set(data.subarray(3 * y * width, 3 * (y + 1) * width), 3 * ((y + top) * size.width + left));
  return { data: canvas, ...size };
}

function cut({ data, width }: RgbImage, top: number, left: number, side: number): RgbImage {
  const tile = new Uint8Array(3 * side * side);
  for (let y = 0; y < side; y++) {
    const start = 3 * ((top + y) * width + left);
    tile.set(data.subarray(start, start + 3 * side), 3 * y * side);
  }
  return { data: tile, width: side, height: side };
}
