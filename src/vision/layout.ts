import type { Tile } from './vision-model.js';

/**
 * Where an image's visual tokens stand in the prompt. A unit is a token that is scored, kept or merged; a marker is one that no
 * patch goes into: a newline vector, a class row.
 */
export interface TokenLayout {
  /** Tokens that the prompt has for the image: units and markers. */
  readonly tokenCount: number;
  readonly tiles: readonly Tile[];
  /** For each tile: where each of its units stands among the image's tokens. Units that the model itself leaves out are not listed. */
  readonly places: readonly Int32Array[];
  /** Where markers stand, ascending. */
  readonly markers: Int32Array;
  /**
   * Which markers stay when these units are kept.
   * @param kept places of the kept units, ascending
   * @returns places of the markers that stay, ascending
   */
  staying(kept: Int32Array): Int32Array;
}

/** Tiles one after the other, each row by row, without markers: `units` of each tile. */
export function plainLayout(tiles: readonly Tile[], units: readonly number[]): TokenLayout {
  let tokenCount = 0;
  const places = units.map((count) => {
    const first = tokenCount;
    tokenCount += count;
    return Int32Array.from({ length: count }, (_, unit) => first + unit);
  });
  const markers = new Int32Array();
  return { tokenCount, tiles, places, markers, staying: () => markers };
}
