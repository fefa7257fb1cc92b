import type { Tensor } from 'onnxruntime-common';
import { mismatch } from '../errors.js';
import type { SiglipReadOut } from '../index.js';
import { Once } from '../once.js';
import { FEATURES, MAIN_FEATURES, ORDER, TASK_ROWS } from '../onnx/block-values.js';
import type { TileRows } from './block-family.js';
import { type BlockEngine, type BlockRun, connect, type DroppedTokens, type Outputs } from './block-run.js';
import { type FurtherRows, furtherRows } from './further.js';
import type { HostMemory } from './host-memory.js';
import { type ReadTile, tokenRows, tokenScores } from './siglip-rows.js';
import type { TaskForm } from './vision-model.js';

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

const CONNECTOR = { argument: 'image', graph: 'the connector' };

/**
 * What one run of an encoder says of its tiles, and what the last block makes of it by the package's kernels: freed with the last of the
 * run's images. What the kernels read goes as soon as no question needs it.
 */
export class BlockBatch {
  /** All tokens as the file itself encodes them; those that the tower dropped have rows that mean nothing. */
  readonly features: TokenRows;
  /** The columns of the last block, where the features have others too; otherwise the features. */
  readonly alike: TokenRows;
  /** What the file hands out of all tokens besides, by output. */
  readonly further: ReadonlyMap<string, FurtherRows>;
  /** What is known of tokens that the tower dropped; null where it dropped none. */
  readonly dropped: DroppedTokens | null;
  readonly #everything = new Once<TokenRows>();
  readonly #salient = new Once<BlockView>();
  readonly #asked = new Once<BlockView>();
  #run: BlockRun | null;
  /** Numbers of the run's hidden states. */
  readonly #hidden: number;
  #isAsked = false;
  #images: number;

  /**
   * @param run which the batch owns from now on
   * @param images how many will be made of it
   */
  constructor(
    private readonly engine: BlockEngine,
    run: BlockRun,
    readonly tiles: readonly TileRows[],
    images: number,
  ) {
    this.#run = run;
    this.#images = images;
    this.#hidden = run.hidden.reduce((product, extent) => product * extent, 1);
    // SigLIP's read-out is a part of the block: it is there for whoever asks.
    this.#isAsked = engine.readOut !== null;
    const { outputs } = run;
    this.dropped = run.dropped;
    this.features = rowsOf(outputs[FEATURES]);
    this.alike = MAIN_FEATURES in outputs ? rowsOf(outputs[MAIN_FEATURES]) : this.features;
    const tokens = this.features.data.length / this.features.width;
    const { further, model } = engine.encoder;
    this.further = new Map(
      further.map((name) => [name, furtherRows(outputs[name], tokens, { name, file: model.name })]),
    );
  }

  /** How a text is compared. */
  get form(): TaskForm {
    return this.engine.readOut ? 'siglip' : 'llm';
  }

  /** What each token takes: its features, rows of the file besides, hidden states, and an analysis of the features' width. */
  get bytesOfToken(): number {
    const { features, alike, further, count } = this;
    const own = features === alike ? features.width : features.width + alike.width;
    const others = [...further.values()].reduce((sum, { layers, width }) => sum + layers.length * width, 0);
    return 4 * (own + others + alike.width + this.#hidden / count);
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
    if (!task && !this.#isAsked) return this.#salient.get(() => this.#view(false));
    this.#isAsked = true;
    return this.#asked.get(async () => {
      await this.#salient.made();
      const view = await this.#view(this.engine.readOut === null);
      this.#release();
      return view;
    });
  }

  /** The features of all tokens, with none dropped. */
  async everything(): Promise<TokenRows> {
    const { dropped } = this;
    return dropped === null ? this.features : this.#everything.get(async () => rowsOf(await dropped.everything()));
  }

  /** The tokens of a tile that stayed in the tower, ascending; null where all did. */
  cut(tile: number): { readonly stayed: Int32Array } | null {
    if (this.dropped === null) return null;
    const { firstToken, tokens } = this.tiles[tile];
    const stays = this.dropped.stays.subarray(firstToken, firstToken + tokens);
    return stays.includes(0) ? { stayed: Int32Array.from(stays.keys()).filter((token) => stays[token] === 1) } : null;
  }

  /** All tokens of the run. */
  get count(): number {
    return this.features.data.length / this.features.width;
  }

  /** @param attends whether the attention goes through the connector */
  async #view(attends: boolean): Promise<BlockView> {
    const { head, readOut } = this.engine;
    const run = this.#run as BlockRun;
    const { sequences, attention, milliseconds } = await run.attend(attends);
    const start = performance.now();
    try {
      const failed = new Map<number, unknown>();
      const saliency = new Float32Array(this.count);
      const read: ReadTile[] = [];
      for (const [t, one] of sequences.entries()) {
        const tile = this.tiles[t];
        read.push({ tile, readOut: one.status === 'fulfilled' ? one.value.siglip : null });
        if (one.status === 'rejected') {
          failed.set(t, one.reason);
          continue;
        }
        const { saliency: columns, siglip } = one.value;
        const scores = readOut?.saliency === 'probe' ? (siglip as SiglipReadOut).probeSaliency : columns;
        saliency.set(tokenScores(head.backend, tile, scores), tile.firstToken);
      }
      const { width } = head.block;
      const pooled = readOut && { data: tokenRows(read, this.count, width), width };
      const task = attends && attention ? await this.#connect(run, attention) : pooled;
      return {
        ...{ saliency: ordered(saliency, run.outputs), task, readOut: readOut && read, failed },
        milliseconds: (milliseconds + performance.now() - start) / this.tiles.length,
      };
    } finally {
      if (attends) attention?.free();
    }
  }

  /** The attention's rows through the connector. */
  async #connect({ outputs, hidden }: BlockRun, attention: HostMemory): Promise<TokenRows> {
    const { ort, encoder } = this.engine;
    const rows = new ort.Tensor('float32', attention.data, hidden);
    const task = rowsOf((await connect(this.engine, outputs, rows, CONNECTOR))[TASK_ROWS]);
    const [got, wanted] = [task.data.length / task.width, this.count];
    if (got === wanted) return task;
    throw mismatch(
      'ERR_GRAPH',
      encoder.model.name,
      `${got} rows behind the connector`,
      `${wanted}, one for each token`,
    );
  }

  /** An image needs it no more. */
  async release(): Promise<void> {
    if (--this.#images > 0) return;
    await Promise.all([this.#salient.made(), this.#asked.made()]);
    this.#release();
  }

  /** Lets go of what the kernels and the connector read. */
  #release(): void {
    this.#run?.free();
    this.#run = null;
  }
}

/** What is said of tokens in the encoder's order, in that of the features. */
function ordered(values: Float32Array, outputs: Outputs): Float32Array {
  if (!(ORDER in outputs)) return values;
  const order = outputs[ORDER].data as BigInt64Array;
  return Float32Array.from({ length: order.length }, (_, i) => values[Number(order[i])]);
}

function rowsOf({ data, dims }: Tensor): TokenRows {
  return { data: data as Float32Array, width: dims[dims.length - 1] };
}
