import type { Tensor } from 'onnxruntime-common';
import type { TextEmbeddings } from '../index.js';
import type { BlockTile } from './block-tile.js';
import { type AboutTiles, type BlockOwner, BlockTilesImage } from './block-tiles-image.js';
import type { Analyzed, Purpose } from './image-base.js';
import { withoutDropped } from './layout.js';
import { type Lookable, Looking, partsOfView, scoresOfView } from './looking.js';
import type { RivalOptions } from './method-choice.js';
import type { PreparedImage } from './prune-together.js';
import { layoutOfTiles } from './tile-layout.js';
import { type LookRule, mostTaken, type TileChoice } from './tile-options.js';
import type { PrunedFeatures, Question, VisionPruneOptions } from './vision-model.js';
import type { Part } from './whole-image.js';

/** How an image is encoded, tile by tile. The last tile is the whole view. */
interface OnDemand extends Pick<AboutTiles, 'layout' | 'form'> {
  readonly choice: TileChoice;
  readonly whole: BlockTile;
  /**
   * For each unit of the whole view the tile that it is a part of.
   * @throws DesapError `ERR_VALUE` where it is not known how tiles make the image
   */
  readonly tileOf: () => Int32Array;
  /** Encodes some tiles in one go. */
  readonly encode: (tiles: readonly number[]) => Promise<BlockTile[]>;
}

/** One image of several tiles, of which the whole view is encoded, and others when a question needs them. */
export class LookedBlocks extends BlockTilesImage implements Lookable {
  readonly #looking: Looking;
  readonly others: number;
  readonly choice: TileChoice;
  readonly candidates: readonly number[];

  /** @param encoded has a tile once it is encoded */
  constructor(
    private readonly vision: BlockOwner,
    private readonly demand: OnDemand,
    private readonly encoded: BlockTile[] = [],
  ) {
    const { whole, layout, form, choice } = demand;
    const others = layout.tiles.length - 1;
    encoded[others] = whole;
    super(vision, { layout, form, tiles: encoded, milliseconds: whole.milliseconds });
    this.others = others;
    this.choice = choice;
    this.candidates = Array.from({ length: others }, (_, tile) => tile);
    this.#looking = new Looking(this, vision);
  }

  /** As if all tiles were encoded. */
  override get byteLength(): number {
    return this.encoded[this.others].byteLength * this.tiles.length;
  }

  override get least(): number {
    return 1 + mostTaken(this.choice, this.candidates.length);
  }

  override prepare(question: Question, given: VisionPruneOptions): Promise<PreparedImage> {
    return this.#looking.prepare(question, given);
  }

  override pruneBy(question: Question, given: RivalOptions): Promise<PrunedFeatures> {
    return this.#looking.pruneBy(question, given);
  }

  async scores(by: LookRule, text: TextEmbeddings | null): Promise<Float32Array> {
    const { whole, tileOf } = this.demand;
    const parts = partsOfView(await whole.analysis(text !== null));
    const own = text && this.comparable(text);
    const every = tileOf();
    const ofUnits = whole.cut ? whole.cut.stayed.map((unit) => every[unit]) : every;
    return scoresOfView(by as Exclude<LookRule, 'block'>, parts, own, { tileOf: ofUnits, tiles: this.others });
  }

  async encode(tiles: readonly number[]): Promise<void> {
    const missing = tiles.filter((tile) => this.encoded[tile] === undefined);
    if (missing.length === 0) return;
    for (const [at, tile] of (await this.demand.encode(missing)).entries()) this.encoded[missing[at]] = tile;
  }

  view(others: readonly number[]): BlockTilesImage {
    const { layout, form } = this.demand;
    const taken = [...others, this.others];
    const tiles: BlockTile[] = [];
    for (const tile of taken) tiles[tile] = this.encoded[tile];
    return new BlockTilesImage(this.vision, {
      ...{ form, tiles },
      layout: withoutDropped(
        layoutOfTiles(layout, this.others, new Set(taken)),
        layout.tiles.map((_, tile) => tiles[tile]?.cut ?? null),
      ),
      milliseconds: taken.reduce((sum, tile) => sum + this.encoded[tile].milliseconds, 0),
    });
  }

  protected override async makeAnalyses(parts: readonly Part[], purpose: Purpose): Promise<Analyzed> {
    await this.#looking.encode(this.candidates);
    return super.makeAnalyses(parts, purpose);
  }

  protected override async everything(): Promise<Tensor> {
    await this.#looking.encode(this.candidates);
    return super.everything();
  }
}
