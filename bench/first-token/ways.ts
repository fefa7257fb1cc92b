/** What is done to make the first token come sooner, and what it takes: out of the rounds of a model. */
import { glanceBlock } from '../../src/vision/glance.js';
import { ratios, type Spread, spread } from '../harness.js';
import type { Round } from './measure.js';
import type { Model } from './models.js';
import type { Image, Images } from './own-tower.js';

/** What is done to make the first token come sooner, the way without anything first. */
export const WAYS = ['all', 'kept', 'dropped', 'tiles', 'every'] as const;
export type Way = (typeof WAYS)[number];

export const TITLES: Record<Way, string> = {
  all: 'all tokens',
  kept: '11 % behind the tower',
  dropped: 'rows dropped in the tower, 11 % behind it',
  tiles: 'half of the tiles, 11 % of theirs',
  every: 'half of the tiles, rows dropped, 11 % of theirs',
};

/** One way of one round, in milliseconds. */
type Parts = Omit<Image, 'tokens'> & { readonly prefill: number; readonly sum: number };
export const COLUMNS = ['tower', 'analysis', 'selection', 'connector', 'prefill', 'sum'] as const;

/** One row of the table. */
export interface Row {
  readonly model: string;
  readonly way: Way;
  /** Tokens of the prompt, text and markers among them. */
  readonly prompt: number;
  readonly parts: Readonly<Record<(typeof COLUMNS)[number], Spread>>;
  /** How many times sooner than with all tokens, from the same rounds. */
  readonly sooner: Spread;
}

/** The tiles of the half that is looked at, the whole view among them. */
function taken({ tiles, hasWhole }: Model): number {
  return Number(hasWhole) + Math.ceil((tiles - Number(hasWhole)) / 2);
}

export function waysOf({ tiles }: Model): readonly Way[] {
  return tiles > 1 ? WAYS : WAYS.slice(0, 3);
}

/**
 * What LLaVA-NeXT's rule `block` takes of a whole tower: every tile but the whole view goes through b of its blocks, and the attention of the
 * next one. The rules of the other families read the whole view's maps, which are there.
 */
function look({ modelType, tiles, blocks }: Model): number {
  return modelType === 'llava_next' ? (((glanceBlock(blocks) + 0.5) / blocks) * (tiles - 1)) / tiles : 0;
}

/** Tiles are equal: some of them take so much less, in every part, and have so many fewer tokens. */
function imageOf(way: Way, model: Model, { all, kept, dropped }: Images): Image {
  const image = { all, kept, dropped, tiles: kept, every: dropped }[way];
  const isLooking = way === 'tiles' || way === 'every';
  const share = isLooking ? taken(model) / model.tiles : 1;
  const { tower, analysis, selection, connector, tokens } = image;
  return {
    tower: share * tower + (isLooking ? look(model) * kept.tower : 0),
    ...{ analysis: share * analysis, selection: share * selection, connector: share * connector },
    tokens: Math.round(share * tokens),
  };
}

/** Tokens of the prompt, text and markers among them. */
export function promptOf(way: Way, model: Model, images: Images): number {
  const { tile, rest } = model.text;
  const tiles = way === 'tiles' || way === 'every' ? taken(model) : model.tiles;
  return imageOf(way, model, images).tokens + tile * tiles + rest;
}

/** The rows of each language model. */
export function rowsOf(model: Model, rounds: readonly Round[]): Row[] {
  return model.decoders.flatMap(({ name }) => {
    const partsOf = (way: Way): Parts[] =>
      rounds.map((round) => {
        const { tokens: _, ...parts } = imageOf(way, model, round);
        const prefill = round.prefill[name][promptOf(way, model, round)];
        const { tower, analysis, selection, connector } = parts;
        return { ...parts, prefill, sum: tower + analysis + selection + connector + prefill };
      });
    const unpruned = partsOf('all').map(({ sum }) => sum);
    return waysOf(model).map((way): Row => {
      const own = partsOf(way);
      const parts = Object.fromEntries(COLUMNS.map((part) => [part, spread(own.map((one) => one[part]))]));
      const sooner = ratios(
        unpruned,
        own.map(({ sum }) => sum),
      );
      return { model: name, way, prompt: promptOf(way, model, rounds[0]), parts: parts as Row['parts'], sooner };
    });
  });
}
