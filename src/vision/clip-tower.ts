/** What a CLIP tower makes of tiles, whether it runs in one piece or drops rows inside. */
import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { type EditedGraph, HIDDEN_STATES, type OrtModule, openGraph } from '../onnx/index.js';
import { enteringStates } from '../onnx/split.js';
import type { TensorLike } from '../tensor.js';
import { type RunNames, runSession } from './session.js';
import { TowerBatch } from './tower-batch.js';

/** float32 rows, [rows, D]. */
export type Rows = TensorLike & { readonly data: Float32Array };

/** What the tower dropped of one tile. */
export interface TileCut {
  /** Units that stayed, ascending. */
  readonly stayed: Int32Array;
  /** For each unit that was dropped, which of these kept ones, of those that stayed, is nearest by its state at the cut. */
  nearest(kept: Int32Array): Promise<Int32Array>;
  /** Hidden states of all rows at the end, [N, D]: the rest of the tower runs over all of them, once. */
  whole(): Promise<Rows>;
}

/** One tile behind the tower. */
export interface TowerTile {
  readonly batch: TowerBatch;
  readonly index: number;
  /** N, rows that the tile has where none is dropped. */
  readonly rows: number;
  /** null where nothing was dropped. */
  readonly cut: TileCut | null;
}

/** The patches of a tile that are units, ascending, given how many patches it has; null: all. */
export type UnitPatches = (tile: number, patches: number) => Int32Array | null;

/** How a tower is run. */
export interface TowerRun {
  /** For messages. */
  readonly names: RunNames;
  /** Where the pruner runs, which reads the hidden states in place. */
  readonly device: string;
  readonly units: UnitPatches;
}

export interface ClipTower {
  /** What takes the pixels. */
  readonly input: InferenceSession;
  /** Hidden states of all rows at the end, [B, N, D]. */
  states(pixels: Tensor, names: RunNames): Promise<Tensor>;
  /** Runs the tower on some tiles, in their order. */
  run(pixels: Tensor, how: TowerRun): Promise<TowerTile[]>;
  /** Safe to call again. */
  release(): Promise<void>;
}

/** A tower in one piece: it writes its hidden states straight into memory that the pruner reads. */
export class WholeTower implements ClipTower {
  /** Rows and width of the hidden states for each size of images seen so far. */
  readonly #shapes = new Map<string, readonly [rows: number, width: number]>();
  #released: Promise<void> | null = null;

  private constructor(
    private readonly ort: OrtModule,
    readonly input: InferenceSession,
    /** Blocks whose entering states are kept. */
    private readonly tapped: readonly number[],
  ) {}

  static async open(
    ort: OrtModule,
    graph: EditedGraph,
    { tapped, session }: { tapped: readonly number[]; session?: InferenceSession.SessionOptions },
  ): Promise<WholeTower> {
    return new WholeTower(ort, await openGraph(ort, graph, session), tapped);
  }

  async states(pixels: Tensor, names: RunNames): Promise<Tensor> {
    return (await runSession(this.input, names, this.#feeds(pixels)))[HIDDEN_STATES];
  }

  async run(pixels: Tensor, { names, device }: TowerRun): Promise<TowerTile[]> {
    const feeds = this.#feeds(pixels);
    const size = pixels.dims.slice(1).join();
    const known = this.#shapes.get(size);
    const first = known ? null : await runSession(this.input, names, feeds);
    const [rows, width] = known ?? first![HIDDEN_STATES].dims.slice(1);
    this.#shapes.set(size, [rows, width]);
    const batch = new TowerBatch([pixels.dims[0], rows, width], device);
    try {
      // ONNX Runtime writes into a given output only when its own Tensor class holds it.
      const place = new this.ort.Tensor('float32', batch.data, batch.dims);
      if (first) batch.data.set(first[HIDDEN_STATES].data as Float32Array);
      const outputs =
        first ?? (await runSession(this.input, names, feeds, { ...this.#unplaced(), [HIDDEN_STATES]: place }));
      for (const block of this.tapped) batch.tapped(block, outputs[enteringStates(block)].data as Float32Array);
      return Array.from({ length: pixels.dims[0] }, (_, index) => ({ batch, index, rows, cut: null }));
    } catch (error) {
      batch.discard();
      throw error;
    }
  }

  /** Outputs of tapped blocks, in memory of ONNX Runtime's own. */
  #unplaced(): Record<string, null> {
    return Object.fromEntries(this.tapped.map((block) => [enteringStates(block), null]));
  }

  #feeds(pixels: Tensor): Record<string, Tensor> {
    return { [this.input.inputNames[0]]: pixels };
  }

  release(): Promise<void> {
    this.#released ??= this.input.release();
    return this.#released;
  }
}
