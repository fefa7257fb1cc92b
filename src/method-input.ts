/** What a method in place of DeSAP's own reads of an image that is given as hidden states. */
import type { Backend } from './devices/kernel-api.js';
import { invalid, mismatch } from './errors.js';
import { checkLayer, type HeadWeights, type LinearWeights } from './head.js';
import type { MethodName } from './methods/index.js';
import { finiteMatrix, type Matrix, requireFinite, rowsOf, tensor, withoutClassToken } from './methods/matrix.js';
import {
  type Chooser,
  type Grid,
  type MethodImage,
  type MethodPart,
  missing,
  type PlainReadOut,
  plainReadOut,
  type Tap,
  type TapName,
} from './methods/method.js';
import type { Layout } from './methods/rival.js';
import { type OptionNames, options } from './options.js';
import { type Text, type TextEmbeddings, textEmbeddings } from './prune-request.js';
import { Stopwatch } from './stopwatch.js';
import { type FloatMatrix, finite, integer, matrix, object, type TensorLike, widened } from './tensor.js';

/** A block of the tower in front of the last one. */
export interface TapInput {
  /** The hidden states that enter it, [N, D], float32 or float16; the class token's first where the head has one. */
  readonly hidden: TensorLike;
  /** What it does first. They are read where they are, until the call has ended. */
  readonly weights: TapInputWeights;
}

/** The norm of a block and the projections of its attention, as in `HeadWeights`. */
export interface TapInputWeights extends Pick<HeadWeights, 'ln1' | 'q' | 'k'> {
  /** Only some methods read values. */
  readonly v?: LinearWeights;
  /** Default: as many as the head has. */
  readonly heads?: number;
  /** Of the norm; default 1e-5. */
  readonly epsilon?: number;
}

/** Taps that are given; the last block's weights are the head's. */
export type GivenTaps = { readonly [Name in Exclude<TapName, 'last'>]?: TapInput };

/** Options of {@link Pruner.prune} for a method in place of DeSAP's own, and what such a method reads. */
export interface MethodOptions {
  /**
   * What chooses the tokens: `desap` (default), or a method that it is compared with, of which `keep` and `keepRatio` are asked and none of
   * the options of DeSAP's own; see docs/methods.md.
   */
  method?: MethodName;
  /** Options of that method, by its own names. */
  methodOptions?: object;
  /** The order of the tokens: `raster` (default), or that in which the method's published code feeds them on, `public`. */
  layout?: Layout;
  /** Blocks that the method reads besides the last; `tapsOf` tells which. */
  taps?: GivenTaps;
  /** The connector's output of all patches, [P, F], float32 or float16. */
  projected?: TensorLike;
  /** Rows and columns of the P patches; default: the square. */
  grid?: Grid;
}

export const METHOD_OPTIONS: OptionNames<MethodOptions> = {
  ...{ method: true, methodOptions: true, layout: true, taps: true, projected: true, grid: true },
};
const TAP_NAMES: OptionNames<GivenTaps> = { first: true, local: true, penultimate: true };
const TAP: OptionNames<TapInput> = { hidden: true, weights: true };
const TAP_WEIGHTS: OptionNames<TapInputWeights> = {
  ...{ ln1: true, q: true, k: true, v: true, heads: true, epsilon: true },
};
const GRID: OptionNames<Grid> = { rows: true, columns: true };

/** What the image's pruner has. */
export interface InputOwner {
  readonly backend: Backend;
  readonly head: Pick<HeadWeights, 'width' | 'heads' | 'projectionDim' | 'classToken'>;
  headWeights(): Promise<HeadWeights>;
  /** DeSAP's task map with the alignment `mean`, [P]. */
  taskMap(hidden: Matrix, text: TextEmbeddings): Promise<Float32Array>;
}

/** The image and its question, as they were when they were given: what the caller writes into their memory later has no part in it. */
export class GivenImage implements MethodImage {
  readonly backend: Backend;
  readonly classToken: boolean;
  readonly patches = null;
  readonly watch = new Stopwatch<MethodPart>();
  readonly timed: MethodImage['timed'] = this.watch.timed;
  readonly #hidden: Matrix;
  readonly #text: TextEmbeddings | null;
  readonly #taps: ReadonlyMap<TapName, Tap>;
  readonly #projected: Matrix | null;
  readonly #grid: Grid | null;

  /**
   * @param argument what the caller knows the hidden states by
   * @param asked the question, and what the caller knows it by
   * @throws DesapError for what is given and wrong; what is not given is missed when it is read
   */
  constructor(
    private readonly owner: InputOwner,
    chooser: Chooser,
    { argument, hidden }: { readonly argument: string; readonly hidden: FloatMatrix },
    asked: { readonly argument: string; readonly text: Text | null },
    { taps, projected, grid }: MethodOptions,
  ) {
    const { head, backend } = owner;
    this.backend = backend;
    this.classToken = head.classToken;
    this.#hidden = snapshot(argument, hidden);
    const patches = hidden.rows - Number(head.classToken);
    this.#text = chooser.isAsked ? textOf(asked.argument, asked.text, head.projectionDim) : null;
    const given = options<GivenTaps>('taps', taps, TAP_NAMES);
    this.#taps = new Map(
      chooser.taps.flatMap((name) => {
        const tap = name === 'last' ? undefined : given[name];
        return tap ? [[name, tapOf(`taps.${name}`, tap, { rows: hidden.rows, ...head })] as const] : [];
      }),
    );
    this.#projected =
      projected === undefined ? null : snapshot('projected', matrix('projected', projected, { rows: patches }));
    this.#grid = grid === undefined ? squareOf(patches) : gridOf(grid, patches);
  }

  get grid(): Grid {
    if (this.#grid) return this.#grid;
    const { rows } = this.states();
    throw mismatch('ERR_VALUE', 'grid', `none for ${rows} patches, which are no square`, '{ rows, columns }');
  }

  states(): Matrix {
    return withoutClassToken(this.#hidden, this.classToken);
  }

  async tap(name: TapName): Promise<Tap> {
    if (name === 'last') return { hidden: this.#hidden, weights: await this.owner.headWeights() };
    const tap = this.#taps.get(name);
    if (tap) return tap;
    throw missing(`one that reads the tap '${name}'`, `the option taps: { ${name}: { hidden, weights } } beside it`);
  }

  async features(): Promise<Matrix> {
    if (this.#projected) return this.#projected;
    throw missing('one that reads the features of all patches', 'the option projected, [P, F], beside it');
  }

  async readOut(): Promise<PlainReadOut> {
    return plainReadOut(await this.owner.headWeights());
  }

  async text(): Promise<Matrix> {
    return endRow('text', this.#text as TextEmbeddings);
  }

  taskMap(): Promise<Float32Array> {
    return this.owner.taskMap(this.#hidden, this.#text as TextEmbeddings);
  }
}

/**
 * The end-of-text row of a question, [1, E].
 * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, `ERR_NOT_FINITE`
 */
export function endRow(argument: string, { embeddings, endOfText }: TextEmbeddings): Matrix {
  const all = finiteMatrix(argument, embeddings);
  if (typeof endOfText === 'object') return finiteMatrix('endOfText', { data: endOfText, dims: [1, all.cols] });
  return rowsOf(all, [integer('endOfText', endOfText ?? all.rows - 1, 0, all.rows - 1)]);
}

/** Numbers as they are now: a method works in many steps, between which a `HostBuffer` may be written or disposed of too. */
function snapshot(argument: string, { rows, cols, ...float }: FloatMatrix): Matrix {
  const own = { data: float.half ? widened(float) : widened(float).slice(), rows, cols };
  requireFinite(argument, own);
  return own;
}

function textOf(argument: string, text: Text | null, cols: number): TextEmbeddings {
  if (text === null) throw invalid('ERR_VALUE', argument, text, 'the embeddings of a text, which this method reads');
  const { embeddings, endOfText } = textEmbeddings(argument, text);
  const own = tensor(snapshot(argument, matrix(argument, embeddings, { cols })));
  const asked = { embeddings: own, endOfText: typeof endOfText === 'object' ? endOfText.slice() : endOfText };
  endRow(argument, asked);
  return asked;
}

function tapOf(
  argument: string,
  given: TapInput,
  { rows, width, heads: own }: { readonly rows: number; readonly width: number; readonly heads: number },
): Tap {
  const { hidden, weights } = options(argument, object(argument, given, '{ hidden, weights }'), TAP);
  const name = `${argument}.weights`;
  const { ln1, q, k, v, heads, epsilon } = options(name, object(name, weights, '{ ln1, q, k, v }'), TAP_WEIGHTS);
  const count = integer(`${name}.heads`, heads ?? own, 1, width);
  if (width % count !== 0) throw invalid('ERR_VALUE', `${name}.heads`, count, `a divisor of the width ${width}`);
  const projection = (part: 'q' | 'k' | 'v', layer: LinearWeights) =>
    checkLayer(`${name}.${part}`, layer, { weight: width * width, bias: width });
  return {
    hidden: snapshot(`${argument}.hidden`, matrix(`${argument}.hidden`, hidden, { rows, cols: width })),
    weights: {
      ...{ heads: count, epsilon: finite(`${name}.epsilon`, epsilon ?? 1e-5, Number.MIN_VALUE, 1) },
      ln1: checkLayer(`${name}.ln1`, ln1, { weight: width, bias: width }),
      ...{ q: projection('q', q), k: projection('k', k) },
      ...(v !== undefined && { v: projection('v', v) }),
    },
  };
}

function squareOf(patches: number): Grid | null {
  const side = Math.sqrt(patches);
  return Number.isInteger(side) ? { rows: side, columns: side } : null;
}

function gridOf(given: Grid, patches: number): Grid {
  const { rows, columns } = options('grid', object('grid', given, '{ rows, columns }'), GRID);
  integer('grid.rows', rows, 1, patches);
  integer('grid.columns', columns, 1, patches);
  if (rows * columns === patches) return { rows, columns };
  throw mismatch('ERR_SHAPE', 'grid', `${rows} x ${columns}`, `rows and columns of ${patches} patches`);
}
