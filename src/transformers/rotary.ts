import { mismatch } from '../errors.js';
import { type HookedModel, imageTokenId, type ModelInputs, type ModelTensor, make, videoTokenId } from './model.js';
import { mropePositions } from './mrope.js';

/** M-RoPE: positions on three axes, which Qwen-VL models count from the grids of their images and videos. */

/** A prompt with its positions [3, B, S], where the caller gave none: dropped tokens leave gaps in them. */
export function withRotaryPositions(model: HookedModel, inputs: ModelInputs): ModelInputs {
  if (!model.get_rope_index || inputs.position_ids) return inputs;
  const [position_ids, rope_deltas] = rotaryPositions(model, inputs);
  return { ...inputs, position_ids, rope_deltas };
}

/**
 * Positions [3, B, S] of a whole prompt, and what decoding adds to the cache's length, [B, 1].
 * @throws DesapError as {@link requireGrids}
 */
export function rotaryPositions(model: HookedModel, inputs: ModelInputs): [ModelTensor, ModelTensor] {
  requireGrids(model, inputs);
  const { input_ids, image_grid_thw, video_grid_thw, attention_mask } = inputs;
  return model.get_rope_index!(input_ids as ModelTensor, image_grid_thw, video_grid_thw, attention_mask);
}

/** What `get_rope_index` is not handed: the seconds between the frames of videos, by their grids. */
export class VideoSeconds {
  readonly #of = new WeakMap<ModelTensor, ArrayLike<number>>();

  /** Takes them from the inputs of a call. */
  note({ video_grid_thw, second_per_grid_ts }: ModelInputs): void {
    if (!video_grid_thw || !second_per_grid_ts) return;
    const seconds = Array.isArray(second_per_grid_ts) ? second_per_grid_ts : (second_per_grid_ts as ModelTensor).data;
    this.#of.set(video_grid_thw, Array.from(seconds as ArrayLike<number>, Number));
  }

  of(grids: ModelTensor): ArrayLike<number> | undefined {
    return this.#of.get(grids);
  }
}

/**
 * A model's `get_rope_index` with videos as Hugging Face counts them: its own counts a video's frames one apart whatever the seconds
 * between them are, goes on behind the last frame rather than behind the longest side, and knows no video that is split by frames.
 */
export function ropeIndex(
  { config }: HookedModel,
  own: NonNullable<HookedModel['get_rope_index']>,
  seconds: VideoSeconds,
): NonNullable<HookedModel['get_rope_index']> {
  return (ids, images, videos, mask) => {
    if (!videos) return own(ids, images, videos, mask);
    const { spatial_merge_size: merge = 2, tokens_per_second: tokensPerSecond } = config.vision_config ?? {};
    const { positions, deltas } = mropePositions({
      ids: ids.data as BigInt64Array,
      dims: ids.dims,
      mask: (mask?.data as BigInt64Array | undefined) ?? null,
      image: { token: imageTokenId({ config }), grids: gridsOf(images) },
      video: { token: videoTokenId({ config }), grids: gridsOf(videos) },
      ...{ merge, tokensPerSecond, seconds: seconds.of(videos) },
    });
    return [make(ids, positions, [3, ...ids.dims]), make(ids, deltas, [deltas.length, 1])];
  };
}

function gridsOf(tensor: ModelTensor | null | undefined): number[][] {
  if (!tensor) return [];
  const data = Array.from(tensor.data as BigInt64Array, Number);
  return Array.from({ length: data.length / 3 }, (_, i) => data.slice(3 * i, 3 * i + 3));
}

/**
 * Checks that each image and each video of a prompt has its grid, as the model's own code takes for granted.
 * @throws DesapError `ERR_VALUE`
 */
export function requireGrids(model: HookedModel, inputs: ModelInputs): void {
  const { input_ids, image_grid_thw, video_grid_thw, position_ids } = inputs;
  // Without any grid all tokens count as text.
  if (!model.get_rope_index || position_ids || !input_ids || !(image_grid_thw || video_grid_thw)) return;
  const { image_token_id, video_token_id } = model.config;
  requireGrid('image_grid_thw', image_grid_thw, begun(model, inputs, image_token_id), 'image');
  // Where a video is split, each of its frames begins anew.
  if (!video_grid_thw) requireGrid('video_grid_thw', video_grid_thw, begun(model, inputs, video_token_id), 'video');
}

function requireGrid(argument: string, grids: ModelTensor | null | undefined, count: number, of: string): void {
  const given = grids?.dims[0] ?? 0;
  if (given < count)
    throw mismatch('ERR_VALUE', argument, `grids for ${given}`, `grids for ${count}, one for each ${of} of the prompt`);
}

/** How many vision parts of the prompts begin with a token. */
function begun({ config }: HookedModel, { input_ids, attention_mask }: ModelInputs, token: number | undefined): number {
  const { data, dims } = input_ids as ModelTensor;
  const [rows, columns] = dims;
  const mask = attention_mask?.data.length === data.length ? attention_mask.data : null;
  let count = 0;
  for (let row = 0; row < rows; row++) {
    const attended = [...data.keys()].slice(row * columns, (row + 1) * columns).filter((i) => mask?.[i] !== 0n);
    const ids = attended.map((i) => Number(data[i]));
    count += ids.filter((id, i) => id === config.vision_start_token_id && ids[i + 1] === token).length;
  }
  return count;
}

/** `rope_deltas` behind a prompt that has lost tokens: what decoding adds to the length of its cache. */
export function behindDropped(deltas: ModelTensor | null | undefined, lost: number): ModelTensor | null | undefined {
  if (!deltas) return deltas;
  const data = (deltas.data as BigInt64Array).map((delta) => delta + BigInt(lost));
  return make(deltas, data, deltas.dims);
}
