/** Plots as SVG text: series of points with error bars, and a level to compare them with. */
import { DASHES, mark, POINT, type Style } from './styles.js';
import { escaped, fixed, label, line } from './svg.js';

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

const SIZE = { width: 640, height: 400 };
const MARGIN = { left: 56, right: 16, top: 12, bottom: 44 };
/** Tick marks of an axis, about. */
const TICKS = 6;
/** Pixels between marks at values of their own, at least: their numbers do not touch. */
const APART = 30;

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
  const inset = 2 * POINT + Math.max(...series.map(({ shift }) => Math.abs(shift)));
  const x = axis(xs, [MARGIN.left + inset, right - inset], scale, isLogarithmic);
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

function levelOf({ y: value, error, title }: Plot['level'], { at }: Axis, right: number): string {
  const [top, height] = [at(value + (error ?? 0)), at(value - (error ?? 0)) - at(value + (error ?? 0))];
  return `<g class="level"><title>${escaped(title)}</title>
<rect x="${MARGIN.left}" y="${fixed(top)}" width="${right - MARGIN.left}" height="${fixed(height)}"/>
${line(MARGIN.left, at(value), right, at(value), 'stroke-dasharray="2 3"')}</g>`;
}

function seriesOf({ style, shift, points }: Series, x: Axis, y: Axis): string {
  const left = (point: Point) => x.at(point.x) + shift;
  const path = points.map((point) => `${fixed(left(point))},${fixed(y.at(point.y))}`).join(' ');
  const marks = points.map((point) => {
    const { y: value, error, title } = point;
    const [cx, cy] = [left(point), y.at(value)];
    const bar = error === null ? '' : line(cx, y.at(value - error), cx, y.at(value + error));
    return `<g><title>${escaped(title)}</title>${bar}${mark(cx, cy, style)}</g>`;
  });
  const { color, form } = style;
  return `<g stroke="${color}" fill="none"><polyline points="${path}" stroke-width="1.8"${DASHES[form]}/>${marks.join('\n')}</g>`;
}

/** @param isOwn whether its marks are the values themselves */
function axis(
  values: readonly number[],
  [from, to]: readonly [number, number],
  scale: (value: number) => number,
  isOwn = false,
): Axis {
  const marks = isOwn ? byFrequency(values) : ticks(Math.min(...values), Math.max(...values));
  const [low, high] = [Math.min(...marks, ...values), Math.max(...marks, ...values)].map(scale);
  const span = high - low || 1;
  // A single value stands in the middle.
  const at = (value: number) => (high === low ? (from + to) / 2 : from + ((scale(value) - low) / span) * (to - from));
  return { at, ticks: isOwn ? apart(marks, at) : marks };
}

/** Without those that are too near to one before them. */
function apart(marks: readonly number[], at: Axis['at']): number[] {
  const placed: number[] = [];
  for (const mark of marks) if (placed.every((other) => Math.abs(at(other) - at(mark)) >= APART)) placed.push(mark);
  return placed;
}

/** Round values that enclose a range. */
export function ticks(low: number, high: number): number[] {
  const rough = (high - low || Math.abs(high) || 1) / TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) as number);
  const [first, last] = [Math.floor(low / step), Math.ceil(high / step)];
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Each value once: what most points have first, so that a mean of one method's own tokens gives way to what was asked for. */
function byFrequency(values: readonly number[]): number[] {
  const counts = new Map<number, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].sort(([, a], [, b]) => b - a).map(([value]) => value);
}

const number = (value: number) => String(Number(value.toPrecision(4)));
