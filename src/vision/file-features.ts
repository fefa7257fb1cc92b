/** What a vision encoder's file computes by itself, beside what a vision model makes of it. */
import { types } from 'node:util';
import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import type { OrtModule } from '../onnx/edit.js';
import { floatData, floatToHalf, type TensorLike, widened } from '../tensor.js';
import type { Feed } from './block-family.js';
import { TENTATIVE } from './session.js';
import { INPUT_NAMES, type InputNames, type VisionInputs, type VisionModel } from './vision-model.js';

/** The inputs of a whole vision encoder by name, each with the one of {@link VisionInputs} that it takes. */
export type FileInputs = Readonly<Record<string, Exclude<keyof VisionInputs, 'tileCounts' | 'tileGrids'>>>;

/** What Transformers.js calls them. */
const CALLED: FileInputs = {
  pixel_values: 'pixelValues',
  image_grid_thw: 'imageGridThw',
  grid_thw: 'imageGridThw',
  pixel_attention_mask: 'pixelAttentionMask',
  spatial_shapes: 'spatialShapes',
  image_sizes: 'imageSizes',
};

/**
 * By their types: pixels are the only floats, and what is alone with its type needs no name. Several of one type are told apart by what
 * Transformers.js feeds them by.
 *
 * @param name of the session, for messages
 * @param further outputs that are taken besides the features
 * @throws DesapError `ERR_GRAPH` for further inputs, and for further outputs
 */
export function fileInputs(
  { inputNames, inputMetadata, outputNames }: InferenceSession,
  name: string,
  further: readonly string[] = [],
): FileInputs {
  const of = (type: string) => inputMetadata.filter((input) => input.isTensor && input.type === type);
  const [pixels, integers, masks] = [of('float32'), of('int64'), of('bool')];
  const isAlone = integers.length === 1;
  const inputs: [string, FileInputs[string] | undefined][] = [
    ...pixels.map((input): [string, FileInputs[string]] => [input.name, 'pixelValues']),
    ...masks.map((input): [string, FileInputs[string]] => [input.name, 'pixelAttentionMask']),
    ...integers.map((input): [string, FileInputs[string] | undefined] => [
      input.name,
      CALLED[input.name] ?? (isAlone ? 'imageGridThw' : undefined),
    ]),
  ];
  const parts = inputs.map(([, part]) => part);
  const isKnown = inputs.length === inputNames.length && new Set(parts).size === parts.length;
  const features = outputNames.filter((output) => !further.includes(output));
  if (pixels.length === 1 && isKnown && !parts.includes(undefined) && features.length === 1)
    return Object.fromEntries(inputs) as FileInputs;
  throw new DesapError(
    'ERR_GRAPH',
    `${name}: got the inputs ${inputNames.join(', ')} and the outputs ${outputNames.join(', ')}, wanted pixels in float32, for Qwen-VL their int64 grid, and image_features only`,
  );
}

/** What the caller of a whole file knows the inputs by. */
export function namesOf(inputs: FileInputs): InputNames {
  return { ...INPUT_NAMES, ...Object.fromEntries(Object.entries(inputs).map(([name, part]) => [part, name])) };
}

/** The feeds of a whole file as a vision model takes them. */
export function visionInputs(inputs: FileInputs, feeds: Readonly<Record<string, Tensor>>): VisionInputs {
  return Object.fromEntries(Object.entries(inputs).map(([name, part]) => [part, feeds[name]]));
}

/** All visual tokens of the images of one call, one image after the other. */
export interface AllFeatures {
  readonly data: Float32Array;
  /** Tiles of all images: whole files give one matrix for each. */
  readonly tiles: number;
  /** Visual tokens that the prompt has for them. */
  readonly tokens: number;
}

/** What a vision model gives for all visual tokens. */
export async function allFeatures(
  vision: Pick<VisionModel, 'encode'>,
  inputs: VisionInputs,
  names?: InputNames,
): Promise<AllFeatures> {
  const images = await vision.encode(inputs, names);
  try {
    const parts: Float32Array[] = [];
    for (const image of images) parts.push((await image.all()).data as Float32Array);
    const data = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    for (let i = 0, at = 0; i < parts.length; at += parts[i++].length) data.set(parts[i], at);
    const tokens = images.reduce((sum, image) => sum + image.tokenCount, 0);
    const tiles = images.reduce((sum, image) => sum + image.tiles.length, 0);
    return { data, tiles, tokens };
  } finally {
    for (const image of images) image.dispose();
  }
}

/** Trial images, as a vision model takes them and as a whole file does. */
export interface Trial {
  readonly inputs: VisionInputs;
  readonly feeds: Readonly<Record<string, Feed>>;
}

/** Trial images, and what a whole file computes of them. */
export interface Sample {
  readonly trial: VisionInputs;
  readonly features: Tensor;
}

/**
 * Trial images for a file whose inputs are told by {@link fileInputs}.
 * @param name of the session, for messages
 * @throws DesapError `ERR_GRAPH`
 */
export function fileTrials(session: InferenceSession, name: string, trials: readonly VisionInputs[]): Trial[] {
  const inputs = Object.entries(fileInputs(session, name));
  const feed = (tensor: TensorLike | undefined): [Feed] | [] => {
    if (tensor === undefined) return [];
    const { data, dims } = tensor;
    const type = types.isFloat32Array(data) ? 'float32' : types.isBigInt64Array(data) ? 'int64' : 'bool';
    return [{ type, data: data as Feed['data'], dims }];
  };
  return trials.map((given) => ({
    inputs: given,
    feeds: Object.fromEntries(inputs.flatMap(([name, part]) => feed(given[part]).map((own) => [name, own]))),
  }));
}

/**
 * Runs a whole file on trial images. It has to run the first of them; of the others those count that it runs, into as many rows
 * (encoders that take no videos fail on them).
 *
 * @param file its path, for messages
 * @param further outputs that are not the features
 * @throws DesapError `ERR_GRAPH` where ONNX Runtime does not run it
 */
export async function runTrials(
  session: InferenceSession,
  [first, ...others]: readonly Trial[],
  { file, ort, further = [] }: { readonly file: string; readonly ort: OrtModule; readonly further?: readonly string[] },
): Promise<[Sample, ...Sample[]]> {
  const output = session.outputNames.find((name) => !further.includes(name)) as string;
  const halves = new Set(
    session.inputMetadata.filter((input) => input.isTensor && input.type === 'float16').map(({ name }) => name),
  );
  const run = async ({ inputs: trial, feeds }: Trial) => {
    const fed = Object.entries(feeds).map(([name, { type, data, dims }]) => {
      if (halves.has(name))
        return [name, new ort.Tensor('float16', Uint16Array.from(data as Float32Array, floatToHalf), dims)];
      return [name, new ort.Tensor(type as 'float32', data as Float32Array, dims)];
    });
    const outputs = await session.run(Object.fromEntries(fed), TENTATIVE);
    return { trial, features: outputs[output] as Tensor };
  };
  const sample = await run(first).catch((cause: Error) => {
    throw new DesapError('ERR_GRAPH', `${file}: onnxruntime does not run it: ${cause.message}`, { cause });
  });
  const samples: [Sample, ...Sample[]] = [sample];
  for (const trial of others) {
    const other = await run(trial).catch(() => null);
    if (other !== null && unit(other) === unit(sample)) samples.push(other);
  }
  return samples;
}

/** What is compared, for messages. */
export interface Compared {
  /** Who is at fault. */
  readonly argument: string;
  /** The vision encoder's path. */
  readonly file: string;
  readonly wanted: string;
}

/**
 * Checks that a vision model computes what a whole file computes.
 *
 * @throws DesapError `ERR_HEAD_MISMATCH`; `ERR_GRAPH` where ONNX Runtime does not run what was read, or the features are not those of
 *   the visual tokens alone
 */
export async function confirmFeatures(
  vision: Pick<VisionModel, 'encode' | 'tolerance'>,
  samples: readonly Sample[],
  what: Compared,
): Promise<void> {
  for (const sample of samples) await compare(vision, sample, what);
}

/** Rows of pixels to a row of features. */
function unit({ trial, features: { dims } }: Sample): number {
  return (trial.pixelValues as TensorLike).dims[0] / dims[dims.length - 2];
}

async function compare(
  vision: Pick<VisionModel, 'encode' | 'tolerance'>,
  { trial, features }: Sample,
  { argument, file, wanted }: Compared,
): Promise<void> {
  const got = await allFeatures(vision, trial).catch((cause: Error) => {
    const text = `${file}: onnxruntime does not run what was read of it: ${cause.message}`;
    throw new DesapError('ERR_GRAPH', text, { cause });
  });
  const want = widened(floatData('image_features', features));
  const rows = want.length / features.dims[features.dims.length - 1];
  let [difference, magnitude] = [got.data.length === want.length ? 0 : Number.POSITIVE_INFINITY, 0];
  for (let i = 0; i < want.length; i++) {
    difference = Math.max(difference, Math.abs(got.data[i] - want[i]));
    magnitude = Math.max(magnitude, Math.abs(want[i]));
  }
  if (!(difference <= vision.tolerance * magnitude))
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `${argument}: got ${file}, whose features (${got.data.length} numbers) differ by ${difference.toExponential(1)} from those wanted (${want.length} numbers), wanted ${wanted}`,
    );
  if (rows !== got.tokens)
    throw new DesapError(
      'ERR_GRAPH',
      `${file}: got features of ${rows} rows for ${got.tokens} patches, the class token's too (vision_feature_select_strategy 'full'), wanted those of the patches only`,
    );
}
