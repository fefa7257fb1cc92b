/** From an image file to what an encoder takes of it, and back to what can be drawn of it. */

import type { ImageSource } from '../../vision/image/source.js';
import type { RgbImage } from '../../vision/image-processor.js';
import type { EncodedImage, Tile, VisionInputs } from '../../vision/vision-model.js';

/** Reads images as one family takes them. */
export interface ImageReader {
  /** @throws DesapError `ERR_FILE` for a file that is missing or no image; `ERR_MISSING_PACKAGE` */
  read(source: ImageSource): Promise<ReadImage>;
}

/** One image, or one video. */
export interface ReadImage {
  readonly inputs: VisionInputs;
  /** What is drawn of it, in the order of its tokens. */
  strips(image: EncodedImage): Promise<Strip[]>;
}

/** A piece of an image that is drawn by itself, with a grid of visual tokens over it. */
export interface Strip {
  /** What it is, where an image has several. */
  readonly title?: string;
  readonly image: RgbImage;
  readonly rows: number;
  readonly columns: number;
  /** Where the visual token of a cell stands among the image's tokens. */
  place(row: number, column: number): number;
  /** The tile that a cell belongs to, counted without the whole view; left out where the strip is that view. */
  tile?(row: number, column: number): number;
}

/** A tile that shows all of an image. */
export function wholeStrip(image: RgbImage, { rows, columns }: Tile, first = 0, title?: string): Strip {
  return { title, image, rows, columns, place: (row, column) => first + row * columns + column };
}

/** Tiles that an image is cut into, put together again; all have as many rows and columns of tokens. */
export function mosaicStrip(image: RgbImage, tile: Tile, grid: { rows: number; columns: number }, first = 0): Strip {
  const rows = grid.rows * tile.rows;
  const columns = grid.columns * tile.columns;
  const ofCell = (row: number, column: number) =>
    Math.floor(row / tile.rows) * grid.columns + Math.floor(column / tile.columns);
  return {
    title: `${grid.rows} x ${grid.columns} tiles`,
    image,
    rows,
    columns,
    tile: ofCell,
    place: (row, column) => {
      const own = ofCell(row, column);
      return first + (own * tile.rows + (row % tile.rows)) * tile.columns + (column % tile.columns);
    },
  };
}
