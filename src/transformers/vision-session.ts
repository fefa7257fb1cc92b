import type { Tensor } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import type { OrtModule } from '../onnx/edit.js';
import { floatToHalf } from '../tensor.js';
import type { ModelSession } from './model.js';

/** How far the parts of a vision encoder may lie from the whole, relative to the largest magnitude: rounding of float32. */
const TOLERANCE = 1e-3;

/** Marks sessions made here, so that a model is not attached to twice. */
const STAND_IN = Symbol('desap.stand-in');

/** Whether a session was made by {@link standIn}. */
export function isStandIn(session: ModelSession): boolean {
  return STAND_IN in session;
}

/** Whether it was released, as `model.dispose()` does. */
export function isReleased(session: ModelSession): boolean {
  return (session as { [STAND_IN]?: { released: boolean } })[STAND_IN]?.released === true;
}

/**
 * An object with the face of the model's vision session, which was opened in parts instead. What the model calls without
 * pruning (`keep: 'all'`, `encode_image`) still gets what the plain session gave.
 *
 * @param encode features of all tokens, row-major, by the feeds of the plain session
 */
export function standIn(
  plain: ModelSession,
  { like, encode, release }: { like: FeatureForm; encode: Encode; release: () => Promise<void> },
): ModelSession {
  const { inputNames, outputNames, inputMetadata, outputMetadata, config } = plain;
  const state = { released: false };
  const face = {
    [STAND_IN]: state,
    ...{ inputNames, outputNames, inputMetadata, outputMetadata, config },
    release: async () => {
      if (state.released) return;
      state.released = true;
      await release();
    },
    run: async (feeds: Record<string, Tensor>) => ({ [IMAGE_FEATURES]: like.tensor(await encode(feeds)) }),
  };
  return face as unknown as ModelSession;
}

/** The output that Transformers.js reads. */
const IMAGE_FEATURES = 'image_features';

type Encode = (feeds: Record<string, Tensor>) => Promise<{ data: Float32Array; images: number }>;

/** Type and rank of a plain session's features. */
export class FeatureForm {
  constructor(
    private readonly ort: OrtModule,
    private readonly sample: Tensor,
  ) {}

  /** Features of some images as such a tensor. */
  tensor({ data, images }: { data: Float32Array; images: number }): Tensor {
    const { type, dims } = this.sample;
    const width = dims[dims.length - 1];
    const rows = data.length / width;
    const shape = dims.length === 3 ? [images, rows / images, width] : [rows, width];
    return type === 'float16'
      ? new this.ort.Tensor('float16', Uint16Array.from(data, floatToHalf), shape)
      : new this.ort.Tensor('float32', data, shape);
  }
}

/** What is compared, for tolerances and messages. */
export interface Compared {
  readonly file: string;
  /** How far both may lie apart, relative to the largest magnitude; default: what float32 rounds. */
  readonly tolerance?: number;
  /** What else the file is taken to have. */
  readonly reading?: string;
}

/**
 * Checks on one image that parts of a vision encoder compute what the loaded session computes.
 * @throws DesapError `ERR_HEAD_MISMATCH`
 */
export function requireSame(
  got: Float32Array,
  want: Float32Array,
  { file, tolerance = TOLERANCE, reading = '' }: Compared,
): void {
  let [difference, magnitude] = [got.length === want.length ? 0 : Number.POSITIVE_INFINITY, 0];
  for (let i = 0; i < want.length; i++) {
    difference = Math.max(difference, Math.abs(got[i] - want[i]));
    magnitude = Math.max(magnitude, Math.abs(want[i]));
  }
  if (difference <= tolerance * magnitude) return;
  throw new DesapError(
    'ERR_HEAD_MISMATCH',
    `options.model: got ${file}, whose features (${got.length} numbers) differ by ${difference.toExponential(1)} from those of the loaded model (${want.length} numbers), wanted the file that the model was loaded from${reading}`,
  );
}
