/** Positions of prompts with images and videos on three axes, as Hugging Face counts them. Pure functions over typed arrays. */
import { mismatch } from '../errors.js';

/** Frames, rows and columns of patches. */
type Grid = readonly number[];

/** Images or videos of a prompt: the id that stands for one of their visual tokens, and their grids in the order of the prompts. */
export interface Placed {
  readonly token: bigint | null;
  readonly grids: readonly Grid[];
}

export interface MropeInputs {
  /** [rows * columns]. */
  readonly ids: BigInt64Array;
  readonly dims: readonly number[];
  /** 0 for padding; null: there is none. */
  readonly mask: BigInt64Array | null;
  readonly image: Placed;
  readonly video: Placed;
  /** Rows, and columns, of patches that become one visual token. */
  readonly merge: number;
  /** Positions that a second of video takes; undefined: each frame takes one. */
  readonly tokensPerSecond: number | undefined;
  /** Seconds from frame to frame, of each video; default 1. */
  readonly seconds: ArrayLike<number> | undefined;
}

/** A grid as the prompt has it: a video may be split into its frames, with words between. */
interface Piece {
  readonly grid: Grid;
  /** Positions from frame to frame. */
  readonly interval: number;
}

/**
 * Text counts on all three axes; a piece of frames, rows and columns counts its own from where the text ended, and the text behind it
 * goes on behind the longer of its rows and columns.
 *
 * @returns positions [3 * rows * columns], 0 for padding; and for each sequence what decoding adds to its length in columns: it goes on
 *   behind the last token, as `generate` of Hugging Face does, also where a video's last frame has a larger position
 * @throws DesapError `ERR_VALUE` for grids that are not those of the prompt's tokens
 */
export function mropePositions(inputs: MropeInputs): { positions: BigInt64Array; deltas: BigInt64Array } {
  const { ids, dims, mask, image, video, merge } = inputs;
  const [rows, columns] = dims;
  const attended = Array.from({ length: rows }, (_, row) =>
    Array.from({ length: columns }, (_, column) => row * columns + column).filter((at) => mask?.[at] !== 0n),
  );
  const kindOf = (at: number) => (ids[at] === image.token ? 'image' : ids[at] === video.token ? 'video' : 'text');
  const runs = attended.map((places) => runsOf(places, kindOf));
  const count = (kind: Kind) => runs.flat().filter((run) => run.kind === kind).length;
  const pieces = {
    image: piecesOf('image_grid_thw', image.grids, count('image'), () => 1),
    video: piecesOf('video_grid_thw', video.grids, count('video'), (i) => intervalOf(inputs, i)),
  };

  const positions = new BigInt64Array(3 * ids.length);
  const deltas = new BigInt64Array(rows);
  const write = (at: number, place: readonly number[]) => {
    for (const [axis, value] of place.entries()) positions[axis * ids.length + at] = BigInt(value);
  };
  const next = { image: 0, video: 0 };
  for (const [row, parts] of runs.entries()) {
    let start = 0;
    for (const { kind, places } of parts) {
      const piece = kind === 'text' ? null : pieces[kind][next[kind]++];
      if (kind !== 'text') requireTokens(kind, piece!.grid, merge, places.length);
      for (const [i, at] of places.entries()) {
        const place = piece === null ? [start + i, start + i, start + i] : placeOf(piece, merge, i, start);
        write(at, place);
      }
      start += piece === null ? places.length : Math.floor(Math.max(piece.grid[1], piece.grid[2]) / merge);
    }
    deltas[row] = BigInt(start - columns);
  }
  return { positions, deltas };
}

type Kind = 'text' | 'image' | 'video';

/** Neighbours of one kind. */
function runsOf(places: readonly number[], kindOf: (at: number) => Kind): { kind: Kind; places: number[] }[] {
  const runs: { kind: Kind; places: number[] }[] = [];
  for (const at of places) {
    const kind = kindOf(at);
    const last = runs.at(-1);
    if (last?.kind === kind) last.places.push(at);
    else runs.push({ kind, places: [at] });
  }
  return runs;
}

/** @throws DesapError `ERR_VALUE` */
function piecesOf(name: string, grids: readonly Grid[], count: number, interval: (index: number) => number): Piece[] {
  const whole = grids.map((grid, i) => ({ grid, interval: interval(i) }));
  if (whole.length === count) return whole;
  const frames = whole.flatMap(({ grid: [t, h, w] }) => new Array<Piece>(t).fill({ grid: [1, h, w], interval: 1 }));
  if (name === 'video_grid_thw' && frames.length === count) return frames;
  const wanted = `grids for ${count}, as many as the prompts have (or videos of as many frames)`;
  throw mismatch('ERR_VALUE', name, `grids for ${grids.length}`, wanted);
}

function intervalOf({ tokensPerSecond, seconds }: MropeInputs, index: number): number {
  return tokensPerSecond === undefined ? 1 : Math.fround(tokensPerSecond * (seconds?.[index] ?? 1));
}

function requireTokens(kind: Kind, [t, h, w]: Grid, merge: number, given: number): void {
  const tokens = (t * h * w) / merge ** 2;
  if (tokens !== given)
    throw mismatch('ERR_VALUE', `${kind}_grid_thw`, `a grid of ${tokens} tokens`, `${given}, as the prompt has`);
}

/** The place of a piece's i-th token; Hugging Face multiplies in float32. */
function placeOf({ grid: [, h, w], interval }: Piece, merge: number, i: number, start: number): number[] {
  const [rows, columns] = [h / merge, w / merge];
  const frame = Math.floor(i / (rows * columns));
  const time = Math.trunc(Math.fround(frame * interval));
  return [start + time, start + (Math.floor(i / columns) % rows), start + (i % columns)];
}
