/** Which of Hugging Face's image processors a configuration belongs to, and the defaults of that one. */
import { alternatives, invalid } from '../../errors.js';
import type { ImageProcessorConfig } from './config.js';

interface Kind {
  readonly defaults: ImageProcessorConfig;
  /** What `do_pad` means: a square of the mean colour, first; or zeros up to `pad_size`, last. */
  readonly pads: 'square' | 'end';
}

const BICUBIC = 3;
const BILINEAR = 2;
const COMMON = { do_resize: true, do_rescale: true, rescale_factor: 1 / 255, do_normalize: true, resample: BICUBIC };
const OPENAI = {
  ...COMMON,
  image_mean: [0.48145466, 0.4578275, 0.40821073],
  image_std: [0.26862954, 0.26130258, 0.27577711],
};
const STANDARD = { ...COMMON, image_mean: 0.5, image_std: 0.5 };
const CLIP = {
  ...OPENAI,
  size: { shortest_edge: 224 },
  default_to_square: false,
  do_center_crop: true,
  crop_size: { height: 224, width: 224 },
};
const SQUARE = { size: { height: 224, width: 224 }, default_to_square: true };

const KINDS: Readonly<Record<string, Kind>> = {
  CLIPImageProcessor: { defaults: CLIP, pads: 'end' },
  ChineseCLIPImageProcessor: { defaults: CLIP, pads: 'end' },
  BitImageProcessor: { defaults: CLIP, pads: 'end' },
  VideoLlavaImageProcessor: { defaults: CLIP, pads: 'end' },
  LlavaImageProcessor: { defaults: CLIP, pads: 'square' },
  SiglipImageProcessor: { defaults: { ...STANDARD, ...SQUARE, default_to_square: false }, pads: 'end' },
  ViTImageProcessor: { defaults: { ...STANDARD, ...SQUARE, resample: BILINEAR }, pads: 'end' },
  DeiTImageProcessor: {
    defaults: { ...STANDARD, ...SQUARE, size: { height: 256, width: 256 }, do_center_crop: true, crop_size: 224 },
    pads: 'end',
  },
  BlipImageProcessor: { defaults: { ...OPENAI, ...SQUARE, size: { height: 384, width: 384 } }, pads: 'end' },
};

/** Fields of other processors, which make other images with them: tiles, other sizes, other colours. They are refused where they are set. */
const FOREIGN = [
  'background_color',
  'crop_pct',
  'crop_to_patches',
  'do_affine_transform',
  'do_align_long_axis',
  'do_color_quantize',
  'do_crop_margin',
  'do_flip_channel_order',
  'do_grayscale',
  'do_image_splitting',
  'do_pan_and_scan',
  'do_split_image',
  'do_thumbnail',
  'dynamic_hd',
  'ensure_multiple_of',
  'image_aspect_ratio',
  'image_grid_pinpoints',
  'keep_aspect_ratio',
  'max_image_size',
  'max_image_tiles',
  'max_num_tiles',
  'max_pixels',
  'max_tiles',
  'min_pixels',
  'offset',
  'rescale_offset',
  'resize_to_max_canvas',
  'size_divisibility',
  'size_divisor',
  'slice_mode',
  'split_image',
  'tile_size',
  'use_square_size',
  'use_thumbnail',
];

/**
 * The kind that a configuration names. Hugging Face's endings `Fast` and `Pil`, and the old ending `FeatureExtractor`, name the same
 * kinds. A configuration without a name is CLIP's.
 * @throws DesapError `ERR_VALUE` for any other kind, and for the fields of others
 */
export function kindOf(config: Readonly<Record<string, unknown>>): Kind {
  for (const name of FOREIGN) {
    const value = config[name];
    const set = Array.isArray(value) ? value.length > 0 : Boolean(value);
    if (set) throw invalid('ERR_VALUE', name, value, 'no such field: the images that it makes are not supported');
  }
  const field = config.image_processor_type == null ? 'feature_extractor_type' : 'image_processor_type';
  const type = config[field];
  if (type == null) {
    if (config.do_pad === true)
      throw invalid('ERR_VALUE', 'do_pad', true, 'an image_processor_type beside it, which says how it pads');
    return KINDS.CLIPImageProcessor;
  }
  if (typeof type !== 'string') throw invalid('ERR_VALUE', field, type, alternatives(Object.keys(KINDS)));
  const name = type.replace(/(Fast|Pil)$/, '').replace(/FeatureExtractor$/, 'ImageProcessor');
  if (!Object.hasOwn(KINDS, name)) throw invalid('ERR_VALUE', field, type, alternatives(Object.keys(KINDS)));
  return KINDS[name];
}
