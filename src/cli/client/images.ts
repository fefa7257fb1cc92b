import type { Tensor } from '@huggingface/transformers';
import { readImage } from '../../vision/image/source.js';
import type { EncodedImage, VisionInputs } from '../../vision/vision-model.js';
import { type ImageReader, mosaicStrip, type Strip, wholeStrip } from '../images/reader.js';
import { openClient } from './load.js';

/** What is taken of an image processor's outputs, and what is drawn. */
export interface Taken {
  readonly inputs: Readonly<Record<string, keyof VisionInputs>>;
  /** Default: the tiles by the counts that the processor returns. */
  readonly strips?: (image: EncodedImage, prepared: Prepared, normal: Normal) => Strip[];
}

/** Processors of encoders with a last block of their own. */
export const ENCODER: Taken = {
  inputs: {
    pixel_values: 'pixelValues',
    image_grid_thw: 'imageGridThw',
    pixel_attention_mask: 'pixelAttentionMask',
    spatial_shapes: 'spatialShapes',
  },
};

/** Rows and columns of tiles, which processors with tiles return on demand: of each image, or of each image of each sequence. */
type Counts = readonly (number | readonly number[])[];
/** What an image processor makes of an image. */
export type Prepared = Readonly<Record<string, Tensor>> & {
  readonly rows?: Counts;
  readonly cols?: Counts;
  readonly image_rows?: Counts;
  readonly image_cols?: Counts;
};
/** How it normalised the pixels. */
export interface Normal {
  readonly image_mean: readonly number[];
  readonly image_std: readonly number[];
}
type Prepare = Normal & ((images: readonly unknown[], options: { return_row_col_info: boolean }) => Promise<Prepared>);

/** Images through the folder's image processor of Transformers.js. */
export async function clientImages(folder: string, { inputs: taken, strips }: Taken): Promise<ImageReader> {
  const { transformers, id, load } = await openClient(folder);
  const prepare = (await load(transformers.AutoImageProcessor.from_pretrained(id))) as unknown as Prepare;
  return {
    async read(source) {
      const rgb = await readImage(source);
      const { data, width, height } = rgb;
      const prepared = await prepare([new transformers.RawImage(data, width, height, 3)], {
        return_row_col_info: true,
      });
      const inputs = Object.entries(taken).flatMap(([name, own]) => (prepared[name] ? [[own, prepared[name]]] : []));
      const [rows, columns] = [prepared.rows ?? prepared.image_rows, prepared.cols ?? prepared.image_cols].map(first);
      const isCut = rows * columns > 1;
      return {
        inputs: { ...Object.fromEntries(inputs), ...(isCut && { tileGrids: [[rows, columns]] as const }) },
        strips: async (image) => strips?.(image, prepared, prepare) ?? stripsOf(image, rgb, { rows, columns }),
      };
    },
  };
}

function first(counts: Counts | undefined): number {
  return Number(counts?.flat()[0] ?? 0);
}

/** The tiles that the image is cut into, then the whole image, small; or the whole image alone. */
function stripsOf(
  { tiles, tokenCount }: EncodedImage,
  image: Strip['image'],
  grid: { rows: number; columns: number },
): Strip[] {
  if (tiles.length === 1) return [wholeStrip(image, tiles[0])];
  const cut = grid.rows * grid.columns;
  const strips = cut > 0 ? [mosaicStrip(image, tiles[0], grid)] : [];
  const whole = tiles.at(cut);
  if (whole) strips.push(wholeStrip(image, whole, tokenCount - whole.rows * whole.columns, 'whole image'));
  return strips;
}
