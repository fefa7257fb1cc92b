import { checkAborted } from '../abort.js';
import type { CacheMap } from './cache-map.js';
import { continued, nextPositions } from './continue.js';
import type { HookedModel, ModelCache, ModelInputs, ModelTensor } from './model.js';
import { type CallOptions, callOptions } from './options.js';
import { type Prefill, prefill } from './prefill.js';
import type { Attached } from './prompt-images.js';
import { behindDropped, requireGrids, ropeIndex, VideoSeconds, withRotaryPositions } from './rotary.js';

/** Own properties for a model instance that let it prune. */
export type Hooks = Pick<
  HookedModel,
  | 'forward_params'
  | 'forward'
  | 'generate'
  | 'prepare_inputs_for_generation'
  | '_update_model_kwargs_for_generation'
  | 'get_rope_index'
>;

/** The name under which options and state travel among the model's inputs. */
const KEY = 'desap';

/** What Transformers.js does not take along by itself. */
const VIDEO_INPUTS = ['pixel_values_videos', 'video_grid_thw', 'second_per_grid_ts'];
/** All tokens need no question, and leave nothing to choose. */
const ALL = { taskShare: 0, complement: 'saliency', distances: undefined } as const;
/** What goes no further once it is encoded. */
const ENCODED = { pixel_values: undefined, pixel_values_videos: undefined } as const;

/** One call of `generate()`: its options, and what its cache holds. It travels through the loop. */
class Run {
  map: CacheMap | null = null;
  constructor(readonly options: CallOptions) {}
}

/** One call of `forward()`: a step of a run, or a call of the user's own. */
interface Call {
  readonly inputs: ModelInputs;
  readonly options: CallOptions;
  /** What the cache that came with it holds; null for all columns so far. */
  readonly map: CacheMap | null;
}

/**
 * The methods that an attached model has in place of its own, in the order in which a generation runs them. Each does its part and
 * calls the original one.
 *
 * @param own the original methods, bound to the model
 */
export function pruningHooks(attached: Attached, own: Hooks, defaults: CallOptions): Hooks {
  const { model } = attached;
  const maps = new CacheMaps();
  const seconds = new VideoSeconds();

  /** A call of the user's own goes on with the cache that it brings. */
  const directCall = (inputs: ModelInputs, desap: unknown): Call => {
    const options = callOptions(model, defaults, desap);
    const map = maps.of(inputs.past_key_values);
    return { inputs: map ? continued(model, inputs, map, options) : inputs, options, map };
  };

  const forward = async (inputs: ModelInputs, map: CacheMap | null) => {
    const outputs = await own.forward(inputs);
    if (map) maps.record(outputs as object, map);
    return outputs;
  };

  return {
    forward_params: [...own.forward_params, ...(own.get_rope_index ? VIDEO_INPUTS : []), KEY],

    generate: async ({ [KEY]: desap, ...rest }) => {
      seconds.note(rest);
      return own.generate({ ...rest, [KEY]: new Run(callOptions(model, defaults, desap)) });
    },

    get_rope_index: own.get_rope_index && ropeIndex(model, own.get_rope_index, seconds),

    prepare_inputs_for_generation(ids, inputs, config) {
      const { [KEY]: run, past_key_values } = inputs;
      if (run instanceof Run && run.map === null) {
        run.map = maps.of(past_key_values);
        if (run.map) Object.assign(inputs, continued(model, inputs, run.map, run.options));
      }
      requireGrids(model, inputs);
      return own.prepare_inputs_for_generation(ids, inputs, config);
    },

    async forward(given) {
      checkAborted();
      const { [KEY]: desap, ...inputs } = given;
      seconds.note(inputs);
      const run = desap instanceof Run ? desap : null;
      const call = run ? { inputs, options: run.options, map: run.map } : directCall(inputs, desap);
      if (!prunes(call, attached)) return forward(plainInputs(call), call.map);
      const whole = withRotaryPositions(model, call.inputs);
      const options = call.options.keep === 'all' ? { ...call.options, ...ALL } : call.options;
      const short = await prefill(attached, whole, options, call.map);
      if (run) goOn(run, given, whole, short);
      return forward({ ...whole, ...short.inputs, ...ENCODED }, short.map);
    },

    _update_model_kwargs_for_generation(step) {
      const inputs = own._update_model_kwargs_for_generation(step);
      const { [KEY]: run } = inputs;
      if (run instanceof Run && run.map && run.options.positions === 'original' && !model.get_rope_index)
        inputs.position_ids = nextPositions(inputs, run.map);
      return inputs;
    },
  };
}

/** Which columns the key and value tensors hold. Tensors are the keys, not caches: a caller may put them into a cache of their own. */
class CacheMaps {
  readonly #maps = new WeakMap<object, CacheMap>();

  of(cache: ModelCache | null | undefined): CacheMap | null {
    const [first] = cache ? tensorsOf(cache, 'past_key_values') : [];
    return (first && this.#maps.get(first)) ?? null;
  }

  record(outputs: object, map: CacheMap): void {
    for (const tensor of tensorsOf(outputs, 'present')) this.#maps.set(tensor, map);
  }
}

/** The tensors whose names begin like this. */
function tensorsOf(tensors: object, prefix: string): object[] {
  return Object.entries(tensors).flatMap(([name, tensor]) => (name.startsWith(prefix) ? [tensor as object] : []));
}

/**
 * Whether a call is a prompt with images that are to be pruned; or with what the model itself does not encode: videos, and what a decoder
 * takes of visual tokens besides their features.
 */
function prunes({ inputs, options }: Call, { further }: Attached): boolean {
  const { pixel_values, pixel_values_videos, inputs_embeds, input_ids } = inputs;
  const isPlain = options.keep === 'all' && further === null;
  const pixels = pixel_values_videos ?? (isPlain ? null : pixel_values);
  return Boolean(pixels && !inputs_embeds && input_ids && input_ids.dims[1] > 1);
}

/** Where `pixel_values` is there, even as null, a cached step sees all of the cache, its padding too. */
function plainInputs({ inputs, map }: Call): ModelInputs {
  return map !== null && !inputs.pixel_values ? { ...inputs, pixel_values: undefined } : inputs;
}

/** Lets a run go on behind its shortened prompt: the object that `forward` was given goes on through the loop. */
function goOn(run: Run, given: ModelInputs, whole: ModelInputs, { inputs, map }: Prefill): void {
  run.map = map;
  const lost = (whole.input_ids as ModelTensor).dims[1] - (inputs.inputs_embeds as ModelTensor).dims[1];
  Object.assign(given, {
    attention_mask: inputs.attention_mask,
    ...ENCODED,
    rope_deltas: behindDropped(whole.rope_deltas, lost),
  });
}
