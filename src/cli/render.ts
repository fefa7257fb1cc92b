import type { Complement } from '../index.js';
import { optional } from '../optional.js';
import type { RgbImage } from '../vision/image-processor.js';

/** What {@link renderKept} shows of one image, tile or frame. P patches row by row, K kept. */
export interface KeptView {
  /** What the encoder saw, so that patches lie on the grid. */
  readonly image: RgbImage;
  /** What it is, where there are several. */
  readonly title?: string;
  readonly indices: Int32Array;
  /** 0 task, 1 its complement. */
  readonly source: Uint8Array;
  /** Patches whose rows were dropped inside the tower. */
  readonly dropped: ReadonlySet<number>;
  /** What chose those that the question did not. */
  readonly complement: Complement;
  /** Null where no question was asked. */
  readonly task: Float32Array | null;
  readonly saliency: Float32Array;
  readonly rows: number;
  readonly columns: number;
  /** For each patch, whether it is of a tile that was not encoded; left out where all were. */
  readonly skipped?: readonly boolean[];
  readonly question: string;
  readonly answer?: string;
}

type Rgb = readonly [number, number, number];

/** One panel: its title, its pixels, and the patches that are outlined by what chose them. */
interface Panel {
  readonly title: string;
  readonly pixels: Uint8Array;
  /** Which source is outlined; without one, both are. */
  readonly source?: number;
  /** Whether a scale of colours stands below. */
  readonly heat: boolean;
}

/** Where panels stand, in pixels of the drawing. */
interface Layout {
  readonly width: number;
  readonly height: number;
  readonly side: { readonly width: number; readonly height: number };
  left(panel: number): number;
}

/** By source. */
const COLORS = ['#10c96b', '#2f9bff'];
const MARGIN = 24;
const TITLE = 74;
const LEGEND = 92;
/** Greys of patches that are not kept: black becomes `from`, and `swatch` shows them in the legend. */
interface Shade {
  readonly from: number;
  readonly swatch: string;
}
const NOT_KEPT: Shade = { from: 150, swatch: '#b4b4b4' };
const DROPPED: Shade = { from: 60, swatch: '#5a5a5a' };
/** Lines that outline patches. */
const STROKE = 4;
const LONGEST_QUESTION = 90;

/** Lines over tiles that were not encoded, from patch to patch without a break. */
const HATCH =
  '<pattern id="skipped" patternUnits="userSpaceOnUse" width="28" height="28" patternTransform="rotate(45)"><rect width="28" height="28" fill="#ffffff" fill-opacity="0.6"/><line x1="0" y1="0" x2="0" y2="28" stroke="#666" stroke-width="4"/></pattern>';

/** Dark to bright, so that the order of values survives in grey. */
const HEAT: readonly Rgb[] = [
  [20, 14, 54],
  [92, 24, 110],
  [188, 55, 84],
  [246, 133, 32],
  [252, 236, 140],
];

/**
 * A PNG: the image with dropped patches greyed, darker those whose rows the tower dropped, and kept ones outlined by what chose them, and
 * beside it the maps that chose, as heat over the image: the task map where a question was asked, and the saliency map unless diversity has its place. Several views stand one below
 * the other.
 */
export async function renderKept(views: readonly KeptView[]): Promise<Uint8Array> {
  const { default: sharp } = await optional(() => import('sharp'), 'sharp', 'drawing images');
  const drawn: Drawn[] = [];
  for (const view of views) drawn.push(await renderView({ ...view, image: await shrunk(view.image, sharp) }, sharp));
  if (drawn.length === 1) return drawn[0].png;
  const width = Math.max(...drawn.map((one) => one.width));
  let height = 0;
  const layers = drawn.map(({ png, height: own }) => {
    const layer = { input: Buffer.from(png), left: 0, top: height };
    height += own;
    return layer;
  });
  return sharp({ create: { width, height, channels: 3, background: '#ffffff' } })
    .composite(layers)
    .png()
    .toBuffer();
}

type Sharp = typeof import('sharp')['default'];
interface Drawn {
  readonly png: Uint8Array;
  readonly width: number;
  readonly height: number;
}

/** The longest edge of a panel. */
const MAX_EDGE = 960;

async function shrunk(image: RgbImage, sharp: Sharp): Promise<RgbImage> {
  const scale = MAX_EDGE / Math.max(image.width, image.height);
  if (scale >= 1) return image;
  const [width, height] = [image.width, image.height].map((edge) => Math.max(1, Math.round(edge * scale)));
  const raw = { width: image.width, height: image.height, channels: 3 } as const;
  const data = await sharp(image.data, { raw }).resize({ width, height, fit: 'fill' }).raw().toBuffer();
  return { data, width, height };
}

async function renderView(view: KeptView, sharp: Sharp): Promise<Drawn> {
  const { image } = view;
  const panels = panelsOf(view);
  const side = panelSide(image);
  const left = (panel: number) => MARGIN + panel * (side.width + MARGIN);
  const layout: Layout = { width: left(panels.length), height: TITLE + side.height + LEGEND, side, left };
  const raw = { width: image.width, height: image.height, channels: 3 } as const;
  const layers = await Promise.all(
    panels.map(async ({ pixels }, panel) => ({
      input: await sharp(pixels, { raw })
        .resize({ ...side, kernel: 'nearest', fit: 'fill' })
        .png()
        .toBuffer(),
      left: left(panel),
      top: TITLE,
    })),
  );
  const { width, height } = layout;
  const png = await sharp({ create: { width, height, channels: 3, background: '#ffffff' } })
    .composite([...layers, { input: Buffer.from(drawing(view, panels, layout)), left: 0, top: 0 }])
    .png()
    .toBuffer();
  return { png, width, height };
}

function panelsOf(view: KeptView): Panel[] {
  const { indices, dropped, task, saliency, complement, title: name } = view;
  const kept = new Set(indices);
  const pixels = paint(view, (rgb, patch) =>
    kept.has(patch) ? rgb : faded(rgb, dropped.has(patch) ? DROPPED : NOT_KEPT),
  );
  const own: Panel = {
    title: `${name === undefined ? '' : `${name}: `}kept ${indices.length} of ${saliency.length} patches`,
    pixels,
    heat: false,
  };
  const map = (title: string, values: Float32Array, source: number): Panel => ({
    title,
    pixels: heat(view, values),
    source,
    heat: true,
  });
  return [
    own,
    ...(task ? [map('task relevance (decoupled similarity)', task, 0)] : []),
    ...(complement === 'saliency' ? [map('visual saliency', saliency, 1)] : []),
  ];
}

/** An integer multiple of the image, so that every pixel keeps its shape. */
function panelSide({ width, height }: RgbImage): { width: number; height: number } {
  const factor = Math.max(1, Math.round(480 / Math.max(width, height)));
  return { width: width * factor, height: height * factor };
}

function paint({ image, rows, columns }: KeptView, color: (rgb: Rgb, patch: number) => Rgb): Uint8Array {
  const { data, width, height } = image;
  const out = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i += 3) {
    const [x, y] = [(i / 3) % width, Math.floor(i / 3 / width)];
    const patch = Math.floor((y * rows) / height) * columns + Math.floor((x * columns) / width);
    out.set(color([data[i], data[i + 1], data[i + 2]], patch), i);
  }
  return out;
}

const luminance = ([r, g, b]: Rgb): number => 0.299 * r + 0.587 * g + 0.114 * b;

function faded(rgb: Rgb, { from }: Shade): Rgb {
  const grey = from + 0.3 * luminance(rgb);
  return [grey, grey, grey];
}

function heat(view: KeptView, map: Float32Array): Uint8Array {
  const [low, high] = [Math.min(...map), Math.max(...map)];
  const span = high > low ? high - low : 1;
  return paint(view, (rgb, patch) => mixed(heatColor((map[patch] - low) / span), 0.72, luminance(rgb)));
}

function heatColor(value: number): Rgb {
  const at = Math.min(Math.max(value, 0), 1) * (HEAT.length - 1);
  const below = Math.min(Math.floor(at), HEAT.length - 2);
  const part = at - below;
  return [0, 1, 2].map((c) => HEAT[below][c] * (1 - part) + HEAT[below + 1][c] * part) as unknown as Rgb;
}

/** `part` of a colour, and the rest of a grey. */
function mixed(color: Rgb, part: number, grey: number): Rgb {
  return color.map((c) => part * c + (1 - part) * grey) as unknown as Rgb;
}

/** Titles, outlines and the legend, as SVG. */
function drawing(view: KeptView, panels: readonly Panel[], { width, height, side, left }: Layout): string {
  const { indices, source, rows, columns } = view;
  const [patchWidth, patchHeight] = [side.width / columns, side.height / rows];
  const text = (x: number, y: number, size: number, content: string, more = '') =>
    `<text x="${x}" y="${y}" font-size="${size}" fill="#222" ${more}>${escaped(content)}</text>`;
  const outline = (panel: number, at: number) => {
    const x = left(panel) + (indices[at] % columns) * patchWidth + STROKE / 2;
    const y = TITLE + Math.floor(indices[at] / columns) * patchHeight + STROKE / 2;
    return `<rect x="${x}" y="${y}" width="${patchWidth - STROKE}" height="${patchHeight - STROKE}" fill="none" stroke="${COLORS[source[at]]}" stroke-width="${STROKE}"/>`;
  };
  const outlines = (panel: number) =>
    [...indices.keys()]
      .filter((at) => panels[panel].source === undefined || panels[panel].source === source[at])
      .map((at) => outline(panel, at))
      .join('');
  const hatched = (panel: number) =>
    [...indicesOf(view.skipped)]
      .map((patch) => {
        const [x, y] = [
          left(panel) + (patch % columns) * patchWidth,
          TITLE + Math.floor(patch / columns) * patchHeight,
        ];
        return `<rect x="${x}" y="${y}" width="${patchWidth}" height="${patchHeight}" fill="url(#skipped)"/>`;
      })
      .join('');
  const below = TITLE + side.height + 20;
  const swatch = (x: number, of: number, name: string) =>
    `<rect x="${x + 2}" y="${below}" width="18" height="18" fill="none" stroke="${COLORS[of]}" stroke-width="4"/>` +
    text(x + 30, below + 15, 16, `${source.filter((one) => one === of).length} by ${name}`);
  const shade = (x: number, { swatch: color }: Pick<Shade, 'swatch'>, name: string) =>
    `<rect x="${x}" y="${below + 34}" width="22" height="22" fill="${color}"/>${text(x + 30, below + 51, 16, name)}`;
  const stops = HEAT.map(
    (rgb, i) => `<stop offset="${i / (HEAT.length - 1)}" stop-color="rgb(${rgb.join(',')})"/>`,
  ).join('');
  const scale = (panel: number) =>
    `<rect x="${left(panel) + 40}" y="${below + 2}" width="${side.width - 90}" height="14" fill="url(#heat)"/>` +
    text(left(panel), below + 15, 16, 'low') +
    text(left(panel) + side.width, below + 15, 16, 'high', 'text-anchor="end"');
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="DejaVu Sans, Helvetica, Arial, sans-serif">
<defs><linearGradient id="heat">${stops}</linearGradient>${HATCH}</defs>
${text(left(0), 32, 20, heading(view), 'font-weight="bold"')}
${panels.map((panel, i) => text(left(i), 62, 16, panel.title) + hatched(i) + outlines(i) + (panel.heat ? scale(i) : '')).join('\n')}
${swatch(left(0), 0, 'task')}${swatch(left(0) + 140, 1, view.complement)}
${shade(left(0), NOT_KEPT, 'not kept')}${view.dropped.size > 0 ? shade(left(0) + 140, DROPPED, 'dropped in the tower') : ''}
${view.skipped?.includes(true) ? shade(left(0) + (view.dropped.size > 0 ? 370 : 140), { swatch: 'url(#skipped)' }, 'tile not encoded') : ''}
</svg>`;
}

/** Places of those that are so. */
function indicesOf(flags: readonly boolean[] = []): number[] {
  return flags.flatMap((is, place) => (is ? [place] : []));
}

function heading({ question, answer }: KeptView): string {
  const short = question.length > LONGEST_QUESTION ? `${question.slice(0, LONGEST_QUESTION - 1)}…` : question;
  return answer === undefined ? short : `${short}  →  ${answer}`;
}

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`).replace(/[^\P{C}]/gu, ' ');
}
