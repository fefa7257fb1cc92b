/** What a CLIP tower makes of tiles, whether it runs in one piece or drops rows inside. */
import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { type EditedGraph, HIDDEN_STATES, type OrtModule, openGraph } from '../onnx/index.js';
import { enteringStates } from '../onnx/split.js';
import type { TensorLike } from '../tensor.js';
import { tilesAtOnce } from './at-once.js';
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

/** What a tile takes, its analysis counted too: where rows were dropped, all of them at the cut as well. */
export function bytesOf({ batch, rows, cut }: TowerTile, projectionDim: number): number {
  return batch.byteLength(projectionDim) + (cut ? 4 * rows * batch.dims[2] : 0);
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
  /** Rows of one run of a session, where one tile does not have more. */
  readonly rowsAtOnce: number;
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

/** Tiles of a call from one on and up to another; nothing is copied. */
export function someTiles({ Tensor: OrtTensor }: OrtModule, { data, dims }: Tensor, at: number, end: number): Tensor {
  const size = data.length / dims[0];
  return new OrtTensor('float32', (data as Float32Array).subarray(at * size, end * size), [end - at, ...dims.slice(1)]);
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

  async run(pixels: Tensor, { names, device, rowsAtOnce }: TowerRun): Promise<TowerTile[]> {
    const [count, ...extents] = pixels.dims;
    const some = (at: number, end: number) => this.#feeds(someTiles(this.ort, pixels, at, end));
    const known = this.#shapes.get(extents.join());
    // One tile tells how many rows each has.
    const ahead = known ? 0 : Number.isFinite(rowsAtOnce) ? 1 : count;
    const first = known ? null : await runSession(this.input, names, some(0, ahead));
    const [rows, width] = known ?? first![HIDDEN_STATES].dims.slice(1);
    this.#shapes.set(extents.join(), [rows, width]);
    const batch = new TowerBatch([count, rows, width], device);
    const tapped = (outputs: Record<string, Tensor>, at: number) => {
      for (const block of this.tapped) batch.tapped(block, outputs[enteringStates(block)].data as Float32Array, at);
    };
    try {
      if (first) {
        batch.data.set(first[HIDDEN_STATES].data as Float32Array);
        tapped(first, 0);
      }
      const atOnce = tilesAtOnce(rows, rowsAtOnce);
      for (let at = ahead; at < count; at += atOnce) {
        const end = Math.min(count, at + atOnce);
        // ONNX Runtime writes into a given output only when its own Tensor class holds it.
        const states = batch.data.subarray(at * rows * width, end * rows * width);
        const place = new this.ort.Tensor('float32', states, [end - at, rows, width]);
        const fetches = { ...this.#unplaced(), [HIDDEN_STATES]: place };
        tapped(await runSession(this.input, names, some(at, end), fetches), at);
      }
      return Array.from({ length: count }, (_, index) => ({ batch, index, rows, cut: null }));
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
