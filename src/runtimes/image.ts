import { join } from 'node:path';
import { DesapError, invalid } from '../errors.js';
import { readJson } from '../files.js';
import { optional } from '../optional.js';
import { Tensor } from '../tensor.js';

/** A picture: a path, or the bytes of an encoded file (PNG, JPEG, WebP, ...). */
export type ImageSource = string | Uint8Array;

/** Decoded pixels as the encoder will see them, before normalisation: row-major RGB, one byte a channel. */
export interface Picture {
  readonly data: Uint8Array;
  readonly width: number;
  readonly height: number;
}

/** The fields of `preprocessor_config.json` that {@link ImageProcessor} reads; sizes as Hugging Face writes them. */
export interface ImageProcessorConfig {
  do_resize?: boolean;
  size?: number | { shortest_edge?: number; height?: number; width?: number };
  resample?: number;
  do_center_crop?: boolean;
  crop_size?: number | { height?: number; width?: number };
  do_rescale?: boolean;
  rescale_factor?: number;
  do_normalize?: boolean;
  image_mean?: readonly number[];
  image_std?: readonly number[];
}

/** Pillow's resampling numbers, as the configuration stores them, by their sharp names. */
const KERNELS: Record<number, 'nearest' | 'lanczos3' | 'linear' | 'cubic'> = {
  0: 'nearest',
  1: 'lanczos3',
  2: 'linear',
  3: 'cubic',
};

const BICUBIC = 3;

/**
 * Pictures to `pixel_values`, with the semantics of Hugging Face's `CLIPImageProcessor`: EXIF orientation applied, RGB
 * (transparency is dropped, grey is spread), shortest edge resized, centre crop, rescaled, normalised.
 *
 * A picture that already has the wanted size is not resampled, so its pixels are exact. Otherwise libvips resamples with the
 * same filter as Pillow; single values can differ from Pillow's by a few of the 255 levels.
 */
export class ImageProcessor {
  private constructor(private readonly config: ImageProcessorConfig) {
    const { resample = BICUBIC, image_mean: mean = [0, 0, 0], image_std: std = [1, 1, 1] } = config;
    if (!(resample in KERNELS)) throw invalid('ERR_VALUE', 'resample', resample, '0, 1, 2 or 3');
    if (mean.length !== 3 || std.length !== 3 || ![...mean, ...std].every(Number.isFinite) || std.includes(0))
      throw invalid('ERR_VALUE', 'image_mean, image_std', [...mean, ...std], 'three numbers each, std not zero');
  }

  /**
   * @param source a model folder with `preprocessor_config.json`, or the configuration itself
   * @throws DesapError `ERR_FILE`, `ERR_VALUE`
   */
  static async open(source: string | ImageProcessorConfig): Promise<ImageProcessor> {
    const config =
      typeof source === 'string'
        ? await readJson<ImageProcessorConfig>(join(source, 'preprocessor_config.json'))
        : source;
    return new ImageProcessor(config);
  }

  /**
   * The normalised `pixel_values` [1, 3, H, W], float32.
   * @throws DesapError `ERR_FILE` for what is missing or not a picture; `ERR_VALUE` for animations; `ERR_MISSING_PACKAGE`
   */
  async process(source: ImageSource): Promise<Tensor> {
    return this.normalize(await this.picture(source));
  }

  /**
   * The picture that the encoder sees: oriented, resized and cropped, not yet normalised.
   * @throws as {@link ImageProcessor.process}
   */
  async picture(source: ImageSource): Promise<Picture> {
    const { default: sharp } = await optional(() => import('sharp'), 'sharp', 'reading pictures');
    const name = typeof source === 'string' ? source : 'image';
    const open = () => sharp(source, { failOn: 'error' });
    try {
      const { pages = 1 } = await open().metadata();
      if (pages > 1) throw invalid('ERR_VALUE', name, `${pages} frames`, 'a single picture; extract the frame first');
      // Decoded before it is resized: sharp would blend transparency into the neighbours.
      const rgb = open().autoOrient().toColourspace('srgb').removeAlpha().raw({ depth: 'uchar' });
      const decoded = pictureOf(await rgb.toBuffer({ resolveWithObject: true }));
      const { width, height } = this.#size(decoded);
      if (width === decoded.width && height === decoded.height) return this.#crop(decoded);
      const resized = sharp(decoded.data, { raw: { width: decoded.width, height: decoded.height, channels: 3 } })
        .resize(width, height, { fit: 'fill', kernel: KERNELS[this.config.resample ?? BICUBIC] })
        .raw();
      return this.#crop(pictureOf(await resized.toBuffer({ resolveWithObject: true })));
    } catch (cause) {
      if (cause instanceof DesapError) throw cause;
      const reason = (cause as Error).message.split('\n')[0];
      throw new DesapError('ERR_FILE', `${name}: not a picture that can be read: ${reason}`, { cause });
    }
  }

  /** Rescaling and normalisation of a picture: `pixel_values` [1, 3, H, W]. */
  normalize({ data, width, height }: Picture): Tensor {
    const { do_rescale = true, rescale_factor = 1 / 255, do_normalize = true } = this.config;
    const { image_mean: mean = [0, 0, 0], image_std: std = [1, 1, 1] } = this.config;
    const scale = do_rescale ? rescale_factor : 1;
    const plane = width * height;
    const values = new Float32Array(3 * plane);
    for (let c = 0; c < 3; c++) {
      const [centre, spread] = do_normalize ? [mean[c], std[c]] : [0, 1];
      for (let i = 0; i < plane; i++) values[c * plane + i] = (data[3 * i + c] * scale - centre) / spread;
    }
    return new Tensor('float32', values, [1, 3, height, width]);
  }

  #size({ width, height }: Picture): { width: number; height: number } {
    const { do_resize = true, size } = this.config;
    if (!do_resize || size === undefined) return { width, height };
    const edge = typeof size === 'number' ? size : size.shortest_edge;
    if (edge === undefined) return extent('size', size as { height?: number; width?: number });
    if (!Number.isInteger(edge) || edge < 1)
      throw invalid('ERR_VALUE', 'size.shortest_edge', edge, 'a positive integer');
    const longest = Math.floor((edge * Math.max(width, height)) / Math.min(width, height));
    return width <= height ? { width: edge, height: longest } : { width: longest, height: edge };
  }

  /** Centre crop; what lies outside of a picture that is too small is black. */
  #crop(picture: Picture): Picture {
    const { do_center_crop = true, crop_size: crop } = this.config;
    if (!do_center_crop || crop === undefined) return picture;
    const { width, height } = extent('crop_size', typeof crop === 'number' ? { width: crop, height: crop } : crop);
    if (width === picture.width && height === picture.height) return picture;
    const [left, top] = [Math.floor((picture.width - width) / 2), Math.floor((picture.height - height) / 2)];
    const data = new Uint8Array(3 * width * height);
    const [from, to] = [Math.max(0, left), Math.min(picture.width, left + width)];
    for (let y = Math.max(0, -top); y < Math.min(height, picture.height - top); y++) {
      const row = 3 * (y + top) * picture.width;
      data.set(picture.data.subarray(row + 3 * from, row + 3 * to), 3 * (y * width + from - left));
    }
    return { data, width, height };
  }
}

function extent(name: string, size: { height?: number; width?: number }): { width: number; height: number } {
  const { width = Number.NaN, height = Number.NaN } = size;
  for (const value of [width, height])
    if (!Number.isInteger(value) || value < 1) throw invalid('ERR_VALUE', name, value, 'a positive width and height');
  return { width, height };
}

function pictureOf({
  data,
  info,
}: {
  data: Uint8Array;
  info: { width: number; height: number; channels: number };
}): Picture {
  const { width, height, channels } = info;
  if (channels === 3) return { data, width, height };
  // A grey picture comes out with one channel even in the sRGB space.
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0; i < rgb.length; i++) rgb[i] = data[Math.floor(i / 3) * channels];
  return { data: rgb, width, height };
}
