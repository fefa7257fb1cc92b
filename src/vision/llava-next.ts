import { deviceOptions } from '../devices/open.js';
import { DesapError, mismatch } from '../errors.js';
import type { TensorLike } from '../index.js';
import { concatenated } from '../methods/matrix.js';
import { readTower } from '../onnx/index.js';
import { type OptionNames, options } from '../options.js';
import { integer, nonEmpty, oneOf, vector as vectorOf } from '../tensor.js';
import {
  ANYRES,
  type Anyres,
  type AnyresLayout,
  anyresLayout,
  NEWLINES,
  type Newline,
  PINPOINTS,
  type TileRule,
  unpadded,
} from './anyres.js';
import { checkPinpoints } from './anyres-images.js';
import { sizesOf, type Tiled, tilesOf } from './anyres-inputs.js';
import { ClipEncoder, type ClipEncoderOptions, type Encoded } from './clip-encoder.js';
import { ClipVisionModel } from './clip-model.js';
import { type ClipTile, clipTile } from './clip-tile.js';
import type { UnitPatches } from './clip-tower.js';
import { Glance } from './glance.js';
import { withoutDropped } from './layout.js';
import { LLAVA_OPTIONS } from './llava.js';
import { LookedTiles } from './looked-tiles.js';
import { partsOfView } from './looking.js';
import { folderOf, type ModelConfig, readConfig } from './model-folder.js';
import { newlineVector } from './newline.js';
import { allOrNone, atRest } from './session.js';
import { TILE_RULES, type TileChoice, type TileOptions, takesAll, tileChoice } from './tile-options.js';
import { tilesOfView } from './tile-rules.js';
import { TilesImage } from './tiles-image.js';
import type { InputNames, Tile, VisionInputs } from './vision-model.js';

/** Options of {@link LlavaNextVision.open}. */
export interface LlavaNextVisionOptions extends ClipEncoderOptions {
  /** The model's folder, which holds `config.json` and a checkpoint; default: the one that the encoder lies in. */
  model?: string;
  /** The model's config; default: `config.json` of its folder. */
  config?: ModelConfig;
  /** Which tokens an image has: default `model`. */
  anyres?: Anyres;
  /** Which newlines stay; default `kept-rows`. */
  newline?: Newline;
  /**
   * The model's newline vector [W], or the path of a safetensors file with it; default: the tensor whose name ends in `image_newline` in the
   * safetensors files of the folder.
   */
  newlineVector?: string | Float32Array | TensorLike;
  /** Which tiles are encoded beside the whole image; default: all. */
  tiles?: TileOptions;
}

export const LLAVA_NEXT_OPTIONS: OptionNames<LlavaNextVisionOptions> = {
  ...LLAVA_OPTIONS,
  ...{ model: true, config: true, anyres: true, newline: true, newlineVector: true, tiles: true },
};

/** What Hugging Face takes where the config does not say it; and more than any tower has. */
const SIDE = 336;
const MAX_SIDE = 16384;

type Inputs = Pick<VisionInputs, 'pixelValues' | 'imageSizes'>;
const INPUTS: OptionNames<Inputs> = { pixelValues: true, imageSizes: true };

/** How the tokens of images are laid out. */
interface Layout extends TileRule {
  readonly anyres: Anyres;
  readonly newline: Newline;
  /** null where there is none, and none is needed for what is kept. */
  readonly vector: Float32Array | null;
}

/**
 * LLaVA-NeXT's vision encoder with pruning, over onnxruntime-node: an image squeezed into one tile, and the same image cut into tiles, of
 * which the tower sees each alone. Each tile is pruned by its own class token and its own saliency, and merges within itself; a patch of
 * padding is no part of it.
 *
 * ```ts
 * const vision = await LlavaNextVision.open('llava-next/onnx/vision_encoder.onnx', { clip: 'clip-vit-large-patch14-336' });
 * const [image] = await vision.encode({ pixelValues, imageSizes });
 * const { features, indices, tileCounts } = await image.prune('is the fence wood or metal?', { keep: 64 });
 * ```
 */
export class LlavaNextVision extends ClipVisionModel<TilesImage> {
  private constructor(
    encoder: ClipEncoder,
    private readonly layout: Layout,
    private readonly choice: TileChoice | null,
    /** For rules that read a lower block. */
    private readonly glance: Glance | null,
  ) {
    super('LlavaNextVision', 'llava_next', encoder);
  }

  /**
   * @param visionEncoder path of a `vision_encoder.onnx`: [tiles, 3, S, S] to [tiles, patches, W]
   * @throws DesapError as `LlavaVision.open`; `ERR_VALUE` for a missing newline vector, and for sizes that are no tiles
   */
  static async open(visionEncoder: string, given: LlavaNextVisionOptions): Promise<LlavaNextVision> {
    const checked = options('options', given, LLAVA_NEXT_OPTIONS);
    const { model, config, anyres = 'model', newline = 'kept-rows', newlineVector: vector, tiles, ...clip } = checked;
    oneOf('anyres', anyres, ANYRES);
    oneOf('newline', newline, NEWLINES);
    const choice = tileChoice(tiles, TILE_RULES);
    const folder = model ?? folderOf(nonEmpty('visionEncoder', visionEncoder, 'the path of a vision_encoder.onnx'));
    const rule = ruleOf(config ?? (await readConfig(folder)));
    const own = anyres === 'model' ? await newlineVector(vector, folder) : null;
    if (own === null && anyres === 'model' && newline !== 'none')
      throw missingNewline(`, which no safetensors file in ${folder} has`);
    return allOrNone(async (opened) => {
      const encoder = opened(await ClipEncoder.open(visionEncoder, clip, { tuned: true }), (one) => one.dispose());
      if (own) vectorOf('newlineVector', own, await widthOf(encoder));
      const needsGlance = choice?.by === 'block';
      const glance = needsGlance ? opened(await glanceOf(visionEncoder, encoder), (one) => one.dispose()) : null;
      return new LlavaNextVision(encoder, { ...rule, anyres, newline, vector: own }, choice, glance);
    });
  }

  get looks(): boolean {
    return this.choice !== null;
  }

  protected async encodeImages(inputs: VisionInputs, names: InputNames): Promise<TilesImage[]> {
    const { pixelValues, imageSizes } = options<Inputs>('inputs', inputs, INPUTS);
    const images = tilesOf(pixelValues as TensorLike, sizesOf(imageSizes, names), this.layout, names);
    // What is not looked at first is encoded with all of its tiles.
    const firsts = images.map(({ tiles }) =>
      this.choice === null || takesAll(this.choice, tiles.length - 1) ? tiles : tiles.slice(0, 1),
    );
    const layouts = new Map<Tiled, AnyresLayout>();
    const layoutOf = (image: Tiled, patches: number) => {
      const layout = layouts.get(image) ?? this.#layoutOf(image, patches);
      layouts.set(image, layout);
      return layout;
    };
    const owners = images.flatMap((image, i) => firsts[i].map((_, t) => ({ image, t })));
    const units = (tile: number, patches: number) => layoutOf(owners[tile].image, patches).patches[owners[tile].t];
    const encoded = await this.#encode(firsts.flat(), units, names);
    try {
      let at = 0;
      return images.map((image, i) => {
        const first = at;
        at += firsts[i].length;
        const own = encoded.slice(first, at);
        const layout = layoutOf(image, own[0].rows - Number(this.pruner.head.classToken));
        const isAll = own.length === image.tiles.length;
        return isAll ? this.#image(image, layout, own) : this.#looked(image, layout, own[0], names);
      });
    } catch (error) {
      for (const { batch } of encoded) void batch.release();
      throw error;
    }
  }

  #layoutOf({ size, grid }: Pick<Tiled, 'size' | 'grid'>, patches: number): AnyresLayout {
    const { anyres, newline } = this.layout;
    const side = Math.sqrt(patches);
    if (!Number.isInteger(side))
      throw new DesapError('ERR_GRAPH', `the vision tower: got ${patches} patches of a tile, wanted a square of them`);
    return anyresLayout(size, { grid, side, anyres, newline });
  }

  #encode(tiles: readonly Float32Array[], units: UnitPatches, names: InputNames): Promise<Encoded[]> {
    const { side } = this.layout;
    return this.encoder.encode(inARow(tiles), [tiles.length, 3, side, side], names.pixelValues, { units });
  }

  #image(image: Tiled, layout: AnyresLayout, encoded: readonly Encoded[]): TilesImage {
    const cuts = encoded.map(({ cut }) => cut);
    return new TilesImage(this, {
      ...{ ...this.#about(image), layout: withoutDropped(layout, cuts) },
      tiles: encoded.map((tile, t) => this.#tile(tile, layout.patches[t])),
      milliseconds: encoded.reduce((sum, { milliseconds }) => sum + milliseconds, 0),
    });
  }

  /** The whole view is encoded, and the other tiles' pixels are kept until they are. */
  #looked({ tiles, ...image }: Tiled, layout: AnyresLayout, whole: Encoded, names: InputNames): TilesImage {
    const about = this.#about(image);
    const { pruner } = this;
    const { side } = this.layout;
    const pixels: (Float32Array | null)[] = tiles.map((tile, t) => (t === 0 ? null : tile.slice()));
    const tileOf = tileOfPatches(image, layout.tiles[0]);
    const taken = (encoded: Encoded, tile: number) => ({
      tile: this.#tile(encoded, layout.patches[tile]),
      milliseconds: encoded.milliseconds,
    });
    return new LookedTiles(this, {
      ...{ ...about, layout, choice: this.choice as TileChoice },
      patches: layout.patches,
      tileOf: whole.cut ? whole.cut.stayed.map((unit) => tileOf[unit]) : tileOf,
      whole: taken(whole, 0),
      encode: async (some) => {
        const encoded = await this.#encode(
          some.map((tile) => pixels[tile] as Float32Array),
          (at) => layout.patches[some[at]],
          names,
        );
        // A question that comes later may want a glance at any of them.
        if (this.glance === null) for (const tile of some) pixels[tile] = null;
        return encoded.map((one, i) => taken(one, some[i]));
      },
      byKeys: async () => {
        using analysis = await pruner.analyze(whole.batch.rows(whole.index), { encoding: 'kk' });
        return partsOfView(analysis);
      },
      glance: this.glance && ((tile) => this.glance!.at(pixels[tile] as Float32Array, [1, 3, side, side])),
    });
  }

  #tile(encoded: Encoded, patches: Int32Array): ClipTile {
    return clipTile(this.encoder, encoded, { patches, encoding: this.encoder.options.encoding });
  }

  /** What is the same however many tiles are encoded. */
  #about({ grid }: Pick<Tiled, 'grid'>) {
    const { vector } = this.layout;
    return {
      medium: 'image' as const,
      tileGrid: grid,
      project: (rows: TensorLike) => this.encoder.project(rows),
      markers: async (places: Int32Array) => repeated(vector, places.length),
    };
  }

  protected override async free(): Promise<void> {
    await Promise.all([this.glance?.dispose(), super.free()]);
  }
}

/** A glance at tiles of an encoder's file. */
async function glanceOf(visionEncoder: string, encoder: ClipEncoder): Promise<Glance> {
  const { options, ort, pruner } = encoder;
  return Glance.open({
    ...{ ort, structure: readTower(visionEncoder), head: await pruner.headWeights() },
    ...{ session: atRest(options.session), device: deviceOptions(options) },
  });
}

/** For each patch of the whole image, which is squeezed into a square, the tile that it is a part of. */
function tileOfPatches({ size, grid }: Pick<Tiled, 'size' | 'grid'>, whole: Tile): Int32Array {
  const map = { rows: grid.rows * whole.rows, columns: grid.columns * whole.columns };
  const { top, left, rows, columns } = unpadded(map, size);
  return tilesOfView(whole, grid, {
    ...{ top: top / map.rows, left: left / map.columns },
    ...{ height: rows / map.rows, width: columns / map.columns },
  });
}

/** What a config says of tiles; what it leaves out is as in Hugging Face. */
function ruleOf({ image_grid_pinpoints: pinpoints, vision_config: vision }: ModelConfig): TileRule {
  const side = integer('config.vision_config.image_size', vision?.image_size ?? SIDE, 1, MAX_SIDE);
  return { side, pinpoints: checkPinpoints('config.image_grid_pinpoints', pinpoints ?? PINPOINTS, side) };
}

/** W, the width of the features. */
async function widthOf(encoder: ClipEncoder): Promise<number> {
  const { width } = encoder.pruner.head;
  return (await encoder.project({ data: new Float32Array(width), dims: [1, width] })).dims[2];
}

function missingNewline(where: string): DesapError {
  const wanted = `the vector of the model's newlines, a file with it, or newline: 'none'${where}`;
  return mismatch('ERR_VALUE', 'newlineVector', 'none', wanted);
}

function repeated(vector: Float32Array | null, count: number): Float32Array {
  if (count > 0 && vector === null) throw missingNewline('; all tokens have newlines among them');
  const rows = new Float32Array(count * (vector?.length ?? 0));
  for (let row = 0; row < count; row++) rows.set(vector as Float32Array, row * (vector as Float32Array).length);
  return rows;
}

/** Tiles as one piece of memory: the same where they are one already. */
function inARow(tiles: readonly Float32Array[]): Float32Array {
  const [{ buffer, byteOffset, length: size, byteLength }] = tiles;
  const isOne = tiles.every((tile, i) => tile.buffer === buffer && tile.byteOffset === byteOffset + i * byteLength);
  return isOne ? new Float32Array(buffer, byteOffset, tiles.length * size) : concatenated(tiles);
}
