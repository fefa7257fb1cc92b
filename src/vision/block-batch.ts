import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { mismatch } from '../errors.js';
import type { BlockHead, Encoding, SiglipReadOut } from '../index.js';
import type { OrtModule } from '../onnx/edit.js';
import { type BlockEncoder, COS, FEATURES, MAIN_FEATURES, ORDER, ROWS, SIN, TASK_ROWS } from '../onnx/last-block.js';
import type { TileRows } from './block-family.js';
import { type HostMemory, hostMemory } from './host-memory.js';
import { Once } from './once.js';
import { runSession } from './session.js';
import { settled } from './settled.js';
import { type ReadTile, tokenRows, tokenScores } from './siglip-rows.js';
import type { TaskForm } from './vision-model.js';

/** What the images of a run need of their model. */
export interface BlockEngine {
  readonly ort: OrtModule;
  readonly encoder: BlockEncoder;
  readonly connector: InferenceSession;
  readonly head: BlockHead;
  readonly encoding: Encoding;
  /** How SigLIP's read-out is used; null: the connector takes the attention. */
  readonly readOut: { readonly saliency: 'columns' | 'probe' } | null;
}

/** Rows over all visual tokens of a run. */
export interface TokenRows {
  /** [M, width]. */
  readonly data: Float32Array;
  readonly width: number;
}

/** What the last block says of the visual tokens of a run. */
export interface BlockView {
  /** [M] how much each token stands out, among those of its tile. */
  readonly saliency: Float32Array;
  /** The decoupled attention in the space of the questions; null where nobody asked. */
  readonly task: TokenRows | null;
  /** SigLIP's read-out of each tile; null where the space is the language model's. */
  readonly readOut: readonly ReadTile[] | null;
  /** Why a tile has none of it: what went wrong, by its place in `tiles`. */
  readonly failed: ReadonlyMap<number, unknown>;
  /** One tile's share. */
  readonly milliseconds: number;
}

/** Hidden states [B, N, D], or [N, D]. */
export interface HiddenRows extends HostMemory {
  readonly dims: readonly number[];
}

const CONNECTOR = { argument: 'image', graph: 'the connector' };

/**
 * What one run of an encoder says of its tiles, and what the last block makes of it by the package's kernels: freed with the last of the
 * run's images. The hidden states go as soon as no question needs them.
 */
export class BlockBatch {
  /** All tokens as the file itself encodes them. */
  readonly features: TokenRows;
  /** The columns of the last block, where the features have others too; otherwise the features. */
  readonly alike: TokenRows;
  readonly #salient = new Once<BlockView>();
  readonly #asked = new Once<BlockView>();
  #isAsked = false;
  #images: number;

  /**
   * @param hidden which the batch owns from now on
   * @param outputs what else the encoder hands out, by name
   * @param images how many will be made of it
   */
  constructor(
    private readonly engine: BlockEngine,
    private readonly hidden: HiddenRows,
    private outputs: Readonly<Record<string, Tensor>>,
    readonly tiles: readonly TileRows[],
    images: number,
  ) {
    this.#images = images;
    // SigLIP's read-out is a part of the block: it is there for whoever asks.
    this.#isAsked = engine.readOut !== null;
    this.features = rowsOf(outputs[FEATURES]);
    this.alike = MAIN_FEATURES in outputs ? rowsOf(outputs[MAIN_FEATURES]) : this.features;
  }

  /** How a text is compared. */
  get form(): TaskForm {
    return this.engine.readOut ? 'siglip' : 'llm';
  }

  /** Whether a text has been compared, or is about to be. */
  get isAsked(): boolean {
    return this.#isAsked;
  }

  /**
   * All tiles in one go, once.
   * @param task whether a text is to be compared
   */
  view(task: boolean): Promise<BlockView> {
    if (!task && !this.#isAsked) return this.#salient.get(() => this.#analyze(null));
    this.#isAsked = true;
    return this.#asked.get(async () => {
      await this.#salient.made();
      const rows = this.engine.readOut ? null : hostMemory(this.hidden.dims, this.engine.head.device);
      try {
        const view = await this.#analyze(rows);
        this.#release();
        return view;
      } finally {
        rows?.free();
      }
    });
  }

  /** All tokens of the run. */
  get count(): number {
    return this.features.data.length / this.features.width;
  }

  /** @param rows where the attention is written, all rows of the hidden states; null: it is not computed */
  async #analyze(rows: HostMemory | null): Promise<BlockView> {
    const { head, encoding, readOut } = this.engine;
    const start = performance.now();
    const { width } = head.block;
    const each = await settled([...this.tiles.keys()], async (some) => {
      const analyses = await head.analyzeBatch(
        some.map((t) => this.#input(this.tiles[t], rows)),
        { encoding },
      );
      return analyses.map((analysis, i) => {
        const { attention, unitSaliency, saliency, siglip } = analysis;
        const tile = this.tiles[some[i]];
        if (rows && !rows.inPlace) rows.data.set(attention?.data as Float32Array, tile.firstRow * width);
        analysis.dispose();
        const probe = readOut?.saliency === 'probe' ? (siglip as SiglipReadOut).probeSaliency : null;
        return { scores: probe ? tokenScores(head.backend, tile, probe) : (unitSaliency ?? saliency), siglip };
      });
    });
    const failed = new Map<number, unknown>();
    const saliency = new Float32Array(this.count);
    for (const [t, one] of each.entries())
      if (one.status === 'fulfilled') saliency.set(one.value.scores, this.tiles[t].firstToken);
      else failed.set(t, one.reason);
    const read = this.tiles.map((tile, t): ReadTile => {
      const one = each[t];
      return { tile, readOut: one.status === 'fulfilled' ? one.value.siglip : null };
    });
    const pooled = readOut && { data: tokenRows(read, this.count, width), width };
    const task = rows ? await this.#connect(rows, failed) : pooled;
    const milliseconds = (performance.now() - start) / this.tiles.length;
    return { saliency: this.#ordered(saliency), task, readOut: readOut && read, failed, milliseconds };
  }

  #input({ firstRow, patches, unit }: TileRows, rows: HostMemory | null) {
    const of = (data: Float32Array, width: number) => data.subarray(firstRow * width, (firstRow + patches) * width);
    const { width } = this.engine.head.block;
    const table = (name: string) => {
      const all = this.outputs[name];
      const extent = all.dims[all.dims.length - 1];
      return { data: of(all.data as Float32Array, extent), dims: [patches, extent] };
    };
    return {
      hidden: { data: of(this.hidden.data, width), dims: [patches, width] },
      ...(COS in this.outputs && { cos: table(COS), sin: table(SIN) }),
      ...(unit && { unit }),
      attention: rows && (rows.inPlace ? of(rows.data, width) : undefined),
    };
  }

  /** The attention's rows through the connector; zeros in padding, and for tiles that have none. */
  async #connect(rows: HostMemory, failed: ReadonlyMap<number, unknown>): Promise<TokenRows> {
    const { ort, encoder, connector, head } = this.engine;
    const { width } = head.block;
    let end = 0;
    for (const [t, { firstRow, patches }] of this.tiles.entries()) {
      if (failed.has(t)) continue;
      rows.data.fill(0, end, firstRow * width);
      end = (firstRow + patches) * width;
    }
    rows.data.fill(0, end);
    const crossing = encoder.crossing.map((name) => [name, this.outputs[name]]);
    const feeds = { [ROWS]: new ort.Tensor('float32', rows.data, this.hidden.dims), ...Object.fromEntries(crossing) };
    const task = rowsOf((await runSession(connector, CONNECTOR, feeds))[TASK_ROWS]);
    const [got, wanted] = [task.data.length / task.width, this.count];
    if (got === wanted) return task;
    throw mismatch(
      'ERR_GRAPH',
      encoder.model.name,
      `${got} rows behind the connector`,
      `${wanted}, one for each token`,
    );
  }

  /** What is said of tokens in the encoder's order, in that of the features. */
  #ordered(values: Float32Array): Float32Array {
    if (!(ORDER in this.outputs)) return values;
    const order = this.outputs[ORDER].data as BigInt64Array;
    return Float32Array.from({ length: order.length }, (_, i) => values[Number(order[i])]);
  }

  /** An image needs it no more. */
  async release(): Promise<void> {
    if (--this.#images > 0) return;
    await Promise.all([this.#salient.made(), this.#asked.made()]);
    this.#release();
  }

  /** Lets go of what the kernels and the connector read. */
  #release(): void {
    this.hidden.free();
    this.outputs = {};
  }
}

function rowsOf({ data, dims }: Tensor): TokenRows {
  return { data: data as Float32Array, width: dims[dims.length - 1] };
}
