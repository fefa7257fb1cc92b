import type { Tensor } from 'onnxruntime-common';
import type { TensorLike, TextEmbeddings } from '../index.js';
import type { Grid } from '../methods/method.js';
import { float32 } from '../tensor.js';
import type { ClipTile } from './clip-tile.js';
import {
  type Analyzed,
  type Comparison,
  EncodedImageBase,
  type ImageOwner,
  type Kept,
  ofTile,
  tokensOf,
} from './image-base.js';
import { type TokenLayout, unitPlaces } from './layout.js';
import type { MethodSource } from './method-source.js';
import { resultOf } from './settled.js';
import type { EncodedImage } from './vision-model.js';
import type { Part } from './whole-image.js';

/** How an image was encoded. */
export interface About {
  readonly medium: EncodedImage['medium'];
  readonly layout: TokenLayout;
  /** One for each tile of the layout. */
  readonly tiles: readonly ClipTile[];
  /** [K, D] of any rows to features [1, K, W]. */
  readonly project: (rows: TensorLike) => Promise<Tensor>;
  /** Markers at these places as rows of the language model, one after the other. */
  readonly markers: (places: Int32Array) => Promise<Float32Array>;
  /** How the tiles behind the first, which is the whole image, make one; left out where there is no such image. */
  readonly tileGrid?: Grid;
  readonly milliseconds: number;
}

/** One encoded image of several CLIP tiles, or a video of several frames. */
export class TilesImage extends EncodedImageBase {
  /** @internal */
  constructor(
    owner: ImageOwner,
    private readonly how: About,
  ) {
    const { layout, medium, tileGrid, milliseconds } = how;
    super('TilesImage', owner, { layout, form: 'clip', medium, tileGrid, milliseconds });
  }

  get byteLength(): number {
    return this.how.tiles.reduce((sum, tile) => sum + tile.byteLength, 0);
  }

  protected async makeAnalyses(parts: readonly Part[]): Promise<Analyzed> {
    const { tiles } = this.how;
    const analyze = (tile: number) =>
      tiles[tile].analyze().catch((error) => {
        throw ofTile(error, tile, tiles.length);
      });
    // All have ended before one of them fails: none reads the memory of an image that is disposed of then.
    const made = (await Promise.allSettled(parts.map(({ tiles: [tile] }) => analyze(tile)))).map(resultOf);
    return {
      analyses: made.map(({ analysis }) => analysis),
      milliseconds: made.reduce((sum, { milliseconds }) => sum + milliseconds, 0),
    };
  }

  protected override async taskMaps(
    parts: readonly Part[],
    text: TextEmbeddings,
    how: Comparison,
  ): Promise<Float32Array[] | null> {
    const tiles = parts.map(({ tiles: [tile] }) => this.how.tiles[tile]);
    if (tiles.some(({ task }) => task === undefined)) return null;
    return Promise.all(tiles.map((tile) => tile.task!(text, how)));
  }

  protected methodSource({ tiles: [tile] }: Part): MethodSource {
    return this.how.tiles[tile].source();
  }

  protected override async projected(parts: readonly Part[]): Promise<TensorLike[]> {
    const rows: TensorLike[] = [];
    for (const { tiles } of parts) rows.push(await this.how.project(this.how.tiles[tiles[0]].units()));
    return rows;
  }

  protected override async nearest({ tiles: [tile], dropped }: Part, kept: Int32Array): Promise<Int32Array> {
    return (await this.how.tiles[tile].nearest?.(kept)) ?? dropped;
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
      const { data, dims } = await this.how.project((await tile.everyUnit?.()) ?? tile.units());
      width = dims[2];
      all ??= new Float32Array(layout.tokenCount * width);
      put(data as Float32Array, unitPlaces(layout, t), all, width);
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
