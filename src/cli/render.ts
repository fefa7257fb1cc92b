import type { Sharp } from 'sharp';
import { optional } from '../optional.js';
import type { RgbImage } from '../vision/image-processor.js';

/** What {@link renderKept} shows of one pruning. P patches row by row, K kept. */
export interface KeptView {
  readonly indices: Int32Array;
  /** 0 task, 1 saliency. */
  readonly source: Uint8Array;
  readonly task: Float32Array;
  readonly saliency: Float32Array;
  /** Patches in one row. */
  readonly columns: number;
  readonly question: string;
  readonly answer?: string;
}

type Rgb = readonly [number, number, number];

const TASK = '#10c96b';
const SALIENT = '#2f9bff';
const MARGIN = 24;
const TITLE = 74;
const LEGEND = 92;

/** Dark to bright, so that the order of values survives in grey. */
const HEAT: readonly Rgb[] = [
  [20, 14, 54],
  [92, 24, 110],
  [188, 55, 84],
  [246, 133, 32],
  [252, 236, 140],
];

/**
 * A PNG with three panels: the image with dropped patches greyed and kept ones outlined by what chose them, and the task and
 * the saliency map as heat over the image.
 *
 * @param image what the encoder saw, so that patches lie on the grid
 */
export async function renderKept(image: RgbImage, view: KeptView): Promise<Uint8Array> {
  const { default: sharp } = await optional(() => import('sharp'), 'sharp', 'drawing images');
  const side = panelSide(image);
  const scale = side.width / image.width;
  const kept = new Set(view.indices);
  const panels = [
    paint(image, view, (rgb, patch) => (kept.has(patch) ? rgb : faded(rgb))),
    heat(image, view, view.task),
    heat(image, view, view.saliency),
  ];
  const left = (panel: number) => MARGIN + panel * (side.width + MARGIN);
  const enlarged = (data: Uint8Array): Sharp =>
    sharp(data, { raw: { width: image.width, height: image.height, channels: 3 } }).resize(side.width, side.height, {
      kernel: 'nearest',
    });
  const layers = await Promise.all(
    panels.map(async (data, panel) => ({
      input: await enlarged(data).png().toBuffer(),
      left: left(panel),
      top: TITLE,
    })),
  );
  const width = left(3);
  const height = TITLE + side.height + LEGEND;
  const svg = drawing(view, { width, height, side, patch: (image.width / view.columns) * scale, left });
  return sharp({ create: { width, height, channels: 3, background: '#ffffff' } })
    .composite([...layers, { input: Buffer.from(svg), left: 0, top: 0 }])
    .png()
    .toBuffer();
}

/** An integer multiple of the image, so that every pixel keeps its shape. */
function panelSide({ width, height }: RgbImage): { width: number; height: number } {
  const factor = Math.max(1, Math.round(480 / Math.max(width, height)));
  return { width: width * factor, height: height * factor };
}

function paint(image: RgbImage, view: KeptView, color: (rgb: Rgb, patch: number) => Rgb): Uint8Array {
  const { data, width } = image;
  const size = width / view.columns;
  const out = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i += 3) {
    const [x, y] = [(i / 3) % width, Math.floor(i / 3 / width)];
    const patch = Math.floor(y / size) * view.columns + Math.floor(x / size);
    out.set(color([data[i], data[i + 1], data[i + 2]], patch), i);
  }
  return out;
}

const luminance = ([r, g, b]: Rgb): number => 0.299 * r + 0.587 * g + 0.114 * b;

function faded(rgb: Rgb): Rgb {
  const grey = 150 + 0.3 * luminance(rgb);
  return [grey, grey, grey];
}

function heat(image: RgbImage, view: KeptView, map: Float32Array): Uint8Array {
  const [low, high] = [Math.min(...map), Math.max(...map)];
  const span = high > low ? high - low : 1;
  return paint(image, view, (rgb, patch) => {
    const color = heatColor((map[patch] - low) / span);
    const grey = luminance(rgb);
    return [0, 1, 2].map((c) => 0.72 * color[c] + 0.28 * grey) as unknown as Rgb;
  });
}

function heatColor(value: number): Rgb {
  const at = Math.min(Math.max(value, 0), 1) * (HEAT.length - 1);
  const below = Math.min(Math.floor(at), HEAT.length - 2);
  const part = at - below;
  return [0, 1, 2].map((c) => HEAT[below][c] * (1 - part) + HEAT[below + 1][c] * part) as unknown as Rgb;
}

interface Layout {
  readonly width: number;
  readonly height: number;
  readonly side: { readonly width: number; readonly height: number };
  readonly patch: number;
  left(panel: number): number;
}

function drawing(view: KeptView, layout: Layout): string {
  const { width, height, side, patch, left } = layout;
  const text = (x: number, y: number, size: number, content: string, more = '') =>
    `<text x="${x}" y="${y}" font-size="${size}" fill="#222" ${more}>${escaped(content)}</text>`;
  const outline = (panel: number, at: number, index: number, weight: number) => {
    const x = left(panel) + (index % view.columns) * patch + weight / 2;
    const y = TITLE + Math.floor(index / view.columns) * patch + weight / 2;
    const color = view.source[at] === 0 ? TASK : SALIENT;
    return `<rect x="${x}" y="${y}" width="${patch - weight}" height="${patch - weight}" fill="none" stroke="${color}" stroke-width="${weight}"/>`;
  };
  const chosen = (panel: number, source?: number) =>
    [...view.indices]
      .map((index, at) => (source === undefined || view.source[at] === source ? outline(panel, at, index, 4) : ''))
      .join('');
  const count = (source: number) => view.source.reduce((sum, s) => sum + Number(s === source), 0);
  const legendTop = TITLE + side.height + 20;
  const swatch = (x: number, color: string, label: string) =>
    `<rect x="${x + 2}" y="${legendTop}" width="18" height="18" fill="none" stroke="${color}" stroke-width="4"/>${text(x + 30, legendTop + 15, 16, label)}`;
  const stops = HEAT.map(
    (rgb, i) => `<stop offset="${i / (HEAT.length - 1)}" stop-color="rgb(${rgb.join(',')})"/>`,
  ).join('');
  const scale = (panel: number) =>
    `<rect x="${left(panel) + 40}" y="${legendTop + 2}" width="${side.width - 90}" height="14" fill="url(#heat)"/>` +
    text(left(panel), legendTop + 15, 16, 'low') +
    text(left(panel) + side.width, legendTop + 15, 16, 'high', 'text-anchor="end"');
  const patches = view.task.length;
  const question = view.question.length > 90 ? `${view.question.slice(0, 89)}…` : view.question;
  const heading = view.answer === undefined ? question : `${question}  →  ${view.answer}`;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="DejaVu Sans, Helvetica, Arial, sans-serif">
<defs><linearGradient id="heat">${stops}</linearGradient></defs>
${text(left(0), 32, 20, heading, 'font-weight="bold"')}
${text(left(0), 62, 16, `kept ${view.indices.length} of ${patches} patches`)}
${text(left(1), 62, 16, 'task relevance (decoupled similarity)')}
${text(left(2), 62, 16, 'visual saliency (class token)')}
${chosen(0)}${chosen(1, 0)}${chosen(2, 1)}
${swatch(left(0), TASK, `${count(0)} by task`)}${swatch(left(0) + 140, SALIENT, `${count(1)} by saliency`)}
<rect x="${left(0)}" y="${legendTop + 34}" width="22" height="22" fill="#b4b4b4"/>${text(left(0) + 30, legendTop + 51, 16, 'merged into the nearest kept patch')}
${scale(1)}${scale(2)}
</svg>`;
}

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`).replace(/[^\P{C}]/gu, ' ');
}
