import { DesapError } from '../errors.js';
import type { BlockFamily, EncoderFacts, EncoderRun, Feed, TileRows } from './block-family.js';
import { asVideo, type Patches, patchesOf, runsOf, type Visual, visualsOf } from './qwen-inputs.js';
import { equalSequences, isFloat, rowCount } from './tile-inputs.js';
import { qwenTrials, waves } from './trial.js';

/**
 * Qwen2-VL, Qwen2.5-VL, Qwen3-VL: images and videos as frames of patches. Each frame is a sequence by itself; squares of patches, which
 * follow one another, are merged to one visual token.
 */
export const QWEN: BlockFamily = {
  name: 'qwen',
  premise: ', and in its last block attention of all patches of a frame',
  async read(inputs, names, encoder) {
    const merge = encoder.config.vision_config?.spatial_merge_size ?? MERGE;
    const visuals = visualsOf(inputs, names, merge);
    const runs = await runsTaken(visuals, merge, encoder);
    return runs.map((own) =>
      runOf(
        own.map((image) => ({ ...visuals[image], image })),
        merge,
        encoder,
      ),
    );
  },
  trials: qwenTrials,
  check({ vision_config: { depth, fullatt_block_indexes: full } = {} }) {
    if (!full || !depth || full.includes(depth - 1)) return;
    throw new DesapError(
      'ERR_GRAPH',
      `config.vision_config.fullatt_block_indexes: got ${full.join(', ')}, wanted the last block, ${depth - 1}, among them: its attention is to see the whole image`,
    );
  },
};

/** The default of Qwen2-VL's config. */
const MERGE = 2;

/** Which images and videos go into one run: each has its own where the encoder lets patches see those of all frames. */
async function runsTaken(visuals: readonly Visual[], merge: number, encoder: EncoderFacts): Promise<number[][]> {
  const runs = runsOf(visuals, encoder.rowsAtOnce);
  const several = runs.find((run) => run.length > 1);
  if (several === undefined) return runs;
  const { grid, pixels } = visuals[several[0]];
  const data = waves(2 * pixels.length);
  const trials = [data.subarray(0, pixels.length), data.subarray(pixels.length)].map((own, image) => ({
    ...{ medium: 'image' as const, grid, pixels: own, image },
  }));
  const takes = await encoder.several(
    runOf(trials, merge, encoder),
    runOf([{ ...trials[1], image: 0 }], merge, encoder),
  );
  return takes ? runs : visuals.map((_, i) => [i]);
}

/** Images and videos of one grid. */
function runOf(
  visuals: readonly (Visual & { readonly image: number })[],
  merge: number,
  encoder: EncoderFacts,
): EncoderRun {
  const frames = visuals.reduce((sum, { grid }) => sum + grid[0], 0);
  return {
    feeds: feedsOf(asVideo(visuals), encoder),
    sequences: (hidden) => equalSequences(hidden, frames),
    tiles: (hidden, features) => tilesOf(visuals, merge, hidden, features),
  };
}

/** The pixels are the only floats, the grid are the only integers. */
function feedsOf({ pixels, grid }: Patches, encoder: EncoderFacts): Record<string, Feed> {
  const patches = patchesOf(grid);
  return Object.fromEntries(
    encoder.inputs.map(({ name, type }): [string, Feed] =>
      isFloat(type)
        ? [name, { type: 'float32', data: pixels, dims: [patches, pixels.length / patches] }]
        : [name, { type: 'int64', data: BigInt64Array.from(grid, BigInt), dims: [1, 3] }],
    ),
  );
}

/** @throws DesapError `ERR_GRAPH` for states or features of other patches */
function tilesOf(
  visuals: readonly (Visual & { readonly image: number })[],
  merge: number,
  hidden: readonly number[],
  features: readonly number[],
): TileRows[] {
  const [{ grid }] = visuals;
  const [frames, rows, columns] = grid;
  const [patches, tokens] = [rows * columns, (rows * columns) / merge ** 2];
  const count = visuals.length * frames;
  if (rowCount(hidden) !== count * patches || rowCount(features) !== count * tokens)
    throw new DesapError(
      'ERR_GRAPH',
      `the vision encoder: got states [${hidden.join(', ')}] and features [${features.join(', ')}] of ${count} frames of ${rows} x ${columns} patches, wanted ${count * patches} rows of states and ${count * tokens} of features`,
    );
  const unit = Int32Array.from({ length: patches }, (_, patch) => Math.floor(patch / merge ** 2));
  return equalSequences(hidden, count).map((sequence, tile) => {
    const { image, medium } = visuals[Math.floor(tile / frames)];
    const size = { frame: tile % frames, rows: rows / merge, columns: columns / merge };
    return { image, medium, ...size, ...sequence, unit, firstToken: tile * tokens, tokens };
  });
}
