import { gridOf, unpadded } from '../../vision/anyres.js';
import { AnyresImageProcessor } from '../../vision/anyres-images.js';
import { readImage } from '../../vision/image/source.js';
import { type ImageReader, type Strip, wholeStrip } from './reader.js';

/** LLaVA-NeXT: the whole image, and the tiles that it is cut into. Padding is not drawn. */
export async function llavaNextImages(folder: string): Promise<ImageReader> {
  const processor = await AnyresImageProcessor.open(folder);
  return {
    async read(source) {
      const rgb = await readImage(source);
      return {
        inputs: await processor.process(rgb),
        strips: async ({ tiles: [whole], tiles, tokenCount }) => {
          const grid = gridOf(rgb, processor.rule);
          const side = whole.rows;
          const { rows, columns, top, left } = unpadded({ rows: grid.rows * side, columns: grid.columns * side }, rgb);
          // Without newlines every tile has all of its patches, padding too.
          const isPlain = tokenCount === tiles.length * side * side;
          const first = side * side;
          const tileOf = (R: number, C: number) => Math.floor(R / side) * grid.columns + Math.floor(C / side);
          const inTile = (R: number, C: number) => (1 + tileOf(R, C)) * first + (R % side) * side + (C % side);
          const place: Strip['place'] = (row, column) =>
            isPlain ? inTile(row + top, column + left) : first + row * (columns + 1) + column;
          const tile: Strip['tile'] = (row, column) => tileOf(row + top, column + left);
          const title = `${grid.rows} x ${grid.columns} tiles`;
          return [wholeStrip(rgb, whole, 0, 'whole image'), { title, image: rgb, rows, columns, place, tile }];
        },
      };
    },
  };
}
