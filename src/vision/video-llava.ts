import { basename, dirname, join } from 'node:path';
import { DesapError, invalid } from '../errors.js';
import { isFile } from '../files.js';
import { ImageAnalysis, type TensorLike } from '../index.js';
import { concatenated } from '../methods/matrix.js';
import { missing, type TapName } from '../methods/method.js';
import { Once } from '../once.js';
import { relativeError } from '../onnx/head/compare.js';
import { extractHead, readTower } from '../onnx/index.js';
import { readFloats } from '../onnx/weights.js';
import { type OptionNames, options } from '../options.js';
import { floatData, nonEmpty, oneOf, widened } from '../tensor.js';
import { checkQuestion } from './check-text.js';
import { ClipEncoder, type ClipEncoderOptions, type Encoded, TOLERANCE } from './clip-encoder.js';
import { ClipVisionModel } from './clip-model.js';
import { type ClipTile, clipTile } from './clip-tile.js';
import type { ImageOwner } from './image-base.js';
import { plainLayout, type TokenLayout, withoutDropped } from './layout.js';
import { LLAVA_OPTIONS } from './llava.js';
import { allOrNone } from './session.js';
import { checkpointOf, readTemporal, type TemporalWeights, temporalBlock } from './temporal.js';
import { TilesImage } from './tiles-image.js';
import { refuseTower } from './tower-options.js';
import { waves } from './trial.js';
import type { InputNames, Tile, VisionInputs } from './vision-model.js';

/**
 * Two models of one name. `video-llava-hf` is Hugging Face's: its frames do not see each other. `video-llava` is the original: LanguageBind's
 * video tower, where each layer has a temporal sub-block in front of its attention.
 */
export type VideoLlavaKind = (typeof KINDS)[number];
const KINDS = ['video-llava-hf', 'video-llava'] as const;

/** Whether the class token's row of each frame stays among the frame's tokens. */
export type ClassRows = (typeof CLASS_ROWS)[number];
export const CLASS_ROWS = ['keep', 'drop'] as const;

/** Options of {@link VideoLlavaVision.open}. */
export interface VideoLlavaVisionOptions extends ClipEncoderOptions {
  /** Which of the two models it is; default `video-llava-hf`. */
  kind?: VideoLlavaKind;
  /** Default `keep`: the language model was trained with them. */
  classRows?: ClassRows;
  /** The encoder of single images; default: `image_encoder` beside the vision encoder. It is opened when the first image comes. */
  imageEncoder?: string;
  /** CLIP folder of the tower of single images; default: `clip`. */
  imageClip?: string;
}

export const VIDEO_LLAVA_OPTIONS: OptionNames<VideoLlavaVisionOptions> = {
  ...LLAVA_OPTIONS,
  ...{ kind: true, classRows: true, imageEncoder: true, imageClip: true },
};

type Inputs = Pick<VisionInputs, 'pixelValues' | 'pixelValuesVideos'>;
const INPUTS: OptionNames<Inputs> = { pixelValues: true, pixelValuesVideos: true };

/**
 * Video-LLaVA's vision encoder with pruning, over onnxruntime-node: eight frames of a video, each with a class row in front of its patches,
 * or single images without it. Each frame is pruned by its own class token and merges within itself.
 *
 * The paper prunes the original, `video-llava`. There the decoupled attention stands in place of the spatial attention of the last layer,
 * behind that layer's temporal sub-block; the features stay those in front of it.
 *
 * ```ts
 * const vision = await VideoLlavaVision.open('video-llava-hf/onnx/vision_encoder.onnx', { clip: 'languagebind-video' });
 * const [video] = await vision.encode({ pixelValuesVideos });
 * const { features, indices } = await video.prune('what does the man do?', { keep: 128 });
 * ```
 */
export class VideoLlavaVision extends ClipVisionModel<TilesImage> {
  readonly #images = new Once<ClipEncoder>();
  /** Whether the head of the video tower is that of the image tower too. */
  readonly #fits = new Once<true>();

  private constructor(
    encoder: ClipEncoder,
    readonly kind: VideoLlavaKind,
    private readonly about: {
      readonly classRows: ClassRows;
      readonly temporal: TemporalWeights | null;
      /** The encoder of images, and the CLIP folder that is its own. */
      readonly images: { readonly file: string; readonly clip: string | undefined };
    },
  ) {
    super('VideoLlavaVision', 'video_llava', encoder, about.images.clip === undefined);
  }

  /**
   * @param visionEncoder path of the video tower's `vision_encoder.onnx`: [frames, 3, H, W] to [frames, 1 + patches, W]. With the kind
   *   `video-llava` the option `clip` names a folder with LanguageBind's `model.safetensors` and `config.json`, and for questions with
   *   its text tower
   * @throws DesapError as `LlavaVision.open`; `ERR_FILE` for missing temporal weights; `ERR_HEAD_MISMATCH` for a tower of the other kind
   */
  static async open(visionEncoder: string, given: VideoLlavaVisionOptions): Promise<VideoLlavaVision> {
    const checked = options('options', given, VIDEO_LLAVA_OPTIONS);
    const { kind = 'video-llava-hf', classRows = 'keep', imageEncoder, imageClip, ...clip } = checked;
    oneOf('kind', kind, KINDS);
    oneOf('classRows', classRows, CLASS_ROWS);
    if (imageEncoder !== undefined) nonEmpty('imageEncoder', imageEncoder, 'the path of the encoder of images');
    if (imageClip !== undefined) nonEmpty('imageClip', imageClip, 'the CLIP folder of images');
    nonEmpty('visionEncoder', visionEncoder, 'the path of a vision_encoder.onnx');
    if (kind === 'video-llava' && (clip.taps ?? []).length > 0)
      throw invalid(
        'ERR_VALUE',
        'taps',
        clip.taps,
        "none with kind: 'video-llava', whose blocks look at other frames in between",
      );
    if (kind === 'video-llava')
      refuseTower(
        clip.tower,
        "with kind: 'video-llava', where each row looks at the rows of its place in other frames",
      );
    const images = { file: imageEncoder ?? beside(visionEncoder), clip: imageClip };
    if (kind === 'video-llava-hf')
      return new VideoLlavaVision(await ClipEncoder.open(visionEncoder, clip), kind, {
        ...{ classRows, images, temporal: null },
      });
    const checkpoint = await checkpointOf(
      nonEmpty('clip', clip.clip as string, "a folder with LanguageBind's checkpoint"),
    );
    const head = await extractHead({ safetensors: checkpoint });
    const temporal = await readTemporal(checkpoint, head);
    return allOrNone(async (opened) => {
      const encoder = opened(await ClipEncoder.open(visionEncoder, { head, ...clip }), (one) => one.dispose());
      await confirmLayer(visionEncoder, temporal.layerBefore);
      await confirmTemporal(encoder, temporal, visionEncoder);
      return new VideoLlavaVision(encoder, kind, { classRows, images, temporal });
    });
  }

  protected async encodeImages(inputs: VisionInputs, names: InputNames): Promise<TilesImage[]> {
    const { pixelValues, pixelValuesVideos } = options<Inputs>('inputs', inputs, INPUTS);
    if (pixelValues === undefined && pixelValuesVideos === undefined)
      throw invalid('ERR_DTYPE', names.pixelValuesVideos, undefined, 'the frames of videos, [videos, frames, 3, H, W]');
    const made: TilesImage[] = [];
    try {
      if (pixelValues !== undefined) made.push(...(await this.#encodeImages(pixelValues, names.pixelValues)));
      if (pixelValuesVideos !== undefined)
        made.push(...(await this.#encodeVideos(pixelValuesVideos, names.pixelValuesVideos)));
      return made;
    } catch (error) {
      for (const image of made) image.dispose();
      throw error;
    }
  }

  async #encodeImages(pixelValues: TensorLike, name: string): Promise<TilesImage[]> {
    const pixels = floatData(name, pixelValues);
    if (pixels.dims.length !== 4 || pixels.dims[0] < 1)
      throw invalid('ERR_SHAPE', `${name}.dims`, pixels.dims, '[images, 3, H, W]');
    const encoder = await this.#images.get(() => this.#openImages());
    const encoded = await encoder.encode(widened(pixels), pixels.dims, name);
    const owner = this.#owner(encoder);
    return encoded.map((one) => {
      const patches = patchesOf(one, encoder);
      const tile = clipTile(encoder, one, { patches: upTo(patches), encoding: encoder.options.encoding });
      const analyze = async () => {
        await this.#fits.get(() => this.#confirmImages());
        return tile.analyze();
      };
      return new TilesImage(owner, {
        ...{ medium: 'image', tiles: [{ ...tile, analyze }] },
        layout: withoutDropped(plainLayout([tileOf(0, patches)], [patches]), [one.cut]),
        project: (rows) => encoder.project(rows),
        markers: async () => new Float32Array(),
        milliseconds: one.milliseconds,
      });
    });
  }

  /** The encoder of images: by its own CLIP; else with the pruner of videos, which {@link VideoLlavaVision.#confirmImages} compares. */
  async #openImages(): Promise<ClipEncoder> {
    const { file, clip } = this.about.images;
    if (!(await isFile(file)))
      throw new DesapError('ERR_FILE', `${file}: got no such file, wanted the encoder of images (option imageEncoder)`);
    const { head: _, ...options } = this.encoder.options;
    if (clip !== undefined) return ClipEncoder.open(file, { ...options, clip, pruner: undefined });
    return ClipEncoder.open(file, { ...options, pruner: this.pruner }, { text: false });
  }

  /** Images without a CLIP of their own have that of videos, if the towers are the same. */
  async #confirmImages(): Promise<true> {
    const { file, clip } = this.about.images;
    const { head: _, pruner, ...options } = this.encoder.options;
    if (clip !== undefined || pruner !== undefined) return true;
    try {
      await (await ClipEncoder.open(file, options, { text: false })).dispose();
      return true;
    } catch (cause) {
      const hint = 'the option imageClip names the CLIP folder of images';
      throw new DesapError((cause as DesapError).code, `${(cause as Error).message} (${hint})`, { cause });
    }
  }

  /** An image's questions go to the text tower of its own CLIP, where that is another. */
  #owner(encoder: ClipEncoder): ImageOwner {
    const { life, budget } = this;
    if (this.about.images.clip === undefined) return this;
    return { life, budget, encodeQuestion: async (question) => encoder.text.encode(checkQuestion(question)) };
  }

  async #encodeVideos(pixelValues: TensorLike, name: string): Promise<TilesImage[]> {
    const pixels = floatData(name, pixelValues);
    const { temporal } = this.about;
    const wanted = `[videos, ${temporal?.frames ?? 'frames'}, 3, H, W], or [${temporal?.frames ?? 'frames'}, 3, H, W] of one`;
    const dims = pixels.dims.length === 4 ? [1, ...pixels.dims] : pixels.dims;
    const [videos, frames, ...extents] = dims;
    if (dims.length !== 5 || videos < 1 || frames < 1 || frames !== (temporal?.frames ?? frames))
      throw invalid('ERR_SHAPE', `${name}.dims`, pixels.dims, wanted);
    const encoded = await this.encoder.encode(widened(pixels), [videos * frames, ...extents], name, {
      together: temporal?.frames,
    });
    return Array.from({ length: videos }, (_, v) => this.#video(encoded.slice(v * frames, (v + 1) * frames)));
  }

  #video(frames: readonly Encoded[]): TilesImage {
    const { encoder } = this;
    const { classRows, temporal } = this.about;
    const { encoding } = encoder.options;
    const patches = patchesOf(frames[0], encoder);
    const tiles = frames.map((frame) => clipTile(encoder, frame, { patches: upTo(patches), encoding }));
    const whole = videoLayout(frames.length, patches, encoder.dropsClassToken ? null : classRows);
    const layout = withoutDropped(
      whole,
      frames.map(({ cut }) => cut),
    );
    return new TilesImage(this, {
      ...{ medium: 'video', layout },
      tiles: temporal ? behindTemporal(encoder, { frames, tiles, temporal }) : tiles,
      project: (rows) => encoder.project(rows),
      markers: async (places) => {
        const rows = [...places].map((place) => tiles[place / (patches + 1)].classRow().data);
        return rows.length > 0 ? projected(encoder, rows) : new Float32Array();
      },
      milliseconds: frames.reduce((sum, { milliseconds }) => sum + milliseconds, 0),
    });
  }

  protected override async free(): Promise<void> {
    await Promise.all([super.free(), this.#images.made().then((encoder) => encoder?.dispose())]);
  }
}

/**
 * The tokens of a video: for each frame its class row, a marker, and its patches. Without class rows in the file: its patches.
 */
function videoLayout(frames: number, patches: number, classRows: ClassRows | null): TokenLayout {
  const tiles = Array.from({ length: frames }, (_, frame) => tileOf(frame, patches));
  if (classRows === null)
    return plainLayout(
      tiles,
      tiles.map(() => patches),
    );
  const stride = patches + 1;
  const markers = Int32Array.from(tiles, (_, frame) => frame * stride);
  return {
    tokenCount: frames * stride,
    tiles,
    places: tiles.map((_, frame) => upTo(patches).map((patch) => frame * stride + 1 + patch)),
    markers,
    staying: () => (classRows === 'keep' ? markers : new Int32Array()),
  };
}

/**
 * Frames whose decoupled attention stands behind the temporal sub-block of the last layer: analysed of the states behind it, merged of those
 * in front of it.
 */
function behindTemporal(
  { pruner, options: { encoding } }: ClipEncoder,
  {
    frames: [{ batch }],
    tiles,
    temporal,
  }: { readonly frames: readonly Encoded[]; readonly tiles: readonly ClipTile[]; readonly temporal: TemporalWeights },
): ClipTile[] {
  const [count, ...extents] = batch.dims;
  const analyses = new Once<ImageAnalysis[]>();
  let milliseconds = 0;
  const analyzeAll = async () => {
    const start = performance.now();
    const states = await temporalBlock(batch.data, temporal, pruner.backend);
    const made = await pruner.analyzeBatch({ data: states, dims: [count, ...extents] }, { encoding });
    milliseconds = (performance.now() - start) / count;
    return made;
  };
  return tiles.map((tile, frame) => {
    const made = new Once<ImageAnalysis>();
    return {
      ...tile,
      source: () => ({ ...tile.source(), tap: refuseTap }),
      async release() {
        (await made.made())?.dispose();
        (await analyses.made())?.[frame].dispose();
        await tile.release();
      },
      async analyze() {
        const analysis = await made.get(async () => {
          const own = (await analyses.get(analyzeAll))[frame];
          const parts = { patchEmbeddings: own.patchEmbeddings(), global: own.global(), saliency: own.saliency() };
          const behind = await ImageAnalysis.from({ ...parts, features: tile.units() }, pruner.backend);
          own.dispose();
          return behind;
        });
        return { analysis, milliseconds };
      },
    };
  });
}

async function refuseTap(name: TapName): Promise<never> {
  throw missing(
    `one that reads the tap '${name}'`,
    'another method: the blocks of this tower look at other frames in between',
  );
}

/**
 * Checks that a checkpoint's layer is the last one that a tower has, by the weight of the norm in front of its attention.
 * @throws DesapError `ERR_HEAD_MISMATCH`
 */
async function confirmLayer(file: string, wanted: Float32Array): Promise<void> {
  const { graph, blocks } = readTower(file);
  const weight = await readFloats(graph.model, blocks[blocks.length - 1].norm.weight);
  if (weight.length === wanted.length && relativeError(weight, wanted) <= TOLERANCE) return;
  throw new DesapError(
    'ERR_HEAD_MISMATCH',
    `${file}: got a tower whose last layer is not the last but one of the checkpoint in the option clip: they are not of one model`,
  );
}

/**
 * Checks that the frames of a tower see each other: those of a spatial tower come out the same in any order.
 * @throws DesapError `ERR_HEAD_MISMATCH`
 */
async function confirmTemporal(encoder: ClipEncoder, { frames }: TemporalWeights, file: string): Promise<void> {
  const extents = encoder.extents();
  const size = extents.reduce((product, extent) => product * extent, 1);
  const pixels = waves(frames * size);
  const reversed = new Float32Array(pixels.length);
  for (let frame = 0; frame < frames; frame++)
    reversed.set(pixels.subarray(frame * size, (frame + 1) * size), (frames - 1 - frame) * size);
  const hidden = async (given: Float32Array) => {
    const [{ batch }, ...others] = await encoder.encode(given, [frames, ...extents], file, { together: frames });
    const states = batch.rows(given === pixels ? 0 : frames - 1).data.slice();
    for (const one of [{ batch }, ...others]) await one.batch.release();
    return states;
  };
  if (relativeError(await hidden(reversed), await hidden(pixels)) > TOLERANCE) return;
  throw new DesapError(
    'ERR_HEAD_MISMATCH',
    `${file}: got a tower whose frames do not see each other, wanted one with temporal attention (kind: 'video-llava-hf' takes the other)`,
  );
}

/** The encoder of images that lies beside that of videos. */
function beside(visionEncoder: string): string {
  return join(dirname(visionEncoder), basename(visionEncoder).replace('vision_encoder', 'image_encoder'));
}

function patchesOf({ rows }: Encoded, { pruner }: ClipEncoder): number {
  return rows - Number(pruner.head.classToken);
}

function tileOf(frame: number, patches: number): Tile {
  const side = Math.sqrt(patches);
  return Number.isInteger(side) ? { frame, rows: side, columns: side } : { frame, rows: 1, columns: patches };
}

function upTo(count: number): Int32Array {
  return Int32Array.from({ length: count }, (_, i) => i);
}

async function projected(encoder: ClipEncoder, rows: readonly Float32Array[]): Promise<Float32Array> {
  const dims = [rows.length, rows[0].length];
  return (await encoder.project({ data: concatenated(rows), dims })).data as Float32Array;
}
