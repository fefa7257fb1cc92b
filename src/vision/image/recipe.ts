import { invalid, mismatch } from '../../errors.js';
import { finite, integer } from '../../tensor.js';
import { RESAMPLINGS } from './axis.js';
import type { ImageProcessorConfig } from './config.js';
import type { Extent, Rgb } from './extent.js';
import { kindOf } from './kinds.js';

/** To what size an image is resized. */
export type ResizeRule =
  | { readonly to: 'extent'; readonly extent: Extent }
  | { readonly to: 'shortest'; readonly edge: number; readonly longest: number | null }
  | { readonly to: 'within'; readonly extent: Extent };

/** The steps of a checked configuration, in this order; null for a step that is left out. */
export interface Recipe {
  /** The colour with which the image is padded to a square. */
  readonly square: Rgb | null;
  readonly resize: { readonly rule: ResizeRule; readonly resampling: number } | null;
  readonly crop: Extent | null;
  /** What bytes are multiplied by. */
  readonly scale: number;
  readonly normalize: { readonly mean: Rgb; readonly std: Rgb } | null;
  /** The size of `pixel_values`, where zeros fill them up. */
  readonly pad: Extent | null;
}

/** The largest edge that a configuration may ask for. */
const MAX_EDGE = 16384;

/**
 * Checks a configuration and fills in what its kind has by default.
 * @throws DesapError `ERR_VALUE` for an unsupported type, field or value
 */
export function readRecipe(config: ImageProcessorConfig): Recipe {
  const kind = kindOf(config as Readonly<Record<string, unknown>>);
  const given = Object.entries(config).filter(([, value]) => value !== undefined);
  const fields: ImageProcessorConfig = { ...kind.defaults, ...Object.fromEntries(given) };
  const on = (name: Flag) => flag(name, fields[name]);
  const pads = on('do_pad');
  const normalize = on('do_normalize')
    ? { mean: triple('image_mean', fields.image_mean), std: triple('image_std', fields.image_std) }
    : null;
  if (normalize?.std.map(Math.fround).includes(0))
    throw invalid('ERR_VALUE', 'image_std', normalize.std, 'numbers other than 0, in float32');
  if (normalize) {
    refuseOther('mean', config, normalize.mean);
    refuseOther('std', config, normalize.std);
  }
  return {
    square: pads && kind.pads === 'square' ? background(fields.image_mean) : null,
    resize: on('do_resize')
      ? {
          rule: resizeRule(fields.size, on('default_to_square')),
          resampling: integer('resample', fields.resample as number, 0, RESAMPLINGS - 1),
        }
      : null,
    crop: on('do_center_crop') ? box('crop_size', fields.crop_size) : null,
    scale: on('do_rescale') ? finite('rescale_factor', fields.rescale_factor as number) : 1,
    normalize,
    pad: pads && kind.pads === 'end' && fields.pad_size != null ? box('pad_size', fields.pad_size) : null,
  };
}

type Flag = 'do_resize' | 'do_center_crop' | 'do_rescale' | 'do_normalize' | 'do_pad' | 'default_to_square';

function flag(name: string, value: unknown): boolean {
  if (value === undefined || value === null) return false;
  if (typeof value !== 'boolean') throw invalid('ERR_VALUE', name, value, 'true, false or null');
  return value;
}

/** One number for each channel; a single one is for all. */
function triple(name: string, value: unknown): Rgb {
  const list = typeof value === 'number' ? [value, value, value] : value;
  if (!Array.isArray(list) || list.length !== 3 || !list.every(Number.isFinite))
    throw invalid('ERR_VALUE', name, value, 'a number, or one for each of three channels');
  return list as unknown as Rgb;
}

/** The mean colour in bytes. */
function background(mean: unknown): Rgb {
  const colour = triple('image_mean', mean).map((value) => Math.trunc(value * 255));
  if (colour.some((value) => value < 0 || value > 255))
    throw invalid('ERR_VALUE', 'image_mean', mean, 'numbers from 0 to 1, since do_pad takes them for a colour');
  return colour as unknown as Rgb;
}

/** Hugging Face ignores the old names `mean` and `std`. They are accepted where they say the same as the new ones. */
function refuseOther(name: 'mean' | 'std', config: object, used: Rgb): void {
  const value = (config as Record<string, unknown>)[name];
  if (value === undefined || value === null) return;
  if (triple(name, value).some((number, channel) => number !== used[channel]))
    throw invalid('ERR_VALUE', name, value, `the field image_${name}, which is [${used.join(', ')}] here`);
}

function edge(name: string, value: unknown): number {
  return integer(name, value as number, 1, MAX_EDGE);
}

/** The edges that a size names; those that are null are not there. */
function edgesOf(name: string, size: unknown): Record<string, number> {
  if (Array.isArray(size) && size.length === 2)
    return { height: edge(`${name}[0]`, size[0]), width: edge(`${name}[1]`, size[1]) };
  if (typeof size !== 'object' || size === null || Array.isArray(size))
    throw invalid('ERR_VALUE', name, size, 'a number, [height, width] or an object of edges');
  const given = Object.entries(size).filter(([, value]) => value !== undefined && value !== null);
  return Object.fromEntries(given.map(([key, value]) => [key, edge(`${name}.${key}`, value)]));
}

/** Both edges of a size; one number is for both. */
function box(name: string, size: unknown): Extent {
  const edges = edgesOf(name, typeof size === 'number' ? [size, size] : size);
  if (keys(edges) !== 'height width') throw mismatch('ERR_VALUE', name, `the edges ${keys(edges)}`, 'height and width');
  return { width: edges.width, height: edges.height };
}

function resizeRule(size: unknown, square: boolean): ResizeRule {
  if (typeof size === 'number' && !square) return { to: 'shortest', edge: edge('size', size), longest: null };
  const edges = edgesOf('size', typeof size === 'number' ? [size, size] : size);
  switch (keys(edges)) {
    case 'height width':
      return { to: 'extent', extent: { width: edges.width, height: edges.height } };
    case 'shortest_edge':
    case 'longest_edge shortest_edge':
      return { to: 'shortest', edge: edges.shortest_edge, longest: edges.longest_edge ?? null };
    case 'max_height max_width':
      return { to: 'within', extent: { width: edges.max_width, height: edges.max_height } };
    default:
      throw mismatch(
        'ERR_VALUE',
        'size',
        `the edges ${keys(edges)}`,
        'height and width, shortest_edge, shortest_edge and longest_edge, or max_height and max_width',
      );
  }
}

function keys(edges: Record<string, number>): string {
  return Object.keys(edges).sort().join(' ');
}
