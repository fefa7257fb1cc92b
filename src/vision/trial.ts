/** Inputs on which a file and what was read of it are compared. */
import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { mismatch } from '../errors.js';
import { limits } from '../limits.js';
import type { ModelConfig } from './model-folder.js';
import type { VisionInputs } from './vision-model.js';

/**
 * The same numbers for every trial: no symmetry, no two rows alike.
 * @throws DesapError `ERR_GRAPH` for more than the limit `trialNumbers`: how large a trial image is, files say
 */
export function waves(length: number): Float32Array {
  const { trialNumbers } = limits();
  if (!(Number.isSafeInteger(length) && length >= 0 && length <= trialNumbers))
    throw mismatch(
      'ERR_GRAPH',
      'the vision encoder',
      `images of such a size that ${length} numbers are needed to try it`,
      `at most ${trialNumbers} (limits({ trialNumbers }))`,
    );
  return Float32Array.from({ length }, (_, i) => Math.sin(i * i));
}

/** The numbers of a float32 output. */
export function floats({ data }: Tensor): Float32Array {
  return data as Float32Array;
}

/** The part of the second of two images in a float32 output. */
export function lastHalf(output: Tensor): Float32Array {
  const all = floats(output);
  return all.subarray(all.length / 2);
}

/** The extents that a session says its float32 input has; undefined where they are open. */
export function pixelExtents({ inputMetadata }: InferenceSession): readonly (number | undefined)[] {
  const input = inputMetadata.find((one) => one.isTensor && one.type.startsWith('float'));
  const shape = input?.isTensor ? input.shape : [];
  return shape.map((extent) => (typeof extent === 'number' && extent > 0 ? extent : undefined));
}

/** Image size of CLIP configs that do not state one. */
const IMAGE_SIZE = 224;

/** An image of waves, of the size that the encoder says, or else the model's config. */
export function llavaTrials(session: InferenceSession, { vision_config: vision = {} }: ModelConfig): VisionInputs[] {
  const stated = pixelExtents(session);
  const side = vision.image_size ?? IMAGE_SIZE;
  const dims = [1, 3, side, side].map((extent, axis) => (stated.length === 4 ? stated[axis] : undefined) ?? extent);
  return [{ pixelValues: { data: waves(dims.reduce((size, extent) => size * extent, 1)), dims } }];
}

/** What Transformers.js cuts images for Phi-3.5-vision into. */
const CROP = 336;

/** Two crops of waves side by side, and the whole image; crops of padding behind them where the encoder takes more. */
export function phi3Trials(session: InferenceSession): VisionInputs[] {
  const [, crops = 3, , , side = CROP] = pixelExtents(session);
  const dims = [1, Math.max(3, crops), 3, side, side];
  return [
    {
      pixelValues: { data: waves(dims.reduce((size, extent) => size * extent, 1)), dims },
      imageSizes: { data: BigInt64Array.from([side, 2 * side], BigInt), dims: [1, 2] },
    },
  ];
}

/** The defaults of Qwen2-VL's config. */
const PATCH = { channels: 3, frames: 2, side: 14, merge: 2 };

/** Images of waves on grids that are no squares: one of a single frame, and one of two. */
export function qwenTrials(session: InferenceSession, { vision_config: vision = {} }: ModelConfig): VisionInputs[] {
  const { in_channels, in_chans, temporal_patch_size, patch_size, spatial_merge_size } = vision;
  const [area, frames] = [(patch_size ?? PATCH.side) ** 2, temporal_patch_size ?? PATCH.frames];
  const channels = pixelExtents(session)[1] ?? (in_channels ?? in_chans ?? PATCH.channels) * frames * area;
  const merge = spatial_merge_size ?? PATCH.merge;
  const grids = [
    [1, 4 * merge, 6 * merge],
    [2, 2 * merge, 3 * merge],
  ];
  return grids.map((grid) => {
    const patches = grid.reduce((product, extent) => product * extent, 1);
    return {
      pixelValues: { data: waves(patches * channels), dims: [patches, channels] },
      imageGridThw: { data: BigInt64Array.from(grid, BigInt), dims: [1, 3] },
    };
  });
}
