import { types } from 'node:util';
import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { DesapError, invalid, mismatch } from '../errors.js';
import { type Backend, openBackend, type TextEmbeddings } from '../index.js';
import { openGraph } from '../onnx/index.js';
import { FEATURES, MAIN_FEATURES, readQwenTower, SALIENCY, TASK_ROWS } from '../onnx/qwen-graph.js';
import { float32, vector } from '../tensor.js';
import { allOrNone, atRest } from '../vision/session.js';
import type { KeptTokens, SeenImage, VisionFamily } from './family.js';
import { floats, joined, seeAll } from './images.js';
import type { HookedModel, ModelInputs, ModelRuntime, ModelSession } from './model.js';
import type { ModelFiles } from './model-files.js';
import type { AttachOptions, CallOptions } from './options.js';
import type { Questions } from './question/question.js';
import { select, shareOf } from './select.js';
import { FeatureForm, requireSame, standIn } from './vision-session.js';

/**
 * Qwen2-VL, Qwen2.5-VL and what inherits from them: an encoder of its own without class token, two by two patches merged to one
 * visual token. The unit of pruning is that token.
 *
 * The paper does not say what the task signal of such a model is. Here: the last block's decoupled attention through the merger, so that
 * it lies in the language model's space (A_d), against the language model's own embeddings of the question (S); both sides'
 * global vectors are normalised means. `taskShare: 0` leaves it out.
 *
 * @throws DesapError `ERR_GRAPH` when the encoder is not built as expected, with what was looked for; `ERR_VALUE`
 */
export async function openQwen(
  model: HookedModel,
  files: ModelFiles,
  { ort, embed }: ModelRuntime,
  options: AttachOptions,
  questions: () => Promise<Questions>,
): Promise<VisionFamily> {
  requireOptions(model, options);
  const plain = model.sessions.vision_encoder;
  const names = inputNames(plain);
  const unit = (model.config.vision_config?.spatial_merge_size ?? 2) ** 2;
  const graph = readQwenTower(files.visionEncoder, unit);
  return allOrNone(async (opened) => {
    const session = opened(await openGraph(ort, graph, atRest(options.session)), (one) => one.release());
    const encoder = new QwenEncoder(names, unit, session);
    const backend = options.pruner?.backend ?? opened(openBackend(options), (own) => own.dispose());

    const encode = async (feeds: Record<string, Tensor>) => {
      const images = imagesOf(feeds[names.pixels], feeds[names.grid], ort.Tensor);
      const parts: Float32Array[] = [];
      for (const image of images) parts.push((await encoder.run(image)).features);
      return { data: joined(parts), images: images.length };
    };
    const sample = await confirmed(encode, plain, trials(model, plain, names, ort.Tensor), names, {
      file: files.visionEncoder,
      tolerance: graph.tolerance,
    });

    const release = async () => {
      if (options.pruner === undefined) backend.dispose();
      await session.release();
    };
    return {
      session: standIn(plain, { like: new FeatureForm(ort, sample), encode, release }),
      asks: (call) => shareOf(call) > 0,
      encodeQuestion: async (question) => {
        const rows = await embed((await questions()).encode(question));
        return { embeddings: float32(floats(rows), rows.dims.slice(-2)) };
      },
      see: ({ pixel_values, image_grid_thw }: ModelInputs) => {
        const images = imagesOf(pixel_values as unknown as Tensor, image_grid_thw as unknown as Tensor, ort.Tensor);
        return seeAll(images, async (image) => new QwenImage(backend, await encoder.run(image)));
      },
    };
  });
}

/** Patches of one image [L, C], and its grid [1, 3]. */
interface QwenPatches {
  readonly pixels: Tensor;
  readonly grid: Tensor;
}

/** What the tower says of M visual tokens, in the grid's order. */
interface Encoded {
  /** [M, W]. */
  readonly features: Float32Array;
  /** The columns of the last block, [M, W'], where the features have others too; otherwise null. */
  readonly alike: Float32Array | null;
  /** The decoupled attention in the language model's space, [M, W']. */
  readonly rows: Float32Array;
  /** [M]. */
  readonly saliency: Float32Array;
}

interface InputNames {
  readonly pixels: string;
  readonly grid: string;
}

/** The vision encoder with the further outputs. */
class QwenEncoder {
  constructor(
    private readonly names: InputNames,
    private readonly unit: number,
    private readonly session: InferenceSession,
  ) {}

  async run({ pixels, grid }: QwenPatches): Promise<Encoded> {
    const feeds: Outputs = { [this.names.pixels]: pixels };
    if (this.session.inputNames.includes(this.names.grid)) feeds[this.names.grid] = grid;
    const outputs = (await this.session.run(feeds)) as Outputs;
    const [features, rows, saliency] = [FEATURES, TASK_ROWS, SALIENCY].map(
      (name) => outputs[name].data as Float32Array,
    );
    const tokens = pixels.dims[0] / this.unit;
    if (saliency.length !== tokens)
      throw mismatch('ERR_SHAPE', 'pixel_values', `saliency of ${saliency.length} visual tokens`, `${tokens}`);
    return { features, rows, saliency, alike: (outputs[MAIN_FEATURES]?.data as Float32Array | undefined) ?? null };
  }
}

type Outputs = Record<string, Tensor>;

/**
 * Runs the loaded session and the tower on some images, and gives the features of the first. The last attention is the tower's
 * own, so that equal features say that it was read right. Encoders that take no frames are asked about single images only.
 *
 * @throws DesapError `ERR_HEAD_MISMATCH`; `ERR_GRAPH` where ONNX Runtime does not run what was read
 */
async function confirmed(
  encode: (feeds: Outputs) => Promise<{ data: Float32Array }>,
  plain: ModelSession,
  [image, frames]: readonly Outputs[],
  names: InputNames,
  what: { readonly file: string; readonly tolerance: number },
): Promise<Tensor> {
  const run = async (feeds: Outputs) => (await plain.run(feeds))[plain.outputNames[0]] as Tensor;
  const compare = async (feeds: Outputs, sample: Tensor) => {
    const { data } = await encode(feeds).catch((cause: Error) => {
      throw new DesapError(
        'ERR_GRAPH',
        `${what.file}: onnxruntime does not run what was read of it: ${cause.message}`,
        {
          cause,
        },
      );
    });
    requireSame(data, floats(sample), {
      ...what,
      reading: ', and in its last block attention of all patches of a frame',
    });
  };
  const sample = await run(image);
  await compare(image, sample);
  const several = await run(frames).catch(() => null);
  /** Patches to a row of the features. */
  const unit = (feeds: Outputs, { dims }: Tensor) => feeds[names.pixels].dims[0] / dims[dims.length - 2];
  if (several !== null && unit(frames, several) === unit(image, sample)) await compare(frames, several);
  return sample;
}

/** One encoded image. */
class QwenImage implements SeenImage {
  constructor(
    private readonly backend: Backend,
    private readonly encoded: Encoded,
  ) {}

  get tokens(): number {
    return this.encoded.saliency.length;
  }

  async prune(question: TextEmbeddings | null, options: CallOptions & { keep: number }): Promise<KeptTokens> {
    const task = question && (await this.#task(question, options));
    const { saliency, features, alike } = this.encoded;
    return select(this.backend, { task, saliency, features, alike }, options);
  }

  /** A_t: eq. 3 between the decoupled attention in the language model's space and the question's embeddings. */
  async #task(question: TextEmbeddings, { alignment, lambda }: CallOptions): Promise<Float32Array> {
    const { backend, tokens } = this;
    const { rows } = this.encoded;
    const width = rows.length / tokens;
    const visual = await backend.unitRows({ x: float32(rows, [tokens, width]) });
    const text = await backend.unitRows({ x: narrowed(question.embeddings, width) });
    const query = endOf(question, text);
    const { task } = await backend.align({ visual, text, query, global: meanRow(visual), alignment, lambda });
    return task;
  }

  [Symbol.dispose](): void {
    // Everything is memory of JavaScript.
  }
}

/** Text rows as wide as the visual ones: where these are packed with further columns, the text has zeros there. */
function narrowed(text: TextEmbeddings['embeddings'], width: number): TextEmbeddings['embeddings'] {
  const [rows, given] = text.dims.slice(-2);
  if (!(text.data instanceof Float32Array) || given <= width) return text;
  const data = new Float32Array(rows * width);
  for (let row = 0; row < rows; row++) {
    if (text.data.subarray(row * given + width, (row + 1) * given).some((value) => value !== 0))
      throw mismatch('ERR_SHAPE', 'question', `${given} columns`, `${width}, or zeros in the columns behind`);
    data.set(text.data.subarray(row * given, row * given + width), row * width);
  }
  return float32(data, [rows, width]);
}

/** q_t: the given row or vector; else the mean of the tokens, as an embedding of an end token would know nothing of the others. */
function endOf({ endOfText }: TextEmbeddings, text: Tensor): Float32Array {
  if (endOfText === undefined) return meanRow(text);
  const width = text.dims[1];
  if (typeof endOfText !== 'number') return vector('endOfText', endOfText, width);
  return (text.data as Float32Array).slice(endOfText * width, (endOfText + 1) * width);
}

/** The mean of unit rows, at unit length. */
function meanRow({ data, dims: [rows, width] }: Tensor): Float32Array {
  const sum = new Float64Array(width);
  for (let i = 0; i < rows * width; i++) sum[i % width] += (data as Float32Array)[i];
  const length = Math.sqrt(sum.reduce((total, value) => total + value * value, 0));
  return Float32Array.from(sum, (value) => value / Math.max(length, 1e-12));
}

/** The images of `pixel_values` [patches of all, C] by the rows of their grids [images, 3]. */
function imagesOf(pixels: Tensor, grids: Tensor, TensorClass: typeof Tensor): QwenPatches[] {
  if (!types.isFloat32Array(pixels.data) || pixels.dims.length !== 2)
    throw mismatch('ERR_SHAPE', 'pixel_values', `${pixels.type} [${pixels.dims.join(', ')}]`, 'float32 [patches, C]');
  if (!types.isBigInt64Array(grids?.data))
    throw invalid('ERR_VALUE', 'image_grid_thw', grids, 'the grid of each image, [images, 3] int64');
  const { data, dims } = pixels;
  const images: QwenPatches[] = [];
  let at = 0;
  for (let image = 0; image < grids.dims[0]; image++) {
    const grid = grids.data.slice(image * 3, image * 3 + 3);
    const patches = Number(grid.reduce((product, extent) => product * extent, 1n));
    const own = data.subarray(at * dims[1], (at += patches) * dims[1]);
    images.push({
      pixels: new TensorClass('float32', own, [patches, dims[1]]),
      grid: new TensorClass('int64', grid, [1, 3]),
    });
  }
  if (at === dims[0]) return images;
  throw invalid('ERR_SHAPE', 'pixel_values.dims', dims, `${at} patches, as image_grid_thw says`);
}

function inputNames({ inputNames: all, inputMetadata, outputNames }: ModelSession): InputNames {
  const of = (type: string) => inputMetadata.filter((input) => input.isTensor && input.type === type);
  const [pixels, grid] = [of('float32'), of('int64')];
  if (all.length === 2 && pixels.length === 1 && grid.length === 1 && outputNames.length === 1)
    return { pixels: pixels[0].name, grid: grid[0].name };
  throw new DesapError(
    'ERR_GRAPH',
    `model.sessions.vision_encoder: got the inputs ${all.join(', ')} and the outputs ${outputNames.join(', ')}, wanted float32 patches, their int64 grid and image_features only (deepstack features are taken as further columns of these, not as outputs)`,
  );
}

/** The defaults of Qwen2-VL's config. */
const PATCH = { channels: 3, frames: 2, side: 14 };

/** Images of waves on grids that are no squares: one of a single frame, and one of two. */
function trials(
  { config }: HookedModel,
  plain: ModelSession,
  names: InputNames,
  TensorClass: typeof Tensor,
): Outputs[] {
  const { vision_config: vision = {} } = config;
  const merge = vision.spatial_merge_size ?? 2;
  const { in_channels, in_chans, temporal_patch_size, patch_size } = vision;
  const input = plain.inputMetadata.find(({ name }) => name === names.pixels);
  const stated = input?.isTensor ? input.shape[1] : undefined;
  const extent =
    typeof stated === 'number' && stated > 0
      ? stated
      : (in_channels ?? in_chans ?? PATCH.channels) *
        (temporal_patch_size ?? PATCH.frames) *
        (patch_size ?? PATCH.side) ** 2;
  const grids = [
    [1, 4 * merge, 6 * merge],
    [2, 2 * merge, 3 * merge],
  ];
  return grids.map((grid) => {
    const patches = grid.reduce((product, size) => product * size, 1);
    const data = Float32Array.from({ length: patches * extent }, (_, i) => Math.sin(i * i));
    return {
      [names.pixels]: new TensorClass('float32', data, [patches, extent]),
      [names.grid]: new TensorClass('int64', BigInt64Array.from(grid, BigInt), [1, 3]),
    };
  });
}

function requireOptions({ config }: HookedModel, { clip, encoding }: AttachOptions): void {
  if (clip !== undefined)
    throw invalid('ERR_VALUE', 'clip', clip, 'none: the vision encoder of this model is no CLIP tower');
  if (encoding !== undefined && encoding !== 'qq')
    throw invalid('ERR_VALUE', 'encoding', encoding, 'qq, the only one for this model');
  const { depth, fullatt_block_indexes: full } = config.vision_config ?? {};
  if (full && depth && !full.includes(depth - 1))
    throw new DesapError(
      'ERR_GRAPH',
      `model.config.vision_config.fullatt_block_indexes: got ${full.join(', ')}, wanted the last block, ${depth - 1}, among them: its attention is to see the whole image`,
    );
}
