import type { TokenLayout } from './layout.js';

/**
 * A layout of which some tiles are left out: their units are none, and a marker that ends a row stays only where a unit of that row does.
 *
 * @param whole the tile that shows all of the image, whose rows no marker ends
 * @param taken tiles that are not left out, the whole view among them
 */
export function layoutOfTiles<L extends TokenLayout>(layout: L, whole: number, taken: ReadonlySet<number>): L {
  const { places, markers } = layout;
  const ends = new Set<number>();
  for (const [tile, own] of places.entries())
    if (tile !== whole && taken.has(tile)) for (const place of own) ends.add(markers[firstAbove(markers, place)]);
  const ending = (those: Int32Array) => those.filter((place) => ends.has(place));
  return {
    ...layout,
    places: places.map((own, tile) => (taken.has(tile) ? own : new Int32Array())),
    markers: ending(markers),
    staying: (kept: Int32Array) => ending(layout.staying(kept)),
  };
}

/** The first of some ascending values that is larger. */
function firstAbove(ascending: Int32Array, value: number): number {
  let [from, to] = [0, ascending.length];
  while (from < to) {
    const middle = (from + to) >> 1;
    if (ascending[middle] > value) to = middle;
    else from = middle + 1;
  }
  return from;
}
