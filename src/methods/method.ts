/** What every method that chooses visual tokens reads of an image, and what it gives. */
import type { Backend } from '../devices/kernel-api.js';
import { alternatives, invalid, mismatch } from '../errors.js';
import type { HeadWeights, LinearWeights } from '../head.js';
import { type OptionNames, options } from '../options.js';
import type { Matrix } from './matrix.js';

/** Blocks of a tower of L blocks, 0 to L - 1, that methods look into: 0, round(5 L / 24), L - 2 and L - 1. */
export const TAPS = ['first', 'local', 'penultimate', 'last'] as const;
/** One of them. */
export type TapName = (typeof TAPS)[number];

/**
 * @param least how many there have to be
 * @throws DesapError `ERR_VALUE` for what is no list of taps
 */
export function checkTaps(taps: readonly TapName[], least = 0): readonly TapName[] {
  if (Array.isArray(taps) && taps.length >= least && taps.every((name) => TAPS.includes(name))) return taps;
  throw invalid('ERR_VALUE', 'taps', taps, `a list of ${alternatives(TAPS)}`);
}

/** What a block of the tower does first: its norm, and the projections of its attention, [D, D] each. */
export interface TapWeights {
  readonly heads: number;
  readonly epsilon: number;
  readonly ln1: LinearWeights;
  readonly q: LinearWeights;
  readonly k: LinearWeights;
  /** Only some methods read values; a file may lack them. */
  readonly v?: LinearWeights;
}

/** A tapped block: its weights, and the hidden states that enter it, [N, D], the class token's first where there is one. */
export interface Tap {
  readonly hidden: Matrix;
  readonly weights: TapWeights;
}

/** CLIP's read-out of a row: the norm behind the tower and the visual projection [E, D]. */
export interface PlainReadOut {
  readonly postNorm: LinearWeights;
  readonly epsilon: number;
  readonly visualProjection: Matrix;
}

/** That of a head. */
export function plainReadOut(head: HeadWeights): PlainReadOut {
  const { postNorm, epsilon, visualProjection, projectionDim, width } = head;
  return { postNorm, epsilon, visualProjection: { data: visualProjection, rows: projectionDim, cols: width } };
}

/** Rows and columns of patches, or of tiles. */
export interface Grid {
  readonly rows: number;
  readonly columns: number;
}

/** Parts of a method whose time is told apart from that of its choice: what it computes of tapped blocks, and merging. */
export type MethodPart = 'taps' | 'merge';

/** One image, or one tile of it, as methods read it: nothing is computed that no method asks for. P patches, N rows of the tower. */
export interface MethodImage {
  readonly backend: Backend;
  /** Of its P patches. */
  readonly grid: Grid;
  /** Whether row 0 of a tap is the class token. */
  readonly classToken: boolean;
  /** Which patches of a tap these P are, ascending, the others being padding; null: all of them. */
  readonly patches: Int32Array | null;
  /** X, the patches' hidden states that enter the last block, [P, D]. */
  states(): Matrix;
  /** @throws DesapError `ERR_VALUE` where the tower gives no such tap, by its name */
  tap(name: TapName): Promise<Tap>;
  /** The connector's output of all patches, [P, F]. */
  features(): Promise<Matrix>;
  /** @throws DesapError `ERR_VALUE` where the tower has none */
  readOut(): Promise<PlainReadOut>;
  /** End-of-text rows of the question in the space that it shares with the image, [M, E]; usually one. */
  text(): Promise<Matrix>;
  /** DeSAP's task map with the alignment `mean`, [P]. */
  taskMap(): Promise<Float32Array>;
  /** Runs a part of the method, and may note what it takes. */
  timed<T>(part: MethodPart, work: () => T | Promise<T>): Promise<T>;
}

/** What a method says of its choice, besides what was kept. K tokens of P patches. */
export interface MethodChoice {
  /** [K] positions among the kept tokens, in the order in which the published code feeds them to the language model. */
  readonly order: Int32Array;
  /** [K] patches in the order in which they were chosen, of greedy methods. */
  readonly picked?: Int32Array;
  /** How many tokens each run of the raster, or each tile, was given, of methods that share them out. */
  readonly budget?: Int32Array;
  /** What the choice was made by: a number [P] of each patch, or of each run, or a row of each patch; by name. */
  readonly scores: Readonly<Record<string, Float32Array | Float64Array | Int32Array>>;
  /** Whether tokens are behind the connector already, [K, F]. */
  readonly isProjected: boolean;
}

/** What a method chose of one image. */
export interface Choice extends MethodChoice {
  /** [K] patches, ascending, distinct. */
  readonly kept: Int32Array;
  /** [K] which part of the method chose each; what the numbers say is the method's. */
  readonly source: Uint8Array;
  /** [P] position in `kept` of the token that each patch went into; -1 for dropped patches. */
  readonly assignment: Int32Array;
  /** [K] how many patches are assigned to each token. */
  readonly counts: Int32Array;
  /** [K, D]; behind the connector, [K, F], with `isProjected`. */
  readonly tokens: Matrix;
}

/** A method with its options. */
export interface Chooser {
  /** Taps that it reads. */
  readonly taps: readonly TapName[];
  /** Those that {@link Chooser.chooseTiles} reads besides. */
  readonly tileTaps?: readonly TapName[];
  /** Whether it reads the question. */
  readonly isAsked: boolean;
  /** Whether K comes out of it, and `keep` has no say. */
  readonly isAdaptive?: boolean;
  /** @param keep K, from 1 to P */
  choose(image: MethodImage, keep: number): Promise<Choice>;
  /**
   * Of methods that share one K among the tiles of an image.
   * @param tiles the whole image first, then the tiles row by row
   * @param keep of all tiles together
   */
  chooseTiles?(tiles: readonly MethodImage[], grid: Grid, keep: number): Promise<TilesChoice>;
}

/** What was chosen of each tile. */
export interface EachChoice extends Partial<Pick<MethodChoice, 'budget' | 'scores'>> {
  readonly tiles: readonly Choice[];
}

/** The same of a method that shares one K among them: how many tokens each was given, and by what scores. */
export type TilesChoice = EachChoice & Required<Pick<MethodChoice, 'budget' | 'scores'>>;

/** Makes a chooser of a caller's options, which it checks. */
export type Method = (given?: object) => Chooser;

/**
 * A method.
 *
 * @param names of its options
 * @param make checks their values
 */
export function method<Options extends object>(
  names: OptionNames<Options>,
  make: (given: Options) => Chooser,
): (given?: Options) => Chooser {
  return (given) => make(options<Options>('methodOptions', given, names));
}

/** The error for what an image does not have: `methods: got no tap 'first' ...`. */
export function missing(what: string, wanted: string): Error {
  return mismatch('ERR_VALUE', 'method', what, wanted);
}
