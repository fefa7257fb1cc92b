import { join } from 'node:path';
import { types } from 'node:util';
import { type Abortable, abortable, checkAborted, signalOf } from '../abort.js';
import { DesapError, invalid, mismatch } from '../errors.js';
import { isFile, readJson } from '../files.js';
import { entries, fields, reading } from '../options.js';
import { isArray, object, plain, Tensor } from '../tensor.js';
import type { ImageProcessorConfig } from './image/config.js';
import type { RgbImage } from './image/extent.js';
import { compose } from './image/layout.js';
import { type Recipe, readRecipe } from './image/recipe.js';
import { type ImageSource, readImage } from './image/source.js';

export type { ConfiguredSize, ImageProcessorConfig } from './image/config.js';
export type { RgbImage } from './image/extent.js';
export type { ImageSource, Pixels } from './image/source.js';

/**
 * Images to `pixel_values`, as Hugging Face's image processors make them from a file (the PIL ones, version 5). An image is turned
 * upright by its EXIF orientation, made RGB (transparency is dropped, grey is spread, colour profiles are ignored), padded to a square
 * where LLaVA's configuration says so, resized, centre-cropped, rescaled and normalised. The kinds are `CLIPImageProcessor`,
 * `LlavaImageProcessor`, `SiglipImageProcessor`, `ViTImageProcessor`, `ChineseCLIPImageProcessor`, `BitImageProcessor`,
 * `DeiTImageProcessor` and `BlipImageProcessor`; any other is refused.
 *
 * Resizing uses Pillow's own arithmetic: every pixel is that of Pillow 13. Older Pillows take the axes in the other order where an image
 * loses more than twice as many rows as columns, and differ there by a few of the 255 levels. Processors that resize with torchvision
 * (`...Fast` in version 4, the default in version 5) differ there too, and elsewhere by one or two levels in a pixel in two hundred.
 *
 * At most 178 956 970 pixels come in, as with Pillow, and at most 4096 x 4096 go out. The calling thread computes only what the crop
 * keeps: about 0.2 s for a photo of 12 million pixels.
 */
export class ImageProcessor {
  private constructor(private readonly recipe: Recipe) {}

  /**
   * @param source a model folder with `preprocessor_config.json`, or with `processor_config.json` that has an `image_processor` (which
   *   goes first, as in Hugging Face); or the configuration itself
   * @throws DesapError `ERR_FILE` for a folder without these files; `ERR_VALUE` for an unsupported kind of processor, field or value
   */
  static async open(source: string | ImageProcessorConfig, call?: Abortable): Promise<ImageProcessor> {
    return abortable(signalOf('call', call), async () => new ImageProcessor(readRecipe(await imageConfig(source))));
  }

  /**
   * The normalised `pixel_values` [1, 3, H, W], float32.
   * @throws DesapError `ERR_FILE` for a file that is missing or not an image; `ERR_VALUE` for a value that is not an
   *   {@link ImageSource}, for animations and for images that are too large; `ERR_SHAPE`, `ERR_DTYPE` for pixels that contradict their size; `ERR_MISSING_PACKAGE`
   */
  async process(source: ImageSource, call?: Abortable): Promise<Tensor> {
    return abortable(signalOf('call', call), async () => this.normalize(await this.rgb(source)));
  }

  /**
   * Frames of a video, one after the other: `pixel_values_videos` [1, frames, 3, H, W], float32.
   * @throws DesapError as {@link ImageProcessor.process}; `ERR_VALUE` for no frame, `ERR_SHAPE` for frames of several sizes
   */
  async video(frames: readonly ImageSource[], call?: Abortable): Promise<Tensor> {
    return abortable(signalOf('call', call), () => this.#video(frames));
  }

  async #video(frames: readonly ImageSource[]): Promise<Tensor> {
    const shown = isArray(frames) ? entries('frames', frames) : [];
    if (shown.length < 1) throw invalid('ERR_VALUE', 'frames', frames, 'a list of at least one image');
    const [first, ...others] = await Promise.all(shown.map((frame) => this.process(frame)));
    const size = first.data.length;
    const pixels = new Float32Array(shown.length * size);
    [first, ...others].forEach(({ data, dims }, i) => {
      if (dims.join() !== first.dims.join())
        throw mismatch('ERR_SHAPE', `frames[${i}]`, `[${dims.join(', ')}]`, `[${first.dims.join(', ')}], as frames[0]`);
      pixels.set(data as Float32Array, i * size);
    });
    return new Tensor('float32', pixels, [1, shown.length, ...first.dims.slice(1)]);
  }

  /**
   * The image as the encoder sees it, in bytes: upright, padded, resized and cropped, not yet normalised.
   * @throws as {@link ImageProcessor.process}
   */
  async rgb(source: ImageSource, call?: Abortable): Promise<RgbImage> {
    return abortable(signalOf('call', call), async () => {
      const image = await readImage(source);
      checkAborted();
      return compose(image, this.recipe);
    });
  }

  /**
   * Rescales and normalises an image, in float32 as Hugging Face does: `pixel_values` [1, 3, H, W]. Where the configuration has a
   * `pad_size`, zeros fill it up to the right and below.
   * @throws DesapError `ERR_VALUE` for an image that is larger than `pad_size`; `ERR_SHAPE` for one whose bytes contradict its size
   */
  normalize(image: RgbImage): Tensor {
    const given = fields('image', object('image', image, WANTED), ['data', 'width', 'height']);
    const { width, height } = given;
    if (![width, height].every((edge) => Number.isSafeInteger(edge) && edge > 0) || !isBytes(given.data))
      throw invalid('ERR_SHAPE', 'image', image, WANTED);
    const data = plain(given.data);
    if (data.length !== 3 * width * height)
      throw mismatch('ERR_SHAPE', 'image.data', `${data.length} bytes for ${width} x ${height} pixels`, '3 a pixel');
    const { scale, normalize, pad } = this.recipe;
    const extent = pad ?? { width, height };
    if (extent.width < width || extent.height < height)
      throw mismatch(
        'ERR_VALUE',
        'image',
        `${width} x ${height} pixels`,
        `at most pad_size, ${extent.width} x ${extent.height}`,
      );
    const plane = extent.width * extent.height;
    const values = new Float32Array(3 * plane);
    for (let c = 0; c < 3; c++) {
      const table = Float32Array.from({ length: 256 }, (_, byte) => Math.fround(byte * scale));
      if (normalize) {
        const [mean, std] = [Math.fround(normalize.mean[c]), Math.fround(normalize.std[c])];
        for (let byte = 0; byte < 256; byte++) table[byte] = Math.fround(table[byte] - mean) / std;
      }
      for (let y = 0, from = c; y < height; y++)
        for (let x = 0, to = c * plane + y * extent.width; x < width; x++, to++, from += 3)
          values[to] = table[data[from]];
    }
    return new Tensor('float32', values, [1, 3, extent.height, extent.width]);
  }
}

const WANTED = 'an image, as rgb gives it';
const isBytes = (data: unknown) => types.isUint8Array(data) || types.isUint8ClampedArray(data);

/**
 * The image processor's fields of a model folder, or of a configuration.
 * @throws DesapError `ERR_FILE`, `ERR_VALUE`
 */
export async function imageConfig(source: string | ImageProcessorConfig): Promise<ImageProcessorConfig> {
  // Plain values, as in a file.
  const config =
    typeof source === 'string' ? await readConfig(source) : reading('source', () => structuredClone(source));
  if (typeof config !== 'object' || config === null)
    throw invalid('ERR_VALUE', 'source', source, 'a model folder, or the fields of its preprocessor_config.json');
  return nested(config) ?? config;
}

async function readConfig(folder: string): Promise<ImageProcessorConfig> {
  const [both, own] = [join(folder, 'processor_config.json'), join(folder, 'preprocessor_config.json')];
  const config = (await isFile(both)) ? nested(await readJson(both)) : null;
  if (config) return config;
  if (await isFile(own)) return readJson<ImageProcessorConfig>(own);
  throw new DesapError(
    'ERR_FILE',
    `${folder}: got neither preprocessor_config.json nor processor_config.json with an image_processor`,
  );
}

/** The image processor's fields inside those of the whole processor, as transformers 5 writes them. */
function nested(config: object): ImageProcessorConfig | null {
  const { image_processor: inner } = config as { image_processor?: unknown };
  return typeof inner === 'object' && inner !== null ? (inner as ImageProcessorConfig) : null;
}
