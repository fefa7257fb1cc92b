import { type Backend, ImageAnalysis, type TextEmbeddings } from '../index.js';
import { matrixOf, rowsOf } from '../methods/matrix.js';
import { Once } from '../once.js';
import { float32 } from '../tensor.js';
import type { BlockBatch, TokenRows } from './block-batch.js';
import type { Rows } from './clip-tower.js';
import type { Comparison } from './image-base.js';
import { nearestKept } from './row-rules.js';
import { taskScores } from './siglip-rows.js';

/** A tile of an encoder with a last block of its own, which a run encoded. */
export class BlockTile {
  readonly #asked = new Once<ImageAnalysis>();
  readonly #salient = new Once<ImageAnalysis>();

  /**
   * @param at its place among the batch's tiles
   * @param milliseconds that its share of the run took
   */
  constructor(
    private readonly backend: Backend,
    private readonly batch: BlockBatch,
    private readonly at: number,
    readonly milliseconds: number,
  ) {}

  /** Rows and columns of its visual tokens. */
  get grid(): { readonly rows: number; readonly columns: number } {
    const { rows, columns } = this.batch.tiles[this.at];
    return { rows, columns };
  }

  /** How a text is compared. */
  get form() {
    return this.batch.form;
  }

  /** Its tokens that the tower did not drop, ascending; null: all. */
  get cut(): { readonly stayed: Int32Array } | null {
    return this.batch.cut(this.at);
  }

  get byteLength(): number {
    return this.batch.tiles[this.at].tokens * this.batch.bytesOfToken;
  }

  /** All of its tokens, [tokens, W], whatever the tower dropped. */
  async everyUnit(): Promise<Rows> {
    return this.#every(await this.batch.everything());
  }

  /** For each token that the tower dropped: which of these kept ones, of those that stayed, is nearest by its state at the cut. */
  async nearest(kept: Int32Array): Promise<Int32Array> {
    const { cut } = this;
    const known = this.batch.dropped;
    if (cut === null || known === null) return new Int32Array();
    const width = known.states.length / this.batch.count;
    const states = matrixOf(this.#every({ data: known.states, width }));
    const those = new Set(cut.stayed);
    const dropped = Int32Array.from({ length: states.rows }, (_, unit) => unit).filter((unit) => !those.has(unit));
    return nearestKept(this.backend, states, { kept: kept.map((unit) => cut.stayed[unit]), dropped });
  }

  /** Its tokens that stayed, as they are merged, [units, W]. */
  units(): Rows {
    return this.#rows(this.batch.features);
  }

  /**
   * The pruner's view of its tokens, once.
   * @param task whether a text is to be compared with it
   */
  analysis(task: boolean): Promise<ImageAnalysis> {
    return (task ? this.#asked : this.#salient).get(async () => {
      const { failed, saliency, readOut, task: rows } = await this.batch.view(task);
      if (failed.has(this.at)) throw failed.get(this.at);
      // Where nothing is compared, one column stands for the embeddings.
      const embeddings = (task && rows) || { data: new Float32Array(saliency.length).fill(1), width: 1 };
      return ImageAnalysis.from(
        {
          patchEmbeddings: this.#rows(embeddings),
          global: task ? readOut?.[this.at].readOut?.global : undefined,
          saliency: this.#rows({ data: saliency, width: 1 }).data,
          features: this.units(),
        },
        this.backend,
      );
    });
  }

  /** The task map of its tokens where it is not the one that the analysis gives: SigLIP's rows are of patches, of which a token has several. */
  async task(text: TextEmbeddings, how: Comparison): Promise<Float32Array | null> {
    const { readOut } = await this.batch.view(true);
    const own = readOut?.[this.at];
    if (!own?.tile.unit) return null;
    const scores = await taskScores(this.backend, [own], this.batch.count, text, how);
    return this.#rows({ data: scores, width: 1 }).data;
  }

  /** The image needs it no more. */
  async release(): Promise<void> {
    for (const once of [this.#asked, this.#salient]) (await once.made())?.dispose();
    await this.batch.release();
  }

  /** Rows of its tokens that stayed. */
  #rows(rows: TokenRows): Rows {
    const { cut } = this;
    const every = this.#every(rows);
    if (cut === null) return every;
    const { data } = rowsOf(matrixOf(every), cut.stayed);
    return float32(data, [cut.stayed.length, rows.width]) as Rows;
  }

  #every({ data, width }: TokenRows): Rows {
    const { firstToken, tokens } = this.batch.tiles[this.at];
    return float32(data.subarray(firstToken * width, (firstToken + tokens) * width), [tokens, width]) as Rows;
  }
}
