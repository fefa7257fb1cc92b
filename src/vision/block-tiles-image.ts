import type { Tensor } from 'onnxruntime-common';
import type { Backend, TextEmbeddings } from '../index.js';
import { matrixOf } from '../methods/matrix.js';
import { float32 } from '../tensor.js';
import type { BlockTile } from './block-tile.js';
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
import { type TokenLayout, unitPlaces } from './layout.js';
import { featureSource, type MethodSource } from './method-source.js';
import { taskText } from './task-text.js';
import type { Part } from './whole-image.js';

/** What an image needs of its model. */
export interface BlockOwner extends ImageOwner {
  readonly backend: Backend;
}

/** How an image was encoded. */
export interface AboutTiles {
  readonly layout: TokenLayout;
  /** One for each tile of the layout that has units. */
  readonly tiles: readonly BlockTile[];
  readonly form: BlockTile['form'];
  readonly milliseconds: number;
}

/** An image of an encoder with a last block of its own, whose tiles were encoded by several runs. */
export class BlockTilesImage extends EncodedImageBase {
  /** @internal */
  constructor(
    private readonly model: BlockOwner,
    private readonly how: AboutTiles,
  ) {
    super('BlockTilesImage', model, how);
  }

  get byteLength(): number {
    return this.how.tiles.reduce((sum, tile) => sum + tile.byteLength, 0);
  }

  /** Without a question the connector has nothing to do. */
  protected override covers({ task }: Purpose): string {
    return task ? 'task' : 'saliency';
  }

  protected async makeAnalyses(parts: readonly Part[], { task }: Purpose): Promise<Analyzed> {
    const start = performance.now();
    const analyses: Analyzed['analyses'][number][] = [];
    for (const { tiles } of parts) {
      const [tile] = tiles;
      const made = this.how.tiles[tile].analysis(task);
      analyses.push(
        await made.catch((error) => {
          throw ofTile(error, tile, this.tiles.length);
        }),
      );
    }
    return { analyses, milliseconds: performance.now() - start };
  }

  protected override async taskMaps(
    parts: readonly Part[],
    text: TextEmbeddings,
    how: Comparison,
  ): Promise<Float32Array[] | null> {
    const maps: Float32Array[] = [];
    for (const { tiles } of parts) {
      const map = await this.how.tiles[tiles[0]].task(text, how);
      if (map === null) return null;
      maps.push(map);
    }
    return maps;
  }

  protected methodSource({ tiles: [tile] }: Part): MethodSource {
    const { rows, columns } = this.tiles[tile];
    return featureSource(this.model.backend, matrixOf(this.how.tiles[tile].units()), { rows, columns });
  }

  protected override comparable(text: TextEmbeddings): TextEmbeddings {
    if (this.how.form === 'siglip') return text;
    return taskText(text, this.how.tiles.find((tile) => tile !== undefined)!.units().dims[1]);
  }

  protected async connect(kept: readonly Kept[]): Promise<Tensor> {
    const { data, dims } = tokensOf(kept);
    return float32(data as Float32Array, [1, ...dims]);
  }

  protected override nearest({ tiles: [tile] }: Part, kept: Int32Array): Promise<Int32Array> {
    return this.how.tiles[tile].nearest(kept);
  }

  /** [1, P, W]. */
  protected async everything(): Promise<Tensor> {
    const { layout, tiles } = this.how;
    let all: Float32Array | null = null;
    let columns = 0;
    for (const [t, places] of layout.places.entries()) {
      if (places.length === 0) continue;
      const { data, dims } = await tiles[t].everyUnit();
      columns = dims[1];
      all ??= new Float32Array(layout.tokenCount * columns);
      all.set(data, unitPlaces(layout, t)[0] * columns);
    }
    return float32(all as Float32Array, [1, layout.tokenCount, columns]);
  }

  protected async free(): Promise<void> {
    await Promise.all(this.how.tiles.map((tile) => tile.release()));
  }
}
