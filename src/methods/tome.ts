/**
 * One-shot ToMe: in rounds, each second token goes to the nearest of the others by the keys of the last but one block, as many as are too many.
 * The published ToMe merges in every block inside of the tower; this is not that.
 */
import { oneOf } from '../tensor.js';
import { choice } from './choice.js';
import { cosines, type Matrix } from './matrix.js';
import { type Choice, type MethodImage, method } from './method.js';
import { argmax, descending } from './ranks.js';
import { TappedBlock } from './tapped.js';

const BLOCKS = ['penultimate', 'last'] as const;

export interface TomeOptions {
  /** Whose keys: default `penultimate`. */
  readonly tap?: (typeof BLOCKS)[number];
}

/** A token on its way: the patch whose place it has, those that it stands for, and the mean of their keys. */
interface Token {
  readonly patches: readonly number[];
  readonly key: Float64Array;
}

export const tome = method<TomeOptions>({ tap: true }, ({ tap = 'penultimate' }) => {
  oneOf('tap', tap, BLOCKS);
  return {
    taps: [tap],
    isAsked: false,
    async choose(image, keep) {
      const keys = await (await TappedBlock.of(image, tap)).meanKeys();
      return image.timed('merge', () => inRounds(image, keys, keep));
    },
  };
});

async function inRounds(image: MethodImage, keys: Matrix, keep: number): Promise<Choice> {
  const row = (i: number) => Float64Array.from(keys.data.subarray(i * keys.cols, (i + 1) * keys.cols));
  let tokens = Array.from({ length: keys.rows }, (_, i): Token => ({ patches: [i], key: row(i) }));
  while (tokens.length > keep) tokens = await round(image, tokens, keep);
  const kept = Int32Array.from(tokens, ({ patches: [own] }) => own);
  const assignment = new Int32Array(keys.rows);
  tokens.forEach(({ patches }, k) => {
    for (const patch of patches) assignment[patch] = k;
  });
  return choice(kept, { assignment, tokens: means(image.states(), tokens) });
}

/** The nearest of the even places join those of the odd ones. */
async function round({ backend }: MethodImage, tokens: readonly Token[], keep: number): Promise<Token[]> {
  const leaving = Math.min(tokens.length - keep, Math.floor(tokens.length / 2));
  const [even, odd] = [0, 1].map((parity) => tokens.filter((_, place) => place % 2 === parity));
  const near = await cosines(backend, keysOf(even), keysOf(odd));
  const rows = even.map((_, i) => near.data.subarray(i * odd.length, (i + 1) * odd.length));
  const nearest = rows.map(argmax);
  const best = Float64Array.from(nearest, (b, a) => rows[a][b]);
  const joined = new Map<Token, Token>(odd.map((token) => [token, token]));
  const gone = new Set<Token>();
  for (const a of descending(best, leaving)) {
    gone.add(even[a]);
    const target = odd[nearest[a]];
    joined.set(target, together(joined.get(target) as Token, even[a]));
  }
  return tokens.filter((token) => !gone.has(token)).map((token) => joined.get(token) ?? token);
}

/** Two tokens as one, in the place of the first: means weighted by how many patches each has. */
function together(a: Token, b: Token): Token {
  const [m, n] = [a.patches.length, b.patches.length];
  return { patches: [...a.patches, ...b.patches], key: a.key.map((one, c) => (m * one + n * b.key[c]) / (m + n)) };
}

function keysOf(tokens: readonly Token[]): Matrix {
  const cols = tokens[0].key.length;
  const data = new Float32Array(tokens.length * cols);
  tokens.forEach(({ key }, i) => {
    data.set(key, i * cols);
  });
  return { data, rows: tokens.length, cols };
}

/** The plain mean of the patches of each token. */
function means({ data, cols }: Matrix, tokens: readonly Token[]): Matrix {
  const all = new Float32Array(tokens.length * cols);
  tokens.forEach(({ patches }, k) => {
    const sum = new Float64Array(cols);
    for (const patch of patches) for (let c = 0; c < cols; c++) sum[c] += data[patch * cols + c];
    all.set(
      sum.map((one) => one / patches.length),
      k * cols,
    );
  });
  return { data: all, rows: tokens.length, cols };
}
