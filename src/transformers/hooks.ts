import { invalid, mismatch } from '../errors.js';
import { columnsOf, dropped, type Layout, pickColumns, slotsOf } from './cache-map.js';
import { type HookedModel, imageTokenId, type ModelCache, type ModelInputs, type ModelTensor } from './model.js';
import { type CallOptions, callOptions } from './options.js';
import { type Attached, make, originalPositions, prefill } from './prefill.js';

/** One call of `generate()`: its options, and what its cache holds. It travels through the loop among the model's inputs. */
class Run {
  layout: Layout | null = null;
  constructor(readonly options: CallOptions) {}
}

/** The name under which options and state travel. */
const KEY = 'desap';

/** Own properties for a model instance that let it prune. */
export type Hooks = Pick<
  HookedModel,
  'forward_params' | 'forward' | 'generate' | 'prepare_inputs_for_generation' | '_update_model_kwargs_for_generation'
>;

/**
 * The methods that an attached model has in place of its own. Each does its part and calls the original one.
 *
 * @param own the original methods, bound to the model
 */
export function pruningHooks(attached: Attached, own: Hooks, defaults: CallOptions): Hooks {
  const { model } = attached;
  /**
   * Where the slots of key and value tensors come from. Tensors are the keys, not caches: a caller may put them into a cache of their own.
   */
  const layouts = new WeakMap<object, Layout>();
  const layoutOf = (cache: ModelCache | null | undefined) => {
    const [first] = cache ? tensorsOf(cache, 'past_key_values') : [];
    return (first && layouts.get(first)) ?? null;
  };
  const forward = async (inputs: ModelInputs, layout: Layout | null) => {
    const outputs = await own.forward(inputs);
    if (layout) for (const tensor of tensorsOf(outputs as object, 'present')) layouts.set(tensor, layout);
    return outputs;
  };

  return {
    forward_params: [...own.forward_params, KEY],

    generate: async ({ [KEY]: given, ...rest }) =>
      own.generate({ ...rest, [KEY]: new Run(callOptions(model, defaults, given)) }),

    prepare_inputs_for_generation(ids, inputs, config) {
      const { [KEY]: run, past_key_values } = inputs;
      const before = run instanceof Run && run.layout === null ? layoutOf(past_key_values) : null;
      if (run instanceof Run && before) {
        Object.assign(inputs, continued(model, inputs, before, run.options));
        run.layout = before;
      }
      return own.prepare_inputs_for_generation(ids, inputs, config);
    },

    async forward(call) {
      const { [KEY]: given, ...rest } = call;
      const run = given instanceof Run ? given : null;
      const options = run?.options ?? callOptions(model, defaults, given);
      const before = run ? run.layout : layoutOf(rest.past_key_values);
      let inputs: ModelInputs = !run && before ? continued(model, rest, before, options) : rest;
      const { pixel_values, inputs_embeds, input_ids } = inputs;
      if (options.keep === 'all' || !pixel_values || inputs_embeds || !input_ids || input_ids.dims[1] === 1) {
        // Where this input is there, even as null, a cached step sees all of the cache, padding too.
        const isShort = before !== null && !pixel_values;
        return forward(isShort ? { ...inputs, pixel_values: undefined } : inputs, before);
      }
      inputs = withRotaryPositions(model, inputs);
      const short = await prefill(attached, inputs, options, before);
      if (run) {
        // The object that forward was given goes on through the loop; a caller's own one never gets here.
        run.layout = short.layout;
        const lost = input_ids.dims[1] - (short.inputs.inputs_embeds as ModelTensor).dims[1];
        Object.assign(call, {
          attention_mask: short.inputs.attention_mask,
          pixel_values: undefined,
          rope_deltas: plus(inputs.rope_deltas, lost),
        });
      }
      return forward({ ...inputs, ...short.inputs, pixel_values: undefined }, short.layout);
    },

    _update_model_kwargs_for_generation(step) {
      const inputs = own._update_model_kwargs_for_generation(step);
      const { [KEY]: run } = inputs;
      if (run instanceof Run && run.layout && run.options.positions === 'original' && !model.get_rope_index)
        inputs.position_ids = nextPositions(inputs, run.layout);
      return inputs;
    },
  };
}

/** The tensors whose names begin like this. */
function tensorsOf(tensors: object, prefix: string): object[] {
  return Object.entries(tensors).flatMap(([name, tensor]) => (name.startsWith(prefix) ? [tensor as object] : []));
}

/**
 * The inputs of a call that goes on with a shortened cache: only what the cache does not hold, and the mask that fits it.
 * The caller gives the whole sequence, or new tokens with a mask for all.
 *
 * @throws DesapError `ERR_SHAPE`, `ERR_VALUE` when the ids are not those of the cached prompt and more
 */
function continued(model: HookedModel, inputs: ModelInputs, before: Layout, options: CallOptions): ModelInputs {
  const ids = inputs.input_ids as ModelTensor;
  const [rows, given] = ids.dims;
  const past = (inputs.past_key_values as ModelCache).get_seq_length();
  const done = columnsOf(before, past);
  const masked = inputs.attention_mask?.dims[1];
  const isOriginal = options.positions === 'original' && !model.get_rope_index;
  if (masked === past + given) {
    // The caller counts as the cache does.
    if (!isOriginal || inputs.position_ids) return inputs;
    return { ...inputs, position_ids: make(ids, originalPositions(inputs, past, before), [rows, given]) };
  }
  const isWhole = given > done && dropsOnly(ids, before, imageTokenId(model));
  const isRest = masked === done + given && !model.get_rope_index;
  if (rows !== before.slots.length || !(isWhole || isRest))
    throw mismatch(
      'ERR_SHAPE',
      'input_ids',
      `[${ids.dims.join(', ')}]`,
      `the whole sequence: the ${done} tokens that past_key_values was made from (its prompt was pruned), and more`,
    );
  const columns = isWhole ? given : done + given;
  const fresh = Int32Array.from({ length: columns - done }, (_, i) => done + i);
  const slots = before.slots.map((_, row) => Int32Array.from([...slotsOf(before, row, past), ...fresh]));
  const picks = before.slots.map(() => fresh);
  const mask = (inputs.attention_mask?.data as BigInt64Array | undefined) ?? new BigInt64Array(rows * columns).fill(1n);
  if (mask.length !== rows * columns)
    throw mismatch('ERR_SHAPE', 'attention_mask', `${mask.length} elements`, `${rows * columns}, one per token so far`);
  const own = isWhole ? pickColumns(ids.data as BigInt64Array, columns, picks, 0n) : (ids.data as BigInt64Array);
  const next: ModelInputs = {
    ...inputs,
    input_ids: make(ids, own, [rows, fresh.length]),
    attention_mask: make(ids, pickColumns(mask, columns, slots, 0n), [rows, past + fresh.length]),
  };
  const hasImages = own.includes(imageTokenId(model));
  if (!hasImages) next.pixel_values = undefined;
  if (model.get_rope_index) {
    if (hasImages)
      throw mismatch('ERR_VALUE', 'pixel_values', 'an image behind a pruned cache', 'images in the first turn');
    if (!inputs.image_grid_thw)
      throw invalid('ERR_VALUE', 'image_grid_thw', inputs.image_grid_thw, 'the grids of the images of the first turn');
    const [positions, deltas] = model.get_rope_index(ids, inputs.image_grid_thw, undefined, inputs.attention_mask);
    const places = pickColumns(positions.data as BigInt64Array, columns, picks, 1n);
    next.position_ids = make(ids, places, [3, rows, fresh.length]);
    next.rope_deltas = plus(deltas, columns - past - fresh.length);
  } else if (isOriginal) {
    next.position_ids = make(ids, originalPositions(next, past, before), [rows, fresh.length]);
  }
  return next;
}

/** Whether what a layout dropped is image tokens in these ids too. */
function dropsOnly(ids: ModelTensor, { slots, columns: covered }: Layout, token: bigint): boolean {
  const [, columns] = ids.dims;
  return slots.every((row, r) => {
    const kept = new Set(row);
    for (let column = 0; column < covered; column++)
      if (!kept.has(column) && (ids.data as BigInt64Array)[r * columns + column] !== token) return false;
    return true;
  });
}

/** M-RoPE positions of the whole prompt where the caller gave none: dropped tokens leave gaps in them. */
function withRotaryPositions(model: HookedModel, inputs: ModelInputs): ModelInputs {
  if (!model.get_rope_index || inputs.position_ids) return inputs;
  const { input_ids, image_grid_thw, attention_mask } = inputs;
  const [position_ids, rope_deltas] = model.get_rope_index(
    input_ids as ModelTensor,
    image_grid_thw,
    undefined,
    attention_mask,
  );
  return { ...inputs, position_ids, rope_deltas };
}

/** Adds the tokens that a cache lacks to what decoding adds to its length. */
function plus(deltas: ModelTensor | null | undefined, lost: number): ModelTensor | null | undefined {
  return (
    deltas &&
    make(
      deltas,
      (deltas.data as BigInt64Array).map((delta) => delta + BigInt(lost)),
      deltas.dims,
    )
  );
}

/** The original place of the next token of each sequence, [B, 1]. */
function nextPositions({ attention_mask }: ModelInputs, layout: Layout): ModelTensor {
  const mask = attention_mask as ModelTensor;
  const [rows, columns] = mask.dims;
  const data = BigInt64Array.from({ length: rows }, (_, row) => {
    const attended = (mask.data as BigInt64Array).subarray(row * columns, (row + 1) * columns);
    return attended.reduce((sum, bit) => sum + bit, BigInt(dropped(layout, row) - 1));
  });
  return make(mask, data, [rows, 1]);
}
