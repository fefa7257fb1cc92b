import type { TextEmbeddings } from '../index.js';
import { type Backend, ImageAnalysis, type TensorLike } from '../index.js';
import { Once } from '../once.js';
import { float32 } from '../tensor.js';
import type { BlockBatch, TokenRows } from './block-batch.js';
import type { Comparison } from './image-base.js';
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

  /** Its tokens as they are merged, [units, W]. */
  units(): TensorLike & { readonly data: Float32Array } {
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

  #rows({ data, width }: TokenRows) {
    const { firstToken, tokens } = this.batch.tiles[this.at];
    return float32(data.subarray(firstToken * width, (firstToken + tokens) * width), [tokens, width]) as TensorLike & {
      readonly data: Float32Array;
    };
  }
}
