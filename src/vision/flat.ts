import type { InferenceSession } from 'onnxruntime-common';
import { DesapError, invalid } from '../errors.js';
import { type OptionNames, options } from '../options.js';
import { floatData, type TensorLike, widened } from '../tensor.js';
import { tilesAtOnce } from './at-once.js';
import type { BlockFamily, EncoderFacts, EncoderRun } from './block-family.js';
import type { ModelConfig } from './model-folder.js';
import { equalSequences, equalTiles, isFloat, rowCount } from './tile-inputs.js';
import { llavaTrials, waves } from './trial.js';
import type { VisionInputs } from './vision-model.js';

/**
 * Families with one tile for each image and a SigLIP tower: PaliGemma, Gemma 3, LLaVA-OneVision and nanoLLaVA as Transformers.js runs
 * them, moondream1. Each patch is a visual token, or squares of patches are pooled into one.
 */
export const FLAT = {
  name: 'flat',
  premise: ', a visual token for each patch or for each square of patches',
  async read(inputs, names, encoder) {
    const { pixelValues } = options<Inputs>('inputs', inputs, INPUTS);
    const pixels = floatData(names.pixelValues, pixelValues as TensorLike);
    const [count, ...extents] = pixels.dims;
    if (pixels.dims.length !== 4 || extents[0] !== CHANNELS || pixels.dims.some((extent) => extent < 1))
      throw invalid('ERR_SHAPE', `${names.pixelValues}.dims`, pixels.dims, '[images, 3, H, W]');
    const data = widened(pixels);
    const size = data.length / count;
    const atOnce = count > 1 && (await takesSeveral(extents, encoder)) ? imagesAtOnce(extents, encoder) : 1;
    const runs: EncoderRun[] = [];
    for (let first = 0; first < count; first += atOnce) {
      const own = Math.min(atOnce, count - first);
      runs.push(runOf(data.subarray(first * size, (first + own) * size), [own, ...extents], { first, encoder }));
    }
    return runs;
  },
  trials(session: InferenceSession, config: ModelConfig): VisionInputs[] {
    return llavaTrials(session, config);
  },
} satisfies BlockFamily;

type Inputs = Pick<VisionInputs, 'pixelValues'>;
const INPUTS: OptionNames<Inputs> = { pixelValues: true };
const CHANNELS = 3;

/** Patches of one run: its attention scores are no more than those of one image of 64 x 64. */
const PATCHES_AT_ONCE = 4096;
/** The default of SigLIP's config. */
const PATCH = 16;

function imagesAtOnce([, height, width]: readonly number[], { config, rowsAtOnce }: EncoderFacts): number {
  const { vision_config: vision = {} } = config;
  const patches = (height * width) / (vision.patch_size ?? PATCH) ** 2;
  return tilesAtOnce(patches, Math.min(PATCHES_AT_ONCE, rowsAtOnce));
}

function takesSeveral(extents: readonly number[], encoder: EncoderFacts): Promise<boolean> {
  const pixels = waves(2 * extents.reduce((product, extent) => product * extent, 1));
  const run = (data: Float32Array, images: number) => runOf(data, [images, ...extents], { first: 0, encoder });
  return encoder.several(run(pixels, 2), run(pixels.subarray(pixels.length / 2), 1));
}

function runOf(
  data: Float32Array,
  dims: readonly number[],
  { first, encoder }: { readonly first: number; readonly encoder: EncoderFacts },
): EncoderRun {
  const [input, ...others] = encoder.inputs;
  if (others.length > 0 || !isFloat(input.type))
    throw new DesapError(
      'ERR_GRAPH',
      `the vision encoder: got the inputs ${encoder.inputs.map(({ name }) => name).join(', ')}, wanted the pixels only`,
    );
  const feeds = { [input.name]: { type: 'float32' as const, data, dims } };
  const [count, , height, width] = dims;
  const images = Array.from({ length: count }, (_, i) => first + i);
  return {
    feeds,
    sequences: (hidden) => equalSequences(hidden, count),
    tiles: (hidden, features) =>
      equalTiles(rowCount(hidden) / count, rowCount(features) / count, { images, height, width, noun: 'image' }),
  };
}
