import type { Tensor } from 'onnxruntime-common';
import type { TextEmbeddings } from '../index.js';
import { unitRows } from '../kernels/unit-rows.js';
import { endRow } from '../method-input.js';
import { Once } from '../once.js';
import type { ClipTile } from './clip-tile.js';
import { type Glance, glanceScore } from './glance.js';
import type { Analyzed, ImageOwner } from './image-base.js';
import { withoutDropped } from './layout.js';
import { type Lookable, Looking, partsOfView, scoresOfView, type ViewParts } from './looking.js';
import type { RivalOptions } from './method-choice.js';
import type { PreparedImage } from './prune-together.js';
import { layoutOfTiles } from './tile-layout.js';
import { type LookRule, mostTaken, type TileChoice } from './tile-options.js';
import type { ViewRows } from './tile-rules.js';
import { type About, TilesImage } from './tiles-image.js';
import type { PrunedFeatures, Question, VisionPruneOptions } from './vision-model.js';
import type { Part } from './whole-image.js';

/** A tile that is encoded, and the milliseconds that it took. */
export interface TakenTile {
  readonly tile: ClipTile;
  readonly milliseconds: number;
}

/** How an image is encoded, tile by tile. Tile 0 is the whole view. */
export interface OnDemand extends Omit<About, 'tiles' | 'milliseconds'> {
  readonly choice: TileChoice;
  readonly whole: TakenTile;
  /** For each unit of the whole view that its tower did not drop the tile, counted without the whole view, that it is a part of. */
  readonly tileOf: Int32Array;
  /** For each tile the patches that are units. */
  readonly patches: readonly Int32Array[];
  /** Encodes some tiles in one go. */
  readonly encode: (tiles: readonly number[]) => Promise<TakenTile[]>;
  /** What the attention of keys says of the whole view. */
  readonly byKeys: () => Promise<ViewParts>;
  /** Unit rows of a tile's patches by a lower block; null for rules that do not read them. */
  readonly glance: ((tile: number) => ReturnType<Glance['at']>) | null;
}

const WHOLE = 0;

/** One image of several CLIP tiles, of which the whole view is encoded, and others when a question needs them. */
export class LookedTiles extends TilesImage implements Lookable {
  readonly #looking: Looking;
  readonly #milliseconds: number[];
  readonly #glances: Once<ViewRows>[];
  readonly #keys = new Once<ViewParts>();
  readonly choice: TileChoice;
  readonly candidates: readonly number[];

  /**
   * @internal
   * @param encoded has a tile once it is encoded
   */
  constructor(
    private readonly vision: ImageOwner,
    private readonly demand: OnDemand,
    private readonly encoded: ClipTile[] = [],
  ) {
    const { whole, layout, choice } = demand;
    encoded[WHOLE] = whole.tile;
    super(vision, { ...demand, tiles: encoded, milliseconds: whole.milliseconds });
    this.#milliseconds = [whole.milliseconds];
    this.#glances = layout.tiles.map(() => new Once());
    this.choice = choice;
    this.candidates = [...layout.places.keys()]
      .slice(1)
      .flatMap((tile) => (layout.places[tile].length > 0 ? [tile - 1] : []));
    this.#looking = new Looking(this, vision);
  }

  /** @internal How many tiles there are beside the whole view. */
  get others(): number {
    return this.tiles.length - 1;
  }

  /** As if all tiles were encoded. */
  override get byteLength(): number {
    return this.encoded[WHOLE].byteLength * this.tiles.length;
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

  /** @internal */
  async scores(by: LookRule, text: TextEmbeddings | null): Promise<Float32Array> {
    const { tileOf, byKeys, glance, patches } = this.demand;
    if (by === 'block' && text !== null) {
      const end = Float32Array.from(unitRows(endRow('question', text)).data);
      const scores: number[] = [];
      for (const other of this.candidates) {
        const tile = other + 1;
        const rows = await this.#glances[tile].get(() => glance!(tile));
        scores.push(glanceScore(rows, end, patches[tile]));
      }
      return Float32Array.from(scores);
    }
    const isOwn = by === 'task' || by === 'saliency';
    const parts = isOwn ? partsOfView(await this.view([]).analysis()) : await this.#keys.get(byKeys);
    const all = scoresOfView(by as Exclude<LookRule, 'block'>, parts, text, { tileOf, tiles: this.others });
    return Float32Array.from(this.candidates, (other) => all[other]);
  }

  /** @internal */
  async encode(others: readonly number[]): Promise<void> {
    const missing = others.map((other) => other + 1).filter((tile) => this.encoded[tile] === undefined);
    if (missing.length === 0) return;
    for (const [at, { tile, milliseconds }] of (await this.demand.encode(missing)).entries()) {
      this.encoded[missing[at]] = tile;
      this.#milliseconds[missing[at]] = milliseconds;
    }
  }

  /** @internal */
  view(others: readonly number[]): TilesImage {
    const { layout, tileGrid, ...how } = this.demand;
    const taken = [WHOLE, ...others.map((other) => other + 1)];
    const isAll = others.length === this.others;
    const tiles: ClipTile[] = [];
    for (const tile of taken) tiles[tile] = { ...this.encoded[tile], release: async () => {} };
    return new TilesImage(this.vision, {
      ...how,
      layout: withoutDropped(
        isAll ? layout : layoutOfTiles(layout, WHOLE, new Set(taken)),
        layout.tiles.map((_, tile) => tiles[tile]?.cut ?? null),
      ),
      tiles,
      // Methods that share their tokens over tiles know all of them.
      ...(isAll && { tileGrid }),
      milliseconds: taken.reduce((sum, tile) => sum + this.#milliseconds[tile], 0),
    });
  }

  protected override async makeAnalyses(parts: readonly Part[]): Promise<Analyzed> {
    await this.#looking.encode(this.candidates);
    return super.makeAnalyses(parts);
  }

  protected override async everything(): Promise<Tensor> {
    await this.#looking.encode(this.candidates);
    return super.everything();
  }
}
