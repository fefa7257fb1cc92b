/** Which tokens of a prompt go with a tile that is left out. Pure functions over ids; nothing is known of models here. */
import type { Span } from './spans.js';

/** Ids of the tokens beside the pieces of tiles. */
export interface TileMarkIds {
  /** What stands in front of a tile's piece and goes with it begins with this token; undefined: it is the token that names the tile. */
  readonly begin?: bigint;
  /** Row and column, from 0, of the tile that a token names. */
  readonly names: ReadonlyMap<bigint, readonly [row: number, column: number]>;
}

/** The tiles of one image in a prompt; the last piece is the whole view. */
export interface PromptTiles {
  /** Rows and columns of tiles; undefined where the prompt does not say it. */
  readonly grid: readonly [rows: number, columns: number] | undefined;
  /**
   * Columns of the tokens that leave the prompt beside the image tokens. The prompt is then that of an image of the tiles that are taken: the
   * end of a row stays where a tile of the row is taken and another one behind it.
   */
  leaving(taken: Iterable<number>): number[];
}

/** A tile's own marks may be this many tokens in front of its piece. */
const FARTHEST = 16;

/**
 * @param row ids of the sequence
 * @param pieces columns of the image tokens of each tile and of the whole view
 */
export function promptTiles(row: BigInt64Array, pieces: Span['pieces'], { begin, names }: TileMarkIds): PromptTiles {
  const tiles = pieces.slice(0, -1);
  const own = pieces.map((piece, t) => {
    const [first] = piece;
    const from = t === 0 ? Math.max(0, first - FARTHEST) : behind(pieces[t - 1]);
    if (begin === undefined) return names.has(row[first - 1]) && first > from ? [first - 1] : [];
    const at = row.lastIndexOf(begin, first - 1);
    return at >= from ? between(at, first) : [];
  });
  // What stands behind a tile and is no mark of the next one ends a row.
  const ends = tiles.map((piece, t) => between(behind(piece), own[t + 1][0] ?? pieces[t + 1][0]));
  const places = tiles.map(([first], t) => (own[t].length > 0 ? names.get(row[first - 1]) : undefined));
  return {
    grid: gridOf(places, ends),
    leaving(taken) {
      const those = new Set(taken);
      const left: number[] = [];
      let isRowTaken = false;
      for (const t of tiles.keys()) {
        if (!those.has(t)) left.push(...own[t]);
        isRowTaken ||= those.has(t);
        if (ends[t].length === 0 || t === tiles.length - 1) continue;
        if (!isRowTaken || ![...those].some((other) => other > t)) left.push(...ends[t]);
        isRowTaken = false;
      }
      return left;
    },
  };
}

/** By the tiles' names, or else by where rows end. */
function gridOf(
  places: readonly (readonly [row: number, column: number] | undefined)[],
  ends: readonly (readonly number[])[],
): PromptTiles['grid'] {
  const count = places.length;
  const last = places[count - 1];
  if (last !== undefined && (last[0] + 1) * (last[1] + 1) === count) return [last[0] + 1, last[1] + 1];
  const columns = ends.findIndex((end) => end.length > 0) + 1;
  return columns > 0 && count % columns === 0 ? [count / columns, columns] : undefined;
}

function behind(piece: readonly number[]): number {
  return piece[piece.length - 1] + 1;
}

function between(from: number, end: number): number[] {
  return Array.from({ length: Math.max(0, end - from) }, (_, i) => from + i);
}
