import type { Tensor } from 'onnxruntime-common';
import type { TensorLike } from '../index.js';
import { float32 } from '../tensor.js';
import type { ClipTile } from './clip-tile.js';
import { type Analyzed, EncodedImageBase, type ImageOwner, type Kept, tokensOf } from './image-base.js';
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
