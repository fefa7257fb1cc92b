/** From the blocks that a bench file has to those of the model's own tower. */
import { cutOf, type Model, tokensOf } from './models.js';
import type { SessionTimes } from './timed-ort.js';

/** Milliseconds up to the prompt, by part; `tower` is of all blocks of the model, whether the file has them or not. */
export interface Image {
  readonly tower: number;
  readonly analysis: number;
  readonly selection: number;
  readonly connector: number;
  /** Visual tokens of the prompt. */
  readonly tokens: number;
}

/** What `VisionModel` took for an image and a first question, part by part. */
export interface Taken {
  readonly sessions: SessionTimes;
  readonly analysis: number;
  readonly selection: number;
  readonly tokens: number;
}

/** Of the rows of a tile, those that stay. */
export const ROWS_KEPT = 0.25;

/** Rows that are dropped: behind a sixth of the blocks; where the file has fewer than the model, behind the first. */
export function towerOf({ blocks, encoder }: Model): { readonly at: number; readonly keep: number } {
  return { at: blocks === encoder.blocks ? cutOf(blocks) : 1, keep: ROWS_KEPT };
}

/** The same image, with all tokens, pruned, and with rows dropped. */
export interface Images {
  readonly all: Image;
  readonly kept: Image;
  readonly dropped: Image;
}

/**
 * Times of the model's own tower. Where the file has b of its blocks: the package's tower runs all but the last, which is the kernels', and
 * takes e + (b - 1) t, with e in front of the blocks. Cut behind the first block its front takes e + t, and the rest r for each of b - 2.
 *
 * @param all milliseconds of the whole file
 * @param own the tower with all rows
 * @param fewer the tower that drops rows
 */
export function imagesOf(model: Model, { all, own, fewer }: { all: number; own: Taken; fewer: Taken }): Images {
  const { blocks, encoder } = model;
  const further = blocks - encoder.blocks;
  const isWhole = further === 0;
  const block = isWhole ? 0 : (own.sessions.pixels - fewer.sessions.pixels) / (encoder.blocks - 2);
  const fewerRows = isWhole ? 0 : fewer.sessions.rest / (encoder.blocks - 2);
  const inFront = isWhole ? 0 : cutOf(blocks) - 1;
  const image = ({ sessions, analysis, selection, tokens }: Taken, added: number) => ({
    tower: sessions.pixels + sessions.rest + sessions.tail + added,
    ...{ analysis, selection, connector: sessions.connector, tokens },
  });
  return {
    all: { tower: all + further * block, analysis: 0, selection: 0, connector: 0, tokens: tokensOf(model) },
    kept: image(own, further * block),
    dropped: image(fewer, inFront * block + (further - inFront) * fewerRows),
  };
}
