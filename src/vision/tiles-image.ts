import type { Tensor } from 'onnxruntime-common';
import type { TensorLike, TextEmbeddings } from '../index.js';
import { float32, integer, matrix, widened } from '../tensor.js';
import type { ClipTile } from './clip-tile.js';
import {
  type Analyzed,
  type Comparison,
  EncodedImageBase,
  type ImageOwner,
  type Kept,
  tokensOf,
} from './image-base.js';
import type { TokenLayout } from './layout.js';
import type { EncodedImage } from './vision-model.js';
import type { Part } from './whole-image.js';

/** How an image was encoded. */
interface About {
  readonly medium: EncodedImage['medium'];
  readonly layout: TokenLayout;
  /** One for each tile of the layout. */
  readonly tiles: readonly ClipTile[];
  /** [K, D] of any rows to features [1, K, W]. */
  readonly project: (rows: TensorLike) => Promise<Tensor>;
  /** Markers at these places as rows of the language model, one after the other. */
  readonly markers: (places: Int32Array) => Promise<Float32Array>;
  readonly milliseconds: number;
}

/** One encoded image of several CLIP tiles, or a video of several frames. */
export class TilesImage extends EncodedImageBase {
  /** @internal */
  constructor(
    owner: ImageOwner,
    private readonly how: About,
  ) {
    const { layout, medium, milliseconds } = how;
    super('TilesImage', owner, { layout, form: 'clip', medium, milliseconds });
  }

  protected async makeAnalyses(parts: readonly Part[]): Promise<Analyzed> {
    const made = await Promise.all(parts.map(({ tiles: [tile] }) => this.how.tiles[tile].analyze()));
    return {
      analyses: made.map(({ analysis }) => analysis),
      milliseconds: made.reduce((sum, { milliseconds }) => sum + milliseconds, 0),
    };
  }

  protected override async taskMaps(
    parts: readonly Part[],
    { embeddings, endOfText }: TextEmbeddings,
    { alignment, lambda }: Comparison,
  ): Promise<Float32Array[] | null> {
    const tiles = parts.map(({ tiles: [tile] }) => this.how.tiles[tile]);
    if (tiles.some(({ task }) => task === undefined)) return null;
    const text = matrix('text', embeddings);
    const rows = widened(text);
    const row = typeof endOfText === 'number' ? integer('endOfText', endOfText, 0, text.rows - 1) : text.rows - 1;
    const end = typeof endOfText === 'object' ? endOfText : rows.subarray(row * text.cols, (row + 1) * text.cols);
    const aligned = { text: float32(rows, [text.rows, text.cols]), endOfText: end };
    const how = { ...(alignment && { alignment }), ...(lambda !== undefined && { lambda }) };
    return Promise.all(tiles.map((tile) => tile.task!(aligned, how)));
  }

  protected connect(kept: readonly Kept[]): Promise<Tensor> {
    return this.how.project(tokensOf(kept));
  }

  protected override markerFeatures(places: Int32Array): Promise<Float32Array> {
    return this.how.markers(places);
  }

  /** [1, P, W]. */
  protected async everything(): Promise<Tensor> {
    const { layout, tiles, markers } = this.how;
    const newlines = await markers(layout.markers);
    let all: Float32Array | null = null;
    let width = newlines.length / Math.max(1, layout.markers.length);
    for (const [t, tile] of tiles.entries()) {
      if (layout.places[t].length === 0) continue;
      const { data, dims } = await this.how.project(tile.units());
      width = dims[2];
      all ??= new Float32Array(layout.tokenCount * width);
      put(data as Float32Array, layout.places[t], all, width);
    }
    all ??= new Float32Array(layout.tokenCount * width);
    put(newlines, layout.markers, all, width);
    return float32(all, [1, layout.tokenCount, width]);
  }

  protected async free(): Promise<void> {
    await Promise.all(this.how.tiles.map((tile) => tile.release()));
  }
}

/** Writes rows to their places. */
function put(rows: Float32Array, places: Int32Array, all: Float32Array, width: number): void {
  for (const [row, place] of places.entries()) all.set(rows.subarray(row * width, (row + 1) * width), place * width);
}
