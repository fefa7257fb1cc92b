/** Which units of a tile stay where rows are dropped inside the tower, and where the others go. */
import { type Backend, ImageAnalysis } from '../index.js';
import { chooserOf } from '../methods/index.js';
import { type Matrix, rowsOf, tensor } from '../methods/matrix.js';
import type { MethodImage, Tap } from '../methods/method.js';
import type { RowRule } from './tower-options.js';

/** One tile in front of the block at which rows are dropped. */
export interface TileAtCut {
  readonly backend: Backend;
  /** Its units, [U, D]: one of several rows stands with their mean. */
  readonly states: Matrix;
  /** That block, and all rows that enter it, for rules that look into it: which patches of them the units are, null for all. */
  readonly block?: { readonly tap: Tap; readonly classToken: boolean; readonly patches: Int32Array | null };
}

/**
 * The units that stay, ascending.
 *
 * @param count from 1 to U
 * @throws DesapError `ERR_NOT_FINITE`
 */
export async function unitsThatStay(by: RowRule, tile: TileAtCut, count: number): Promise<Int32Array> {
  switch (by) {
    case 'distance':
      return farthest(tile, count);
    case 'class-token':
      return (await chooserOf('fastervlm', { tap: 'last' }).choose(asImage(tile), count)).kept;
    case 'flow':
      return (await chooserOf('flowcut', { taps: ['last'] }).choose(asImage(tile), count)).kept;
    case 'random':
      return (await chooserOf('random').choose(asImage(tile), count)).kept;
  }
}

/** As `complement: 'diversity'` chooses where nothing is chosen before: the row of the largest sum of distances, then max-min. */
async function farthest({ backend, states }: TileAtCut, keep: number): Promise<Int32Array> {
  const rows = tensor(states);
  const saliency = new Float32Array(states.rows);
  using analysis = await ImageAnalysis.from({ patchEmbeddings: rows, saliency, features: rows }, backend);
  return (await analysis.prune(null, { taskShare: 0, complement: 'diversity', keep, merge: false })).indices;
}

/** The tile as methods read it: its one tap is the block behind the cut. */
function asImage({ backend, states, block }: TileAtCut): MethodImage {
  const nothing = async (): Promise<never> => {
    throw new Error('a rule reads the states at the cut and the block behind it');
  };
  return {
    ...{ backend, grid: { rows: 1, columns: states.rows }, states: () => states },
    ...{ classToken: block?.classToken ?? false, patches: block?.patches ?? null },
    tap: async () => block?.tap ?? nothing(),
    ...{ features: nothing, readOut: nothing, text: nothing, taskMap: nothing },
    timed: async (_part, work) => work(),
  };
}

/**
 * The kept unit of the highest cosine at the cut for each unit that was dropped there: its position in `kept`; equal: the first.
 *
 * @param states of all units of the tile, [U, D]
 */
export async function nearestKept(
  backend: Backend,
  states: Matrix,
  { kept, dropped }: { readonly kept: Int32Array; readonly dropped: Int32Array },
): Promise<Int32Array> {
  const features = tensor(rowsOf(states, [...kept, ...dropped]));
  const { assignment } = await backend.merge({ features, kept: kept.map((_, k) => k) });
  return assignment.subarray(kept.length);
}
