/** SigLIP's read-out of patches, as what is said of visual tokens. */
import type { Backend, PruneOptions, SiglipReadOut, TextEmbeddings } from '../index.js';
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
  { embeddings, endOfText }: TextEmbeddings,
  how: Pick<PruneOptions, 'alignment' | 'lambda'>,
): Promise<Float32Array> {
  const text = await backend.unitRows({ x: embeddings });
  const [rows, cols] = text.dims;
  const row = typeof endOfText === 'number' ? endOfText : rows - 1;
  const own = (text.data as Float32Array).slice(row * cols, (row + 1) * cols);
  const isVector = typeof endOfText === 'object';
  const end = isVector
    ? await backend.unitRows({ x: { data: endOfText, dims: [1, endOfText.length] } })
    : { data: own };
  const scores = new Float32Array(count);
  for (const { tile, readOut } of tiles) {
    if (readOut === null) continue;
    const { embeddings: visual, global } = readOut;
    const { task } = await backend.align({ visual, text, endOfText: end.data as Float32Array, global, ...how });
    scores.set(tokenScores(backend, tile, task), tile.firstToken);
  }
  return scores;
}
