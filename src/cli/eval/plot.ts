/** Plots as SVG text: series of points with error bars, and a level to compare them with. */

export interface Point {
  readonly x: number;
  readonly y: number;
  /** Half the height of the error bar; null for none. */
  readonly error: number | null;
  /** What it is, in words. */
  readonly title: string;
}

export interface Series {
  readonly style: Style;
  /** To the right, in pixels, so that error bars at one place do not hide each other. */
  readonly shift: number;
  /** Joined in their order. */
  readonly points: readonly Point[];
}

export interface Plot {
  readonly xName: string;
  readonly yName: string;
  /** Whether equal ratios are equal distances. */
  readonly isLogarithmic: boolean;
  readonly series: readonly Series[];
  /** A horizontal line, with a band of its error. */
  readonly level: Omit<Point, 'x'>;
}

/** How a series looks. */
export interface Style {
  readonly color: string;
  readonly isDashed: boolean;
}

const COLORS = ['#1f77b4', '#d62728', '#2ca02c', '#ff7f0e', '#9467bd', '#17a2b8', '#8c564b', '#e377c2'];

/** The look of what everything is compared with. */
export const PLAIN: Style = { color: '#888', isDashed: false };

/** The look of the nth series: colours first, then the same with dashes. */
export function styleOf(series: number): Style {
  return { color: COLORS[series % COLORS.length], isDashed: Math.floor(series / COLORS.length) % 2 === 1 };
}

const SIZE = { width: 640, height: 400 };
const MARGIN = { left: 56, right: 16, top: 12, bottom: 44 };
/** Tick marks of an axis, about. */
const TICKS = 6;

interface Axis {
  /** Pixels. */
  at(value: number): number;
  readonly ticks: readonly number[];
}

/** A whole `<svg>` element. */
export function plot({ xName, yName, isLogarithmic, series, level }: Plot): string {
  const points = series.flatMap((one) => one.points);
  const bounds = [...points, level].flatMap(({ y, error }) => [y - (error ?? 0), y + (error ?? 0)]);
  const right = SIZE.width - MARGIN.right;
  const bottom = SIZE.height - MARGIN.bottom;
  const scale = isLogarithmic ? Math.log2 : (value: number) => value;
  const xs = points.map(({ x }) => x);
  const x = axis(xs, [MARGIN.left + 12, right - 12], scale, isLogarithmic ? distinct(xs) : undefined);
  const y = axis(bounds, [bottom, MARGIN.top], (value) => value);
  return [
    `<svg viewBox="0 0 ${SIZE.width} ${SIZE.height}" role="img" aria-label="${escaped(`${yName} over ${xName}`)}">`,
    ...y.ticks.map((tick) => line(MARGIN.left, y.at(tick), right, y.at(tick), 'class="grid"')),
    ...y.ticks.map((tick) => label(MARGIN.left - 6, y.at(tick) + 4, number(tick), 'end')),
    ...x.ticks.map((tick) => label(x.at(tick), bottom + 16, number(tick), 'middle')),
    line(MARGIN.left, bottom, right, bottom, 'class="axis"'),
    label((MARGIN.left + right) / 2, SIZE.height - 8, xName, 'middle'),
    `<text transform="translate(14 ${(MARGIN.top + bottom) / 2}) rotate(-90)" text-anchor="middle">${escaped(yName)}</text>`,
    levelOf(level, y, right),
    ...series.map((one) => seriesOf(one, x, y)),
    '</svg>',
  ].join('\n');
}

/** A small piece of a series, for a legend. */
export function swatch({ color, isDashed }: Style): string {
  const mark = `<circle cx="17" cy="5" r="3.5" fill="${color}"/>`;
  return `<svg viewBox="0 0 34 10">${line(0, 5, 34, 5, `stroke="${color}" stroke-width="2"${dashes(isDashed)}`)}${mark}</svg>`;
}

const dashes = (isDashed: boolean) => (isDashed ? ' stroke-dasharray="6 4"' : '');

function levelOf({ y: value, error, title }: Plot['level'], { at }: Axis, right: number): string {
  const [top, height] = [at(value + (error ?? 0)), at(value - (error ?? 0)) - at(value + (error ?? 0))];
  return `<g class="level"><title>${escaped(title)}</title>
<rect x="${MARGIN.left}" y="${fixed(top)}" width="${right - MARGIN.left}" height="${fixed(height)}"/>
${line(MARGIN.left, at(value), right, at(value), 'stroke-dasharray="2 3"')}</g>`;
}

function seriesOf({ style: { color, isDashed }, shift, points }: Series, x: Axis, y: Axis): string {
  const left = (point: Point) => x.at(point.x) + shift;
  const path = points.map((point) => `${fixed(left(point))},${fixed(y.at(point.y))}`).join(' ');
  const marks = points.map((point) => {
    const { y: value, error, title } = point;
    const [cx, cy] = [left(point), y.at(value)];
    const bar = error === null ? '' : line(cx, y.at(value - error), cx, y.at(value + error));
    return `<g><title>${escaped(title)}</title>${bar}<circle cx="${fixed(cx)}" cy="${fixed(cy)}" r="3.5" fill="${color}"/></g>`;
  });
  return `<g stroke="${color}" fill="none"><polyline points="${path}" stroke-width="1.8"${dashes(isDashed)}/>${marks.join('\n')}</g>`;
}

function axis(
  values: readonly number[],
  [from, to]: readonly [number, number],
  scale: (value: number) => number,
  own?: readonly number[],
): Axis {
  const marks = own ?? ticks(Math.min(...values), Math.max(...values));
  const [low, high] = [Math.min(...marks, ...values), Math.max(...marks, ...values)].map(scale);
  const span = high - low || 1;
  // A single value stands in the middle.
  const at = (value: number) => (high === low ? (from + to) / 2 : from + ((scale(value) - low) / span) * (to - from));
  return { at, ticks: marks };
}

/** Round values that enclose a range. */
export function ticks(low: number, high: number): number[] {
  const rough = (high - low || Math.abs(high) || 1) / TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) as number);
  const [first, last] = [Math.floor(low / step), Math.ceil(high / step)];
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function distinct(values: readonly number[]): number[] {
  return [...new Set(values)].sort((a, b) => a - b);
}

function line(x1: number, y1: number, x2: number, y2: number, more = ''): string {
  return `<line x1="${fixed(x1)}" y1="${fixed(y1)}" x2="${fixed(x2)}" y2="${fixed(y2)}" ${more}/>`;
}

function label(x: number, y: number, text: string, anchor: string): string {
  return `<text x="${fixed(x)}" y="${fixed(y)}" text-anchor="${anchor}">${escaped(text)}</text>`;
}

const fixed = (pixels: number) => Number(pixels.toFixed(1));
const number = (value: number) => String(Number(value.toPrecision(4)));

/** A text within HTML or SVG. */
export function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
}
