import type { InferenceSession, Tensor } from 'onnxruntime-common';
import type { BlockWeights, OptionalBias } from '../../block-weights.js';
import type { Precision } from '../../devices/driver.js';
import type { Backend } from '../../devices/kernel-api.js';
import { DesapError } from '../../errors.js';
import type { Matrix64 } from '../../kernels/numeric.js';
import { rmsNorm } from '../../kernels/rms-norm.js';
import { rotated } from '../../kernels/saliency.js';
import { float32, type Tensor as Rows } from '../../tensor.js';
import {
  ATTENTION,
  BLOCK_OUTPUT,
  COS,
  FEATURES,
  HIDDEN,
  MAIN_FEATURES,
  ROWS,
  SIN,
  TASK_ROWS,
} from '../block-values.js';
import { type OrtModule, openGraph } from '../edit.js';
import type { BlockEncoder } from '../last-block.js';
import { throughTail } from '../split-encoder.js';
import { relativeError } from './compare.js';

/** What a file is compared on: inputs, and which rows of the hidden states are a sequence whose attention stays within. */
export interface BlockTrial {
  readonly feeds: Readonly<Record<string, TrialFeed>>;
  sequences(hidden: readonly number[]): readonly { readonly firstRow: number; readonly patches: number }[];
}

interface TrialFeed {
  readonly type: 'float32' | 'int64' | 'bool';
  readonly data: Float32Array | BigInt64Array | Uint8Array;
  readonly dims: readonly number[];
}

export interface ConfirmBlockOptions {
  /** Computes the attention from the weights. */
  readonly backend: Backend;
  readonly weights: BlockWeights;
  /** Inputs, or what makes them for a session of the encoder. */
  readonly trials: readonly BlockTrial[] | ((session: InferenceSession) => Promise<readonly BlockTrial[]>);
  /** The open connector; default: one of its own, which is closed again. */
  readonly connector?: InferenceSession;
  /** Session options of ONNX Runtime. */
  readonly session?: InferenceSession.SessionOptions;
}

/** Largest differences between a file and what was read of it, relative to the largest magnitude. */
export interface BlockConfirmation {
  /** The last attention behind its output projection: all rows of patches. */
  readonly attention: number;
  /** The features that the connector makes of the rows that end the block. */
  readonly features: number;
  /** What was allowed of both. */
  readonly tolerance: { readonly attention: number; readonly features: number };
  /** Whether the parts of {@link BlockEncoder.split} with the attention of each sequence make the features, too. */
  readonly splits: boolean;
}

/** What matrix products of a device round besides. */
const ROUNDING: Readonly<Record<Precision, number>> = { fp32: 0, fp16: 1e-2, bf16: 5e-2 };

/**
 * Runs a vision encoder on trial inputs, and compares
 * - its last attention with softmax(rot(Q) rot(K)^T / sqrt(dh)) V of each sequence, through `out`, from the weights and tables that were read
 *   (of trials behind the first, also that of all sequences as one);
 * - its features with what the connector makes of the rows that end its last block.
 *
 * A wrong weight, head count, scale or rotation shows, and so does a last block whose patches see a part of their image only.
 *
 * @throws DesapError `ERR_HEAD_MISMATCH` with the errors found; `ERR_GRAPH` when onnxruntime does not run it
 */
export async function confirmBlock(
  ort: OrtModule,
  encoder: BlockEncoder,
  { backend, weights, trials, connector, session }: ConfirmBlockOptions,
): Promise<BlockConfirmation> {
  const tolerance = {
    attention: Math.max(encoder.attentionTolerance, ROUNDING[backend.precision]),
    features: encoder.tolerance,
  };
  const whole = await openGraph(ort, encoder.trial, session);
  const behind = connector ?? (await openGraph(ort, encoder.connector, session));
  const tail = encoder.split && (await openGraph(ort, encoder.split.tail, session).catch(() => null));
  let [attention, features, splits] = [0, 0, tail !== null];
  try {
    const attempt = async ({ feeds, sequences }: BlockTrial) => {
      const outputs = await run(encoder, whole, tensors(ort, feeds));
      return { outputs, sequences: sequences(outputs[HIDDEN].dims) };
    };
    for (const [t, trial] of (typeof trials === 'function' ? await trials(whole) : trials).entries()) {
      // It has to run the first of them; encoders that take no videos fail on them.
      const made = await (t === 0 ? attempt(trial) : attempt(trial).catch(() => null));
      if (made === null) continue;
      const { outputs, sequences } = made;
      let apart = 0;
      for (const { firstRow, patches } of sequences)
        apart = Math.max(apart, await attentionError(backend, weights, outputs, firstRow, patches));
      // An export for one image a call has no mask: of several frames, which are no first trial, its patches see all.
      const isOne = t > 0 && sequences.length > 1 && apart > tolerance.attention;
      const patches = sequences.reduce((sum, one) => sum + one.patches, 0);
      const joined = isOne ? await attentionError(backend, weights, outputs, 0, patches) : apart;
      attention = Math.max(attention, Math.min(apart, joined));
      const given = Object.fromEntries(encoder.crossing.map((name) => [name, outputs[name]]));
      const rows = await run(encoder, behind, { ...given, [ROWS]: outputs[BLOCK_OUTPUT] });
      const wanted = outputs[encoder.packed ? MAIN_FEATURES : FEATURES];
      features = Math.max(features, relativeError(numbers(rows[TASK_ROWS]), numbers(wanted)));
      splits &&=
        tail !== null &&
        apart <= tolerance.attention &&
        (await splitError(ort, encoder, { tail, behind, outputs, wanted })) <= tolerance.features;
    }
  } finally {
    await Promise.all([whole.release(), tail?.release()]);
    if (connector === undefined) await behind.release();
  }
  const wrong = (what: string, error: number, most: number) =>
    new DesapError(
      'ERR_HEAD_MISMATCH',
      `${encoder.model.name}: got ${what} by ${error.toExponential(1)} relative to the largest, wanted at most ${most}`,
    );
  if (!(attention <= tolerance.attention))
    throw wrong(
      'a last attention that differs from that of its weights over each whole image (patches may see windows only, or be rotated otherwise than by halves)',
      attention,
      tolerance.attention,
    );
  if (!(features <= tolerance.features))
    throw wrong('features that differ from those of the connector alone', features, tolerance.features);
  return { attention, features, tolerance, splits };
}

const numbers = ({ data }: Tensor) => data as Float32Array;

function tensors(ort: OrtModule, feeds: BlockTrial['feeds']): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(feeds).map(([name, { type, data, dims }]) => [name, new ort.Tensor(type, data as never, dims)]),
  );
}

async function run(
  { model }: BlockEncoder,
  session: InferenceSession,
  feeds: Record<string, Tensor>,
): Promise<Record<string, Tensor>> {
  // A graph may have no use for an input of the file.
  const used = Object.fromEntries(Object.entries(feeds).filter(([name]) => session.inputNames.includes(name)));
  try {
    return (await session.run(used)) as Record<string, Tensor>;
  } catch (cause) {
    throw new DesapError(
      'ERR_GRAPH',
      `${model.name}: onnxruntime does not run a part of it on a trial image: ${(cause as Error).message}`,
      { cause },
    );
  }
}

/** How far the features lie from those of the file when tail, in two runs, and connector make them; infinite where one does not run. */
async function splitError(
  ort: OrtModule,
  encoder: BlockEncoder,
  parts: { tail: InferenceSession; behind: InferenceSession; outputs: Record<string, Tensor>; wanted: Tensor },
): Promise<number> {
  const { tail, behind, outputs, wanted } = parts;
  if (outputs[ATTENTION].dims.join() !== outputs[HIDDEN].dims.join()) return Number.POSITIVE_INFINITY;
  try {
    const { dims } = outputs[HIDDEN];
    const [hidden, attention] = [HIDDEN, ATTENTION].map((name) => numbers(outputs[name]).slice());
    const half = Math.ceil(attention.length / dims[dims.length - 1] / 2);
    await throughTail(ort, (feeds) => run(encoder, tail, feeds), { hidden, attention, dims }, half);
    const rows = new ort.Tensor('float32', attention, dims);
    const made = await run(encoder, behind, { ...outputs, [ROWS]: rows });
    return relativeError(numbers(made[TASK_ROWS]), numbers(wanted));
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}

/** How far the attention of one sequence lies from the file's. */
async function attentionError(
  backend: Backend,
  weights: BlockWeights,
  outputs: Readonly<Record<string, Tensor>>,
  firstRow: number,
  patches: number,
): Promise<number> {
  const { width, heads } = weights;
  const part = (name: string, cols: number) =>
    numbers(outputs[name]).slice(firstRow * cols, (firstRow + patches) * cols);
  const x = await normalized(backend, weights, float32(part(HIDDEN, width), [patches, width]));
  const project = ({ weight, bias }: OptionalBias, rows: Rows) =>
    backend.linear({ x: rows, weight: float32(weight, [width, width]), bias });
  const extent = width / heads;
  const tables = COS in outputs ? { cos: part(COS, extent), sin: part(SIN, extent) } : null;
  const turned = async (layer: OptionalBias) => {
    const rows = await project(layer, x);
    return tables === null ? rows : rounded(rotated(matrixOf(rows), heads, tables));
  };
  const [q, k, v] = [await turned(weights.q), await turned(weights.k), await project(weights.v, x)];
  const got = await project(weights.out, await backend.attention({ q, k, v, heads }));
  return relativeError(got.data as Float32Array, part(ATTENTION, width));
}

async function normalized(backend: Backend, { norm, norm1, epsilon, width }: BlockWeights, x: Rows): Promise<Rows> {
  const { weight, bias } = norm1;
  if (norm === 'layer') return backend.layerNorm({ x, weight, bias: bias ?? new Float32Array(width), epsilon });
  return rounded(rmsNorm(matrixOf(x), weight, epsilon));
}

const matrixOf = ({ data, dims: [rows, cols] }: Rows) => ({ data: data as Float32Array, rows, cols });
const rounded = ({ data, rows, cols }: Matrix64) => float32(Float32Array.from(data), [rows, cols]);
