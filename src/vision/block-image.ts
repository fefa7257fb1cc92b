import type { Tensor } from 'onnxruntime-common';
import { type Backend, ImageAnalysis, type TextEmbeddings } from '../index.js';
import { matrixOf, rowsOf } from '../methods/matrix.js';
import { float32 } from '../tensor.js';
import type { BlockBatch, TokenRows } from './block-batch.js';
import { stacked } from './further.js';
import {
  type Analyzed,
  type Comparison,
  EncodedImageBase,
  type ImageOwner,
  type Kept,
  ofTile,
  type Purpose,
  tokensOf,
} from './image-base.js';
import { plainLayout, withoutDropped } from './layout.js';
import { meanRows } from './mean-rows.js';
import { featureSource, type MethodSource } from './method-source.js';
import { nearestKept } from './row-rules.js';
import { taskScores } from './siglip-rows.js';
import { taskText } from './task-text.js';
import type { Part } from './whole-image.js';

/** What an image needs of its model. */
interface Vision extends ImageOwner {
  readonly backend: Backend;
}

/** One encoded image, or video, of an encoder with a last block of its own; for many questions. */
export class BlockImage extends EncodedImageBase {
  readonly #vision: Vision;
  readonly #batch: BlockBatch;
  readonly #tiles: readonly number[];
  /** Its first token among those of the batch. */
  readonly #first: number;
  /** Where its units stand, tile by tile. */
  readonly #units: Int32Array;

  /**
   * @internal
   * @param tiles its places among the batch's tiles, ascending; their tokens follow one another
   * @param milliseconds that the encoder took
   */
  constructor(vision: Vision, batch: BlockBatch, tiles: readonly number[], milliseconds: number) {
    const own = tiles.map((tile) => batch.tiles[tile]);
    const layout = withoutDropped(
      plainLayout(
        own.map(({ frame, rows, columns }) => ({ frame, rows, columns })),
        own.map(({ tokens }) => tokens),
      ),
      tiles.map((tile) => batch.cut(tile)),
    );
    const isJoint = own.some(({ frame }) => frame > 0);
    super('BlockImage', vision, { layout, form: batch.form, medium: own[0].medium, isJoint, milliseconds });
    this.#vision = vision;
    this.#batch = batch;
    this.#tiles = tiles;
    this.#first = own[0].firstToken;
    this.#units = Int32Array.from(layout.places.flatMap((places) => [...places]));
  }

  get byteLength(): number {
    return this.tokenCount * this.#batch.bytesOfToken;
  }

  /** Without a question the connector has nothing to do. */
  protected override covers({ task }: Purpose): string {
    return task || this.#batch.isAsked ? 'task' : 'saliency';
  }

  protected async makeAnalyses(parts: readonly Part[], { task }: Purpose): Promise<Analyzed> {
    const view = await this.#batch.view(task);
    const start = performance.now();
    for (const [own, tile] of this.#tiles.entries())
      if (view.failed.has(tile)) throw ofTile(view.failed.get(tile), own, this.#tiles.length);
    const analyses: ImageAnalysis[] = [];
    try {
      for (const part of parts) {
        // Where nothing is compared, one column stands for the embeddings.
        const embeddings = view.task ?? { data: new Float32Array(view.saliency.length).fill(1), width: 1 };
        const patchEmbeddings = this.#tokens(embeddings, part);
        const saliency = this.#tokens({ data: view.saliency, width: 1 }, part).data as Float32Array;
        const features = this.#tokens(this.#batch.alike, part);
        const [tile, ...others] = part.tiles;
        const global = others.length === 0 ? view.readOut?.[this.#tiles[tile]].readOut?.global : undefined;
        analyses.push(await ImageAnalysis.from({ patchEmbeddings, global, saliency, features }, this.#vision.backend));
      }
    } catch (error) {
      for (const analysis of analyses) analysis.dispose();
      throw error;
    }
    return { analyses, milliseconds: view.milliseconds * this.#tiles.length + performance.now() - start };
  }

  /** SigLIP's rows are of patches: where a token has several, each is compared by itself. */
  protected override async taskMaps(
    parts: readonly Part[],
    text: TextEmbeddings,
    how: Comparison,
  ): Promise<Float32Array[] | null> {
    const { readOut } = await this.#batch.view(true);
    const tiles = readOut && this.#tiles.map((tile) => readOut[tile]);
    if (!tiles?.some(({ tile }) => tile.unit)) return null;
    const scores = await taskScores(this.#vision.backend, tiles, this.#batch.count, text, how);
    return parts.map(({ places }) => Float32Array.from(places, (place) => scores[this.#first + place]));
  }

  protected methodSource(part: Part): MethodSource {
    const { rows, columns } = this.tiles[part.tiles[0]];
    // Units of which some were dropped are no grid.
    const grid = part.dropped.length > 0 ? { rows: 1, columns: part.places.length } : { rows, columns };
    return featureSource(this.#vision.backend, matrixOf(this.#tokens(this.#batch.alike, part)), grid);
  }

  protected override comparable(text: TextEmbeddings): TextEmbeddings {
    if (this.#batch.form === 'siglip') return text;
    return taskText(text, this.#batch.alike.width);
  }

  /** Features with further columns are compared by the last block's, and merged whole. */
  protected async connect(kept: readonly Kept[]): Promise<Tensor> {
    const { features, alike } = this.#batch;
    const { width } = features;
    const rows = features === alike ? tokensOf(kept).data : this.#means(features, kept);
    return float32(rows as Float32Array, [1, rows.length / width, width]);
  }

  protected override further(kept: readonly Kept[]): Record<string, Tensor> | undefined {
    const { further } = this.#batch;
    if (further.size === 0) return undefined;
    const gathered = [...further].map(([name, rows]) => {
      const layers = rows.layers.map((data) => this.#means({ data, width: rows.width }, kept));
      return [name, stacked(layers, rows)] as const;
    });
    return Object.fromEntries(gathered);
  }

  /** The means of the rows that each kept token was given, [K, width]. */
  #means({ data, width }: TokenRows, kept: readonly Kept[]): Float32Array {
    const means = new Float32Array(kept.reduce((sum, { counts }) => sum + counts.length, 0) * width);
    let [unit, at] = [0, 0];
    for (const part of kept) {
      const places = this.#units.subarray(unit, (unit += part.assignment.length));
      means.set(meanRows(this.#tokens({ data, width }, { places }).data as Float32Array, width, part), at);
      at += part.counts.length * width;
    }
    return means;
  }

  protected async everything(): Promise<Tensor> {
    const places = Int32Array.from({ length: this.tokenCount }, (_, place) => place);
    const { data, dims } = this.#tokens(await this.#batch.everything(), { places });
    return float32((data as Float32Array).slice(), [1, ...dims]);
  }

  protected override async nearest({ places, dropped }: Part, kept: Int32Array): Promise<Int32Array> {
    const { dropped: known } = this.#batch;
    if (known === null || dropped.length === 0) return dropped;
    const width = known.states.length / this.#batch.count;
    const states = { data: known.states.subarray(this.#first * width), rows: this.tokenCount, cols: width };
    return nearestKept(this.#vision.backend, states, { kept: kept.map((unit) => places[unit]), dropped });
  }

  /** The rows of tokens at some places: in place where these follow one another. */
  #tokens({ data, width }: TokenRows, { places }: Pick<Part, 'places'>): Tensor {
    const dims = [places.length, width];
    const first = (this.#first + places[0]) * width;
    const isOne = places[places.length - 1] - places[0] === places.length - 1;
    if (isOne) return float32(data.subarray(first, first + places.length * width), dims);
    const rows = { data: data.subarray(this.#first * width), rows: this.tokenCount, cols: width };
    return float32(rowsOf(rows, places).data, dims);
  }

  protected free(): Promise<void> {
    return this.#batch.release();
  }
}
