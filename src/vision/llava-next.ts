import { DesapError, mismatch } from '../errors.js';
import type { TensorLike } from '../index.js';
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
} from './anyres.js';
import { checkPinpoints } from './anyres-images.js';
import { sizesOf, type Tiled, tilesOf } from './anyres-inputs.js';
import { ClipEncoder, type ClipEncoderOptions, type Encoded } from './clip-encoder.js';
import { ClipVisionModel } from './clip-model.js';
import { clipTile } from './clip-tile.js';
import { withoutDropped } from './layout.js';
import { LLAVA_OPTIONS } from './llava.js';
import { folderOf, type ModelConfig, readConfig } from './model-folder.js';
import { newlineVector } from './newline.js';
import { allOrNone } from './session.js';
import { TilesImage } from './tiles-image.js';
import type { InputNames, VisionInputs } from './vision-model.js';

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
}

export const LLAVA_NEXT_OPTIONS: OptionNames<LlavaNextVisionOptions> = {
  ...LLAVA_OPTIONS,
  ...{ model: true, config: true, anyres: true, newline: true, newlineVector: true },
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
  ) {
    super('LlavaNextVision', 'llava_next', encoder);
  }

  /**
   * @param visionEncoder path of a `vision_encoder.onnx`: [tiles, 3, S, S] to [tiles, patches, W]
   * @throws DesapError as `LlavaVision.open`; `ERR_VALUE` for a missing newline vector, and for sizes that are no tiles
   */
  static async open(visionEncoder: string, given: LlavaNextVisionOptions): Promise<LlavaNextVision> {
    const checked = options('options', given, LLAVA_NEXT_OPTIONS);
    const { model, config, anyres = 'model', newline = 'kept-rows', newlineVector: vector, ...clip } = checked;
    oneOf('anyres', anyres, ANYRES);
    oneOf('newline', newline, NEWLINES);
    const folder = model ?? folderOf(nonEmpty('visionEncoder', visionEncoder, 'the path of a vision_encoder.onnx'));
    const rule = ruleOf(config ?? (await readConfig(folder)));
    const own = anyres === 'model' ? await newlineVector(vector, folder) : null;
    if (own === null && anyres === 'model' && newline !== 'none')
      throw missingNewline(`, which no safetensors file in ${folder} has`);
    return allOrNone(async (opened) => {
      const encoder = opened(await ClipEncoder.open(visionEncoder, clip, { tuned: true }), (one) => one.dispose());
      if (own) vectorOf('newlineVector', own, await widthOf(encoder));
      return new LlavaNextVision(encoder, { ...rule, anyres, newline, vector: own });
    });
  }

  protected async encodeImages(inputs: VisionInputs, names: InputNames): Promise<TilesImage[]> {
    const { pixelValues, imageSizes } = options<Inputs>('inputs', inputs, INPUTS);
    const images = tilesOf(pixelValues as TensorLike, sizesOf(imageSizes, names), this.layout, names);
    const tiles = images.flatMap((image) => image.tiles);
    const { side } = this.layout;
    const layouts = new Map<Tiled, AnyresLayout>();
    const layoutOf = (image: Tiled, patches: number) => {
      const layout = layouts.get(image) ?? this.#layoutOf(image, patches);
      layouts.set(image, layout);
      return layout;
    };
    const owners = images.flatMap((image) => image.tiles.map((_, t) => ({ image, t })));
    const units = (tile: number, patches: number) => layoutOf(owners[tile].image, patches).patches[owners[tile].t];
    const dims = [tiles.length, 3, side, side];
    const encoded = await this.encoder.encode(inARow(tiles), dims, names.pixelValues, { units });
    try {
      let at = 0;
      return images.map((image) => {
        const first = at;
        at += image.tiles.length;
        const patches = encoded[first].rows - Number(this.pruner.head.classToken);
        return this.#image(image, layoutOf(image, patches), encoded.slice(first, at));
      });
    } catch (error) {
      for (const { batch } of encoded) void batch.release();
      throw error;
    }
  }

  #layoutOf({ size, grid }: Tiled, patches: number): AnyresLayout {
    const { anyres, newline } = this.layout;
    const side = Math.sqrt(patches);
    if (!Number.isInteger(side))
      throw new DesapError('ERR_GRAPH', `the vision tower: got ${patches} patches of a tile, wanted a square of them`);
    return anyresLayout(size, { grid, side, anyres, newline });
  }

  #image({ grid }: Tiled, layout: AnyresLayout, encoded: readonly Encoded[]): TilesImage {
    const { vector } = this.layout;
    const { encoding } = this.encoder.options;
    const cuts = encoded.map(({ cut }) => cut);
    return new TilesImage(this, {
      ...{ medium: 'image', layout: withoutDropped(layout, cuts) },
      tiles: encoded.map((tile, t) => clipTile(this.encoder, tile, { patches: layout.patches[t], encoding })),
      tileGrid: grid,
      project: (rows) => this.encoder.project(rows),
      markers: async (places) => repeated(vector, places.length),
      milliseconds: encoded.reduce((sum, { milliseconds }) => sum + milliseconds, 0),
    });
  }
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
  if (isOne) return new Float32Array(buffer, byteOffset, tiles.length * size);
  const all = new Float32Array(tiles.length * size);
  tiles.forEach((tile, i) => {
    all.set(tile, i * size);
  });
  return all;
}
