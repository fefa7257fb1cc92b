/** Images of noise, as an encoder and as the package take them. */
import * as ort from 'onnxruntime-node';
import type { VisionInputs } from '../../src/vision/vision-model.js';
import { normal } from '../data.js';
import { type Encoder, numbersOf, patchesOf } from './encoders.js';

type Feeds = Record<string, ort.Tensor>;

const floats = (dims: readonly number[]) => {
  const length = dims.reduce((product, extent) => product * extent, 1);
  return new ort.Tensor('float32', normal(1, length), dims);
};
const integers = (values: readonly number[], dims: readonly number[]) =>
  new ort.Tensor('int64', BigInt64Array.from(values, BigInt), dims);
const repeated = <T>(count: number, of: readonly T[]): T[] => Array.from({ length: count }, () => of).flat();

/** What the session of a whole encoder is fed for so many tiles. */
export function feedsOf(encoder: Encoder, tiles: number): Feeds {
  const { family, image, patch } = encoder;
  const [patches, across] = [patchesOf(encoder), Math.floor(image / patch)];
  if (family === 'qwen')
    return {
      pixel_values: floats([patches, numbersOf(encoder)]),
      image_grid_thw: integers([1, across, across], [1, 3]),
    };
  if (family === 'lfm2_vl')
    return {
      pixel_values: floats([tiles, patches, numbersOf(encoder)]),
      pixel_attention_mask: integers(repeated(tiles * patches, [1]), [tiles, patches]),
      spatial_shapes: integers(repeated(tiles, [across, across]), [tiles, 2]),
    };
  return { pixel_values: floats([tiles, 3, image, image]) };
}

/** The same image for `VisionModel.encode`; of LLaVA-NeXT a square that takes all of its tiles. */
export function inputsOf(encoder: Encoder, modelType: string, tiles: number): VisionInputs {
  const { pixel_values: pixels, ...others } = feedsOf(encoder, tiles);
  const inBatch = { data: pixels.data as Float32Array, dims: [1, ...pixels.dims] };
  if (modelType === 'idefics3') return { pixelValues: inBatch };
  if (modelType === 'llava_next') {
    const side = encoder.image * Math.sqrt(tiles - 1);
    return { pixelValues: inBatch, imageSizes: integers([side, side], [1, 2]) };
  }
  return {
    pixelValues: pixels,
    ...('image_grid_thw' in others && { imageGridThw: others.image_grid_thw }),
    ...('spatial_shapes' in others && {
      spatialShapes: others.spatial_shapes,
      pixelAttentionMask: others.pixel_attention_mask,
    }),
  };
}
