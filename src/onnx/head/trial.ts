import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { DesapError } from '../../errors.js';
import { floatData, type TensorLike, widened } from '../../tensor.js';
import type { OrtModule } from '../edit.js';
import type { TowerStructure } from '../tower.js';

/** A vision tower with its open `towerGraph`. */
export interface OpenTower {
  readonly structure: TowerStructure;
  readonly session: InferenceSession;
}

/** An image as float32. */
export function pixelTensor(ort: OrtModule, image: TensorLike): Tensor {
  const pixels = floatData('pixelValues', image);
  return new ort.Tensor('float32', widened(pixels), pixels.dims);
}

/**
 * Runs a part of a tower on an image.
 * @throws DesapError `ERR_GRAPH` with the reason of onnxruntime
 */
export async function runOpen({ structure, session }: OpenTower, pixels: Tensor): Promise<Record<string, Tensor>> {
  try {
    return (await session.run({ [structure.pixels.name]: pixels })) as Record<string, Tensor>;
  } catch (cause) {
    throw new DesapError(
      'ERR_GRAPH',
      `${structure.graph.model.name}: onnxruntime does not run a part of it on an image [${pixels.dims.join(', ')}]: ${(cause as Error).message}`,
      { cause },
    );
  }
}

/** Some rows of a matrix of `cols` columns, one after the other. */
export function pickRows(data: Float32Array, cols: number, rows: readonly number[]): Float64Array {
  return Float64Array.from(
    { length: rows.length * cols },
    (_, i) => data[rows[Math.floor(i / cols)] * cols + (i % cols)],
  );
}

/** Rows to compare: each depends on every weight and on all other rows. */
const SAMPLES = 8;

/** Row numbers from the first on, evenly spread. */
export function sampled(count: number): number[] {
  const samples = Math.min(SAMPLES, count);
  return Array.from({ length: samples }, (_, i) => Math.floor((i * count) / samples));
}
