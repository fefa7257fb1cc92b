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
  /** For each tile: where units stand that the tower dropped, which `places` lists no more; left out where it dropped none. */
  readonly dropped?: readonly Int32Array[];
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

/**
 * The same without the units that the tower dropped.
 * @param cuts of each tile: its units that stayed, ascending; null: all
 */
export function withoutDropped(
  layout: TokenLayout,
  cuts: readonly ({ readonly stayed: Int32Array } | null)[],
): TokenLayout {
  if (cuts.every((cut) => cut === null)) return layout;
  const { places } = layout;
  return {
    ...layout,
    places: places.map((own, tile) => cuts[tile]?.stayed.map((unit) => own[unit]) ?? own),
    dropped: places.map((own, tile) => {
      const those = new Set(cuts[tile]?.stayed ?? own.keys());
      return own.filter((_, unit) => !those.has(unit));
    }),
  };
}

/** Where all units of a tile stand, those that its tower dropped among them. */
export function unitPlaces({ places, dropped }: TokenLayout, tile: number): Int32Array {
  return dropped ? Int32Array.from([...places[tile], ...dropped[tile]]).sort() : places[tile];
}
