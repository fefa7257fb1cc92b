/** Width and height in pixels. */
export interface Extent {
  readonly width: number;
  readonly height: number;
}

/** Decoded pixels: row-major RGB, one byte a channel. */
export interface RgbImage extends Extent {
  readonly data: Uint8Array;
}

/** A colour, one byte a channel. */
export type Rgb = readonly [number, number, number];
