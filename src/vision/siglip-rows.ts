/** SigLIP's read-out of patches, as what is said of visual tokens. */
import type { Backend, PruneOptions, SiglipReadOut, TextEmbeddings } from '../index.js';
import { alignedText } from './aligned-text.js';
import type { TileRows } from './block-family.js';

/** A tile and its read-out; null where it has none. */
export interface ReadTile {
  readonly tile: TileRows;
  readonly readOut: SiglipReadOut | null;
}

/** The mean of patches' scores over each token of a tile. */
export function tokenScores(backend: Backend, { unit }: TileRows, scores: Float32Array): Float32Array {
  return unit ? backend.sync.pool({ scores, unit }) : scores;
}

/**
 * A row for each token, of all tiles: the sum of its patches' rows, which has the direction of their mean.
 * @param count tokens, of all tiles
 */
export function tokenRows(tiles: readonly ReadTile[], count: number, width: number): Float32Array {
  const rows = new Float32Array(count * width);
  for (const { tile, readOut } of tiles) {
    if (readOut === null) continue;
    const from = readOut.embeddings.data as Float32Array;
    for (let p = 0; p < tile.patches; p++) {
      const to = (tile.firstToken + (tile.unit?.[p] ?? p)) * width;
      for (let c = 0; c < width; c++) rows[to + c] += from[p * width + c];
    }
  }
  return rows;
}

/**
 * How much each token has to do with a text: the mean over its patches of what each has by itself (eq. 3, or the mean cosine).
 *
 * @param count tokens, of all tiles
 * @returns [count], zero for tokens of other tiles
 */
export async function taskScores(
  backend: Backend,
  tiles: readonly ReadTile[],
  count: number,
  text: TextEmbeddings,
  how: Pick<PruneOptions, 'alignment' | 'lambda'>,
): Promise<Float32Array> {
  const aligned = await alignedText(backend, text);
  const scores = new Float32Array(count);
  for (const { tile, readOut } of tiles) {
    if (readOut === null) continue;
    const { embeddings: visual, global } = readOut;
    const { task } = await backend.align({ visual, global, ...aligned, ...how });
    scores.set(tokenScores(backend, tile, task), tile.firstToken);
  }
  return scores;
}
