/** Rows of a loaded model's embedding table, from whichever graph its class has for them. */
import { Tensor } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import type { OrtModule } from '../onnx/edit.js';
import { relativeError } from '../onnx/head/compare.js';
import { loadOrt } from '../ort.js';
import { floatData, widened } from '../tensor.js';
import { waves } from '../vision/trial.js';
import { type HookedModel, isJoint, type ModelTensor, make, sessionNames } from './model.js';

/** The user's own ONNX Runtime, and the element type of the language model's input. */
export interface ModelRuntime {
  readonly ort: OrtModule;
  /** Rows of the embedding table for some ids, [1, n, W]. */
  embed(ids: readonly number[]): Promise<Tensor>;
}

/**
 * The ONNX Runtime that the model's sessions run on: the session class is that of a session, and the tensor class that of
 * what a session returns (a package tree can hold several copies of both).
 */
export async function modelRuntime(model: HookedModel): Promise<ModelRuntime> {
  const embed = (ids: readonly number[]) => embedWords(model, ids);
  const session = model.sessions[sessionNames(model).rows];
  const InferenceSession = session.constructor as unknown as OrtModule['InferenceSession'];
  if (typeof InferenceSession.create !== 'function') return { ort: await loadOrt(), embed };
  const output = await embed([0]);
  return { ort: { InferenceSession, Tensor: output.constructor as OrtModule['Tensor'] }, embed };
}

/**
 * Rows [B, S, W] of a prompt's ids; what those of visual tokens are is left open, since features are written over them.
 * @param ids [B, S]
 */
export async function embedText(model: HookedModel, ids: ModelTensor): Promise<ModelTensor> {
  if (!isJoint(model)) return (model.encode_text as NonNullable<HookedModel['encode_text']>)({ input_ids: ids });
  const rows = await rowsOf(
    model,
    (ids.data as BigInt64Array).map((id) => (id < 0n ? 0n : id)),
    ids.dims,
  );
  return make(ids, rows.data as ModelTensor['data'], rows.dims);
}

/** Rows of the embedding table for ids that stand for no visual tokens, [1, n, W]. */
export function embedWords(model: HookedModel, ids: readonly number[]): Promise<Tensor> {
  return rowsOf(model, BigInt64Array.from(ids, BigInt), [1, ids.length]);
}

/** Rows of ids that stand for no visual tokens, as the session hands them out. */
async function rowsOf(model: HookedModel, ids: BigInt64Array, dims: readonly number[]): Promise<Tensor> {
  const session = model.sessions[sessionNames(model).rows];
  const fed = new Tensor('int64', ids, dims);
  const feeds = isJoint(model)
    ? { input_ids: fed, image_features: features(model, new Float32Array(0)) }
    : { [session.inputNames[0]]: fed };
  return (await session.run(feeds))[session.outputNames[0]] as Tensor;
}

/** Rows of visual tokens as Transformers.js gives them to a joint graph, also where there are none. */
function features({ config }: HookedModel, data: Float32Array): Tensor {
  const width = config.normalized_config.hidden_size;
  return new Tensor('float32', data, [data.length / width, width]);
}

/** Two words, and two visual tokens between: as few as no image has. */
const TRIAL = [0n, -1n, -32044n, 1n];
/** What float16 rounds. */
const HALF = 1e-3;

/**
 * Checks that a joint graph puts features in the places of negative ids and does nothing else with them, however few they are: rows of a
 * shortened prompt can then be put together here.
 * @throws DesapError `ERR_GRAPH`
 */
export async function confirmPlacing(model: HookedModel): Promise<void> {
  if (!isJoint(model)) return;
  const name = `model.sessions.${sessionNames(model).rows}`;
  const width = model.config.normalized_config.hidden_size;
  const two = waves(2 * width);
  const session = model.sessions.prepare_inputs_embeds;
  const run = async () => {
    const words = widened(floatData(name, await rowsOf(model, BigInt64Array.of(0n, 1n), [1, 2])));
    const { [session.outputNames[0]]: placed } = await session.run({
      input_ids: new Tensor('int64', BigInt64Array.from(TRIAL), [1, TRIAL.length]),
      image_features: features(model, two),
    });
    return { words, placed: widened(floatData(name, placed as Tensor)) };
  };
  const { words, placed } = await run().catch((cause: Error) => {
    throw new DesapError('ERR_GRAPH', `${name}: onnxruntime does not run it: ${cause.message}`, { cause });
  });
  const wanted = Float32Array.from([...words.subarray(0, width), ...two, ...words.subarray(width)]);
  if (relativeError(placed, wanted) <= HALF) return;
  throw new DesapError(
    'ERR_GRAPH',
    `${name}: got other rows for two visual tokens between words, wanted their features as they are, in the places of negative ids`,
  );
}
