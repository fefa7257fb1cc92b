/** Phi-3.5-vision in the command line: what is taken of its processor, and what is drawn. */
import type { EncodedImage } from '../../vision/vision-model.js';
import type { Strip } from '../images/reader.js';
import type { Normal, Prepared, Taken } from './images.js';

export const PHI3: Taken = {
  inputs: { pixel_values: 'pixelValues', image_sizes: 'imageSizes' },
  strips: phi3Strips,
};

/**
 * The pixels that the encoder sees: the crops side by side, and the whole image. Its processor resizes and pads an image before it cuts
 * it, so the image itself has other proportions.
 */
function phi3Strips({ tiles }: EncodedImage, { pixel_values, image_sizes }: Prepared, normal: Normal): Strip[] {
  const [, , , side] = pixel_values.dims;
  const [rows, columns] = Array.from(image_sizes.data as BigInt64Array, (edge) => Number(edge) / side);
  const [{ rows: units }] = tiles;
  const width = columns * units;
  const crops = {
    ...{ title: `${rows} x ${columns} crops`, rows: rows * units, columns: width },
    image: mosaic(pixel_values, 1, { rows, columns }, normal),
    // A separator stands behind each row, and one behind the crops.
    place: (row: number, column: number) => row * (width + 1) + column,
  };
  const first = rows * units * (width + 1) + 1;
  const whole = {
    ...{ title: 'whole image', rows: units, columns: units },
    image: mosaic(pixel_values, 0, { rows: 1, columns: 1 }, normal),
    place: (row: number, column: number) => first + row * (units + 1) + column,
  };
  return [crops, whole];
}

/** Crops [.., 3, S, S] from `first` on, side by side, as they were before they were normalised. */
function mosaic(
  { data, dims }: Prepared['pixel_values'],
  first: number,
  { rows, columns }: { readonly rows: number; readonly columns: number },
  { image_mean: mean, image_std: std }: Normal,
): Strip['image'] {
  const side = dims[3];
  const [width, height] = [columns * side, rows * side];
  const pixels = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < 3; c++) {
        const crop = first + Math.floor(y / side) * columns + Math.floor(x / side);
        const at = ((crop * 3 + c) * side + (y % side)) * side + (x % side);
        const value = 255 * ((data as Float32Array)[at] * std[c] + mean[c]);
        pixels[(y * width + x) * 3 + c] = Math.min(255, Math.max(0, Math.round(value)));
      }
  return { data: pixels, width, height };
}
