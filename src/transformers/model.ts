import { types } from 'node:util';
import type { InferenceSession } from 'onnxruntime-common';
import { DesapError, invalid } from '../errors.js';
import { reading } from '../options.js';
import type { ModelConfig as VisionConfig } from '../vision/model-folder.js';

/** A tensor of Transformers.js, as far as it is used here. */
export interface ModelTensor {
  readonly type: string;
  readonly dims: readonly number[];
  readonly data: Float32Array | Uint16Array | BigInt64Array | Uint8Array;
}

/** The Tensor class of the Transformers.js that the user's model came from. */
export type ModelTensorClass = new (type: string, data: ModelTensor['data'], dims: readonly number[]) => ModelTensor;

/** What travels through `generate()`, and what a direct call is given. */
export interface ModelInputs {
  input_ids?: ModelTensor;
  attention_mask?: ModelTensor | null;
  pixel_values?: ModelTensor | null;
  /** Tiles of padding, rows of padding: Idefics3, LFM2-VL. */
  pixel_attention_mask?: ModelTensor | null;
  /** LFM2-VL: the grid of each tile. */
  spatial_shapes?: ModelTensor | null;
  /** Phi-3.5-vision: height and width of the pixels that each image's crops make. */
  image_sizes?: ModelTensor | null;
  image_grid_thw?: ModelTensor | null;
  pixel_values_videos?: ModelTensor | null;
  video_grid_thw?: ModelTensor | null;
  /** Qwen2.5-VL: seconds from frame to frame, of each video. */
  second_per_grid_ts?: ModelTensor | readonly number[] | null;
  position_ids?: ModelTensor | null;
  inputs_embeds?: ModelTensor | null;
  past_key_values?: ModelCache | null;
  rope_deltas?: ModelTensor | null;
  /** Options of this package: the user's at first, then one call's state. */
  desap?: unknown;
}

/** A DynamicCache. */
export interface ModelCache {
  get_seq_length(): number;
}

/** An ONNX Runtime session as Transformers.js keeps it. */
export type ModelSession = InferenceSession & { config?: { dtype?: string; device?: string } };

/** What is read of the `config.json` of a language model with images. */
interface ModelConfig extends VisionConfig {
  readonly image_token_index?: number;
  readonly image_token_id?: number;
  readonly video_token_id?: number;
  readonly vision_start_token_id?: number;
  readonly _name_or_path?: string;
  /** What Transformers.js makes of it. */
  readonly normalized_config: { readonly hidden_size: number };
}

/** A loaded vision-language model of Transformers.js: what `from_pretrained` returns. */
export interface LoadedModel {
  readonly config: object;
  readonly sessions: object;
}

/** The same with the parts that are hooked; {@link requireModel} and {@link requireSessions} check that they are there. */
export interface HookedModel {
  readonly config: ModelConfig;
  readonly sessions: { vision_encoder: ModelSession } & Record<SessionName, ModelSession>;
  forward_params: string[];
  forward(inputs: ModelInputs): Promise<unknown>;
  generate(options: Record<string, unknown>): Promise<unknown>;
  /** Of classes with the session `embed_tokens`. */
  encode_text?(inputs: { input_ids: ModelTensor }): Promise<ModelTensor>;
  prepare_inputs_for_generation(ids: unknown, inputs: ModelInputs, config: unknown): ModelInputs;
  _update_model_kwargs_for_generation(step: { model_inputs: ModelInputs }): ModelInputs;
  /** Qwen-VL only: M-RoPE positions [3, B, S] and what decoding adds to the cache's length, [B, 1]. */
  get_rope_index?(
    ids: ModelTensor,
    images: ModelTensor | null | undefined,
    videos: ModelTensor | null | undefined,
    mask: ModelTensor | null | undefined,
  ): [ModelTensor, ModelTensor];
}

/** What classes call the session that makes rows of ids, and that of the decoder. */
const APART = { rows: 'embed_tokens', decoder: 'decoder_model_merged' } as const;
/** Phi-3.5-vision: one graph makes rows of ids and puts those of visual tokens, which negative ids stand for, between them. */
const JOINT = { rows: 'prepare_inputs_embeds', decoder: 'model' } as const;
type SessionName = (typeof APART | typeof JOINT)['rows' | 'decoder'];

/** Whether rows of ids and of visual tokens come from one graph. */
export function isJoint({ sessions }: Pick<HookedModel, 'sessions'>): boolean {
  return sessions.prepare_inputs_embeds !== undefined;
}

/** The names of the language model's sessions. */
export function sessionNames(model: Pick<HookedModel, 'sessions'>): Readonly<Record<'rows' | 'decoder', SessionName>> {
  return isJoint(model) ? JOINT : APART;
}

/** The language model behind the embeddings. */
export function decoderOf(model: Pick<HookedModel, 'sessions'>): ModelSession {
  return model.sessions[sessionNames(model).decoder];
}

const METHODS = [
  'forward',
  'generate',
  'prepare_inputs_for_generation',
  '_update_model_kwargs_for_generation',
] as const;

/**
 * Inputs of a decoder that stay right when tokens are dropped: states of convolutions and of linear attention have no token axis.
 * Anything else could be per token.
 */
const DECODER_INPUT =
  /^(inputs_embeds|attention_mask|position_ids|num_logits_to_keep|use_cache_branch|past_(key_values|conv|recurrent)\..+)$/;

/**
 * Checks that a model has the methods that pruning hooks into.
 * @throws DesapError `ERR_VALUE` when it is no such model
 */
export function requireModel(model: LoadedModel): HookedModel {
  const isModel = (typeof model === 'object' || typeof model === 'function') && model !== null;
  const given = model as Partial<HookedModel>;
  const has = (name: keyof HookedModel) => typeof given[name] === 'function';
  const isWhole = () =>
    isModel &&
    Boolean(given.config && given.sessions) &&
    METHODS.every(has) &&
    (isJoint(given as HookedModel) || has('encode_text'));
  if (reading('model', isWhole)) return given as HookedModel;
  throw invalid('ERR_VALUE', 'model', model, 'a loaded image-text-to-text model of Transformers.js');
}

/**
 * Checks that a model has the sessions that pruning runs, and a decoder that it would not break.
 * @throws DesapError `ERR_VALUE` when one is missing; `ERR_GRAPH` for a decoder input of unknown meaning
 */
export function requireSessions(model: HookedModel): void {
  const { sessions } = model;
  const { rows, decoder } = sessionNames(model);
  for (const name of ['vision_encoder', rows, decoder] as const)
    if (typeof sessions[name]?.run !== 'function')
      throw invalid('ERR_VALUE', `model.sessions.${name}`, sessions[name], 'a session; load the model with its images');
  const further = furtherOutputs(sessions.vision_encoder);
  const unknown = sessions[decoder].inputNames.filter((name) => !DECODER_INPUT.test(name) && !further.includes(name));
  if (unknown.length > 0)
    throw new DesapError(
      'ERR_GRAPH',
      `model.sessions.${decoder}: got the inputs ${unknown.join(', ')}, wanted none that may hold one entry for each token: desap cannot shorten inputs that it does not know`,
    );
}

/** The output that Transformers.js reads. */
export const IMAGE_FEATURES = 'image_features';

/** Outputs of a vision encoder besides the features; a decoder may take rows of kept tokens by these names. */
export function furtherOutputs({ outputNames }: ModelSession): string[] {
  return outputNames.includes(IMAGE_FEATURES) ? outputNames.filter((name) => name !== IMAGE_FEATURES) : [];
}

/**
 * The id that stands for one visual token in a prompt.
 * @throws DesapError `ERR_VALUE`
 */
export function imageTokenId({ config }: Pick<HookedModel, 'config'>): bigint {
  const id = config.image_token_index ?? config.image_token_id;
  if (Number.isInteger(id)) return BigInt(id as number);
  throw invalid('ERR_VALUE', 'model.config.image_token_id', id, 'the id of the image token');
}

/** The id that stands for one visual token of a video; null for a model without videos. */
export function videoTokenId({ config }: Pick<HookedModel, 'config'>): bigint | null {
  return config.video_token_id === undefined ? null : BigInt(config.video_token_id);
}

/** A tensor of the class that another one has. */
export function make(like: ModelTensor, data: ModelTensor['data'], dims: readonly number[]): ModelTensor {
  const TensorClass = like.constructor as unknown as ModelTensorClass;
  const type = types.isBigInt64Array(data) ? 'int64' : types.isFloat32Array(data) ? 'float32' : 'float16';
  return new TensorClass(type, data, dims);
}
