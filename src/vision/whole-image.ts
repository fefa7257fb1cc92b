/** What was kept of the parts of an image, as what was kept of the whole. */
import type { PruneResult } from '../index.js';
import type { TokenLayout } from './layout.js';

/** What was kept of one part: units in the part's own order. */
export type KeptPart = Pick<PruneResult, 'indices' | 'source' | 'assignment' | 'counts' | 'maps' | 'timings'>;

/** `PrunedFeatures.source` of a marker. */
const MARKER = 2;

/** What was kept of an image. K tokens: units and markers; P tokens that the prompt has. */
export interface KeptImage extends KeptPart {
  /** The row, of K, of each kept unit: the units of one part after the other. */
  readonly unitRows: Int32Array;
  /** The row of each marker that stays, and where it stood among the P tokens. */
  readonly markerRows: Int32Array;
  readonly markers: Int32Array;
}

/** Which of a layout's tiles make each part, and where the part's units stand among the image's tokens. */
export interface Part {
  readonly tiles: readonly number[];
  readonly places: Int32Array;
  /** Where those stand that its tower dropped. */
  readonly dropped: Int32Array;
}

/** Parts of one tile each, or one of all tiles. A tile without units, all of which is padding, is part of none. */
export function partsOf(layout: TokenLayout, isJoint: boolean): Part[] {
  const { places, dropped } = layout;
  const tiles = [...places.keys()].filter((tile) => places[tile].length > 0);
  if (!isJoint || tiles.length === 1) return tiles.map((tile) => partOf(layout, tile));
  const all = (of: readonly Int32Array[] = []) => Int32Array.from(of.flatMap((own) => [...own]));
  return [{ tiles, places: all(places), dropped: all(dropped) }];
}

/** A tile as a part of its own. */
export function partOf({ places, dropped }: TokenLayout, tile: number): Part {
  return { tiles: [tile], places: places[tile], dropped: dropped?.[tile] ?? new Int32Array() };
}

/** How many units each part has, those that its tower dropped among them. */
export function unitsOfParts(parts: readonly Part[]): number[] {
  return parts.map(({ places, dropped }) => places.length + dropped.length);
}

/**
 * Puts the parts of an image together: its tokens by their places, with the markers that stay.
 *
 * @param kept of each part
 */
export function joined(layout: TokenLayout, parts: readonly Part[], kept: readonly KeptPart[]): KeptImage {
  const units = kept.map(({ indices }, p) => indices.map((unit) => parts[p].places[unit]));
  const all = Int32Array.from(units.flatMap((own) => [...own])).sort();
  const markers = layout.staying(all);
  const indices = Int32Array.from([...all, ...markers]).sort();
  const rowOf = new Map([...indices].map((place, row) => [place, row]));
  const row = (place: number) => rowOf.get(place) as number;

  const source = new Uint8Array(indices.length).fill(MARKER);
  const counts = new Int32Array(indices.length).fill(1);
  const assignment = new Int32Array(layout.tokenCount).fill(-1);
  for (const place of markers) assignment[place] = row(place);
  for (const [p, part] of kept.entries()) {
    for (const [k, place] of units[p].entries()) {
      source[row(place)] = part.source[k];
      counts[row(place)] = part.counts[k];
    }
    for (const [unit, k] of part.assignment.entries()) if (k >= 0) assignment[parts[p].places[unit]] = row(units[p][k]);
  }
  return {
    ...{ indices, source, assignment, counts },
    ...mapsOf(layout, parts, kept),
    timings: sumOf(kept.map(({ timings }) => timings)),
    unitRows: Int32Array.from(units.flatMap((own) => [...own].map(row))),
    markerRows: markers.map(row),
    markers,
  };
}

/**
 * The same with units that the tower dropped, which go where the unit does that is nearest to them.
 * @param nearest of each part: for each of its dropped units the position of a kept one
 */
export function withDropped<I extends KeptImage>(
  whole: I,
  parts: readonly Part[],
  { kept, nearest }: { readonly kept: readonly Pick<KeptPart, 'indices'>[]; readonly nearest: readonly Int32Array[] },
): I {
  const assignment = whole.assignment.slice();
  for (const [p, { places, dropped }] of parts.entries())
    for (const [at, place] of dropped.entries())
      assignment[place] = assignment[places[kept[p].indices[nearest[p][at]]]];
  return { ...whole, assignment };
}

/** How many units of each tile were kept. */
export function countsOfTiles({ places }: TokenLayout, { assignment, indices }: KeptImage): Int32Array {
  return Int32Array.from(places, (own) => own.filter((place) => indices[assignment[place]] === place).length);
}

/** The maps over all tokens; zeros for markers. */
function mapsOf(
  { tokenCount }: TokenLayout,
  parts: readonly Part[],
  kept: readonly KeptPart[],
): Pick<KeptPart, 'maps'> {
  const maps = kept.flatMap((part) => part.maps ?? []);
  if (maps.length === 0) return {};
  const spread = (of: (map: (typeof maps)[number]) => Float32Array) => {
    const map = new Float32Array(tokenCount);
    for (const [p, { places }] of parts.entries())
      for (const [unit, place] of places.entries()) map[place] = of(maps[p])[unit];
    return map;
  };
  const hasTask = maps.every(({ task }) => task !== null);
  return {
    maps: {
      task: hasTask ? spread(({ task }) => task as Float32Array) : null,
      saliency: spread((map) => map.saliency),
    },
  };
}

function sumOf(timings: readonly PruneResult['timings'][]): PruneResult['timings'] {
  const names = Object.keys(timings[0]) as (keyof PruneResult['timings'])[];
  const sum = (name: (typeof names)[number]) => timings.reduce((all, one) => all + one[name], 0);
  return Object.fromEntries(names.map((name) => [name, sum(name)])) as unknown as PruneResult['timings'];
}
