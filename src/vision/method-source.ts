/** What methods read of an image, or of a tile, besides the question. */
import type { Backend, TextEmbeddings } from '../index.js';
import { endRow } from '../method-input.js';
import { type Matrix, matrixOf, rowsOf, tensor, withoutClassToken } from '../methods/matrix.js';
import {
  type Grid,
  type MethodImage,
  type MethodPart,
  missing,
  type PlainReadOut,
  plainReadOut,
  type Tap,
  type TapName,
} from '../methods/method.js';
import { Once } from '../once.js';
import type { Stopwatch } from '../stopwatch.js';
import type { ClipEncoder, Encoded } from './clip-encoder.js';

export type MethodSource = Omit<MethodImage, 'text' | 'taskMap' | 'timed'>;
/** What a stopwatch tells apart of a method: its own parts, the features of all patches, and DeSAP's analysis. */
export type WatchedPart = MethodPart | 'features' | 'analysis';

/**
 * Of what a CLIP tower encoded.
 *
 * @param patches that are units, ascending; null: all
 * @param grid of all patches of the tile
 */
export function clipSource(
  encoder: ClipEncoder,
  { batch, index, cut }: Encoded,
  { patches, grid }: { readonly patches: Int32Array | null; readonly grid: Grid },
): MethodSource {
  const { pruner } = encoder;
  const { classToken } = pruner.head;
  const hidden = (): Matrix => matrixOf(batch.rows(index));
  const states = () => {
    const all = withoutClassToken(hidden(), classToken);
    return patches ? rowsOf(all, patches) : all;
  };
  return {
    ...{ backend: pruner.backend, classToken, patches, states },
    grid: patches && cut === null ? windowOf(patches, grid) : grid,
    async tap(name: TapName): Promise<Tap> {
      if (name === 'last') return { hidden: hidden(), weights: await pruner.headWeights() };
      const tapped = encoder.taps.get(name);
      if (tapped) return { hidden: matrixOf(batch.entering(tapped.block, index)), weights: tapped.weights };
      throw missing(
        `one that reads the tap '${name}'`,
        `a model that is opened with taps: ['${name}'], or another method`,
      );
    },
    features: async () => behindBatch(await encoder.project(tensor(states()))),
    readOut: async () => plainReadOut(await pruner.headWeights()),
  };
}

/** Of rows that stand behind their encoder already: features are what is known of them. */
export function featureSource(backend: Backend, rows: Matrix, grid: Grid): MethodSource {
  const refuse = (what: string) => async () => {
    throw missing(`one that reads ${what}`, 'a method that reads features only: this encoder is no tower of CLIP');
  };
  return {
    ...{ backend, grid, classToken: false, patches: null },
    states: () => rows,
    features: async () => rows,
    tap: (name) => refuse(`the tap '${name}'`)(),
    readOut: refuse("CLIP's read-out"),
  };
}

function behindBatch({ data, dims }: { readonly data: unknown; readonly dims: readonly number[] }): Matrix {
  return matrixOf({ data, dims: dims.slice(-2) });
}

/** The patches that the tower gives: those that are no square stand in one line, and so do those that it did not drop. */
export function gridOf({ batch, cut }: Encoded, classRows: number): Grid {
  const patches = batch.dims[1] - classRows;
  const side = Math.sqrt(patches);
  return cut === null && Number.isInteger(side) ? { rows: side, columns: side } : { rows: 1, columns: patches };
}

/** Patches that are no padding are a window of their grid. */
function windowOf(patches: Int32Array, { columns }: Grid): Grid {
  const rows = new Set(patches.map((patch) => Math.floor(patch / columns))).size;
  return { rows, columns: patches.length / rows };
}

/** A tile with its question. */
export class AskedSource implements MethodImage {
  readonly #features = new Once<Matrix>();
  readonly backend: Backend;
  readonly grid: Grid;
  readonly classToken: boolean;
  readonly patches: Int32Array | null;
  readonly timed: MethodImage['timed'];

  constructor(
    private readonly source: MethodSource,
    private readonly question: TextEmbeddings | null,
    readonly taskMap: MethodImage['taskMap'],
    private readonly watch: Stopwatch<WatchedPart>,
  ) {
    this.timed = watch.timed;
    ({ backend: this.backend, grid: this.grid, classToken: this.classToken, patches: this.patches } = source);
  }

  states(): Matrix {
    return this.source.states();
  }

  tap(name: TapName): Promise<Tap> {
    return this.source.tap(name);
  }

  readOut(): Promise<PlainReadOut> {
    return this.source.readOut();
  }

  features(): Promise<Matrix> {
    return this.#features.get(() => this.watch.timed('features', () => this.source.features()));
  }

  /** Told apart from the image's rows before they meet. */
  async text(): Promise<Matrix> {
    return endRow('question', this.question as TextEmbeddings);
  }
}
