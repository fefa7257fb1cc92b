/** Pieces of SVG as text. */

export function line(x1: number, y1: number, x2: number, y2: number, more = ''): string {
  return `<line x1="${fixed(x1)}" y1="${fixed(y1)}" x2="${fixed(x2)}" y2="${fixed(y2)}" ${more}/>`;
}

export function label(x: number, y: number, text: string, anchor: string): string {
  return `<text x="${fixed(x)}" y="${fixed(y)}" text-anchor="${anchor}">${escaped(text)}</text>`;
}

/** Tenths of a pixel. */
export const fixed = (pixels: number) => Number(pixels.toFixed(1));

/** A text within HTML or SVG. */
export function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
}
