import { join } from 'node:path';
import { DesapError, invalid, mismatch } from '../errors.js';
import { isFile, readJson } from '../files.js';
import { Tensor } from '../tensor.js';
import type { ImageProcessorConfig } from './image/config.js';
import type { Picture } from './image/extent.js';
import { compose } from './image/layout.js';
import { type Recipe, readRecipe } from './image/recipe.js';
import { type ImageSource, readPicture } from './image/source.js';

export type { ImageProcessorConfig } from './image/config.js';
export type { Picture } from './image/extent.js';
export type { ImageSource, Pixels } from './image/source.js';

/**
 * Pictures to `pixel_values`, as Hugging Face's image processors (the PIL ones, version 5) make them from a file: EXIF orientation
 * applied, RGB (transparency is dropped, grey is spread, colour profiles are ignored), padded to a square where LLaVA's is told to, resized,
 * centre-cropped, rescaled, normalised. Of the kinds `CLIPImageProcessor`, `LlavaImageProcessor`, `SiglipImageProcessor`,
 * `ViTImageProcessor`, `ChineseCLIPImageProcessor`, `BitImageProcessor`, `DeiTImageProcessor` and `BlipImageProcessor`; others are refused.
 *
 * Resizing has Pillow's own arithmetic: every pixel is that of Pillow 13. Where a picture loses more than twice as many rows as columns,
 * older Pillows differ by a few of the 255 levels, since they take the axes in the other order; so do the processors that resize with
 * torchvision (`...Fast` in version 4, the default in version 5), which elsewhere differ by one or two levels in a pixel in two hundred.
 *
 * At most 178 956 970 pixels come in, as with Pillow, and at most 4096 x 4096 go out. Only what the crop keeps is computed, on the
 * calling thread: about 0.2 s for a photo of 12 million pixels.
 */
export class ImageProcessor {
  private constructor(private readonly recipe: Recipe) {}

  /**
   * @param source a model folder with `preprocessor_config.json`, or with `processor_config.json` that has an `image_processor` (that one
   *   goes first, as in Hugging Face); or the configuration itself
   * @throws DesapError `ERR_FILE`; `ERR_VALUE` for a kind of processor, a field or a value that is not understood
   */
  static async open(source: string | ImageProcessorConfig): Promise<ImageProcessor> {
    const config = typeof source === 'string' ? await readConfig(source) : source;
    if (typeof config !== 'object' || config === null)
      throw invalid(
        'ERR_VALUE',
        'image processor',
        config,
        'a model folder, or the fields of its preprocessor_config.json',
      );
    return new ImageProcessor(readRecipe(nested(config) ?? config));
  }

  /**
   * The normalised `pixel_values` [1, 3, H, W], float32.
   * @throws DesapError `ERR_FILE` for what is missing or not a picture; `ERR_VALUE` for what is no form of a picture, animations and
   *   pictures that are too large; `ERR_SHAPE`, `ERR_DTYPE` for pixels that contradict their size; `ERR_MISSING_PACKAGE`
   */
  async process(source: ImageSource): Promise<Tensor> {
    return this.normalize(await this.picture(source));
  }

  /**
   * The picture that the encoder sees: upright, padded, resized and cropped, not yet normalised.
   * @throws as {@link ImageProcessor.process}
   */
  async picture(source: ImageSource): Promise<Picture> {
    return compose(await readPicture(source), this.recipe);
  }

  /**
   * Rescaling and normalisation of a picture, in float32 as Hugging Face has it: `pixel_values` [1, 3, H, W]. Where the configuration
   * has a `pad_size`, zeros fill it up to the right and below.
   * @throws DesapError `ERR_VALUE` for a picture that is larger than `pad_size`
   */
  normalize({ data, width, height }: Picture): Tensor {
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

/** What transformers 5 writes: the image processor's fields inside of those of the whole processor. */
function nested(config: object): ImageProcessorConfig | null {
  const { image_processor: inner } = config as { image_processor?: unknown };
  return typeof inner === 'object' && inner !== null ? (inner as ImageProcessorConfig) : null;
}
