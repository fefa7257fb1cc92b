/** How series are told apart: by colour, and by the form of their lines and points. */
import { fixed, line } from './svg.js';

/** How a series looks. */
export interface Style {
  readonly color: string;
  readonly form: Form;
}

/** Lines are told apart by their dashes, points also where there is one alone. */
type Form = keyof typeof DASHES;
export const DASHES = { circle: '', square: ' stroke-dasharray="6 4"', triangle: ' stroke-dasharray="2 3"' };
const FORMS = Object.keys(DASHES) as readonly Form[];

const COLORS = ['#1f77b4', '#d62728', '#2ca02c', '#ff7f0e', '#9467bd', '#17a2b8', '#8c564b', '#e377c2'];

/** The look of what everything is compared with. */
export const PLAIN: Style = { color: '#888', form: 'circle' };

/** The look of the nth series: colours first, then the same in other forms. */
export function styleOf(series: number): Style {
  return { color: COLORS[series % COLORS.length], form: FORMS[Math.floor(series / COLORS.length) % FORMS.length] };
}

/** Half the size of a point, in pixels. */
export const POINT = 3.5;

/** A small piece of a series, for a legend. */
export function swatch(style: Style): string {
  const { color, form } = style;
  return `<svg viewBox="0 0 34 10">${line(0, 5, 34, 5, `stroke="${color}" stroke-width="2"${DASHES[form]}`)}${mark(17, 5, style)}</svg>`;
}

/** A point at a place. */
export function mark(x: number, y: number, { color, form }: Style): string {
  const [left, top, right, bottom] = [x - POINT, y - POINT, x + POINT, y + POINT].map(fixed);
  const shape = {
    circle: `circle cx="${fixed(x)}" cy="${fixed(y)}" r="${POINT}"`,
    square: `rect x="${left}" y="${top}" width="${2 * POINT}" height="${2 * POINT}"`,
    triangle: `polygon points="${left},${bottom} ${right},${bottom} ${fixed(x)},${top}"`,
  };
  return `<${shape[form]} fill="${color}" class="mark"/>`;
}
