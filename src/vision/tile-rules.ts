/** How much of a question each tile of an image has, by what is known of the whole view. Pure functions. */
import { dot } from '../kernels/numeric.js';
import type { Grid } from '../methods/method.js';
import type { LookRule } from './tile-options.js';

/** Rows of one width, one after the other. */
export interface ViewRows {
  readonly data: Float32Array;
  readonly width: number;
}

/** What a rule reads of the whole view. */
export interface WholeView {
  /** The tile that each of its units is a part of; -1 where that is padding. */
  readonly tileOf: Int32Array;
  /** How many tiles there are. */
  readonly tiles: number;
  /** [units]. */
  readonly saliency: Float32Array;
  /** Unit rows of its units, and of the question; null without one. */
  readonly asked: { readonly units: ViewRows; readonly text: ViewRows } | null;
}

/** Values of a tile's map that a single one cannot outdo. */
const HIGHEST = 2;

/**
 * A score for each tile; the lowest of all for one that has no unit of the whole view.
 *
 * With m_j(i) = e_i . t_j for unit i and row j of the question's T, m the mean over j, and top_k the mean of the k highest of a tile:
 * task, kk: top_2 m. contrast: top_1 m - mean m. words: top_2 m_j for the j of the largest (highest - mean) over tiles. saliency: its mean.
 */
export function tileScores(rule: Exclude<LookRule, 'block'>, view: WholeView): Float32Array {
  if (rule === 'saliency' || view.asked === null) return byTile(view, view.saliency, mean);
  const rows = mapsOf(view.asked);
  const whole = view.saliency.map((_, unit) => mean(rows.map((map) => map[unit])));
  if (rule === 'contrast') return byTile(view, whole, (values) => Math.max(...values) - mean(values));
  if (rule !== 'words') return byTile(view, whole, highest);
  const scores = rows.map((map) => byTile(view, map, highest));
  const apart = scores.map((own) => Math.max(...own) - mean([...own]));
  return scores[apart.indexOf(Math.max(...apart))];
}

/**
 * The tile that each unit of the whole view is a part of, by its middle.
 *
 * @param whole rows and columns of its units
 * @param grid of tiles
 * @param window of the tiles' area that the image fills, as shares of its edges; default: all
 */
export function tilesOfView(whole: Grid, grid: Grid, window = { top: 0, left: 0, height: 1, width: 1 }): Int32Array {
  const at = (place: number, of: number, first: number, extent: number, tiles: number) =>
    Math.min(tiles - 1, Math.floor((first + ((place + 0.5) / of) * extent) * tiles));
  return Int32Array.from({ length: whole.rows * whole.columns }, (_, unit) => {
    const row = at(Math.floor(unit / whole.columns), whole.rows, window.top, window.height, grid.rows);
    return row * grid.columns + at(unit % whole.columns, whole.columns, window.left, window.width, grid.columns);
  });
}

function byTile(
  { tileOf, tiles }: WholeView,
  map: ArrayLike<number>,
  score: (values: number[]) => number,
): Float32Array {
  const values = Array.from({ length: tiles }, (): number[] => []);
  for (const [unit, tile] of tileOf.entries()) if (tile >= 0) values[tile].push(map[unit]);
  const scores = values.map((own) => (own.length === 0 ? null : score(own)));
  const lowest = Math.min(...scores.filter((own) => own !== null));
  return Float32Array.from(scores, (own) => own ?? lowest);
}

/** m_j for each row j of the question. */
function mapsOf({ units, text }: NonNullable<WholeView['asked']>): Float32Array[] {
  const { width } = units;
  const rows = (of: ViewRows) => of.data.length / width;
  return Array.from({ length: rows(text) }, (_, j) =>
    Float32Array.from({ length: rows(units) }, (_, i) => dot(units.data, i * width, text.data, j * width, width)),
  );
}

function highest(values: number[]): number {
  return mean(values.sort((a, b) => b - a).slice(0, HIGHEST));
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
