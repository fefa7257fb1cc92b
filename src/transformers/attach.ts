import type { InferenceSession } from 'onnxruntime-common';
import { ASYNC_DISPOSE } from '../dispose-symbols.js';
import { invalid, mismatch } from '../errors.js';
import type { VisionFamily } from './family.js';
import { type Hooks, pruningHooks } from './hooks.js';
import { openLlava } from './llava.js';
import {
  type HookedModel,
  imageTokenId,
  type LoadedModel,
  type ModelRuntime,
  modelRuntime,
  requireModel,
  requireSessions,
} from './model.js';
import { locate, type ModelFiles } from './model-files.js';
import { type AttachOptions, callDefaults } from './options.js';
import { override } from './override.js';
import { Questions } from './question/question.js';
import { openQwen } from './qwen.js';
import { isReleased, isStandIn } from './vision-session.js';

/** Those of `Qwen2VLForConditionalGeneration` with a tower of its kind; each encoder is read by its structure, and refused where that is another. */
const QWEN = ['qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'qwen3_vl_moe', 'qwen3_5', 'qwen3_5_moe'];

/** Model types whose class is Transformers.js' `LlavaForConditionalGeneration` or inherits from it, and whose tower can be that of CLIP. */
const LLAVA = ['llava', 'llava_qwen2'];

const SIGLIP = 'with a SigLIP tower: it has no class token, and no CLIP folder fits it';
const PIXTRAL = 'with a Pixtral tower: it has no class token, and no CLIP folder fits it';

/** Why other types are refused that one of the two classes loads. */
const REFUSED: Readonly<Record<string, string>> = {
  llava_onevision: SIGLIP,
  moondream1: SIGLIP,
  lfm2_vl: SIGLIP,
  mistral3: PIXTRAL,
  lighton_ocr: PIXTRAL,
  glm_ocr: 'with a tower that merges patches by a convolution',
};

/**
 * Lets a loaded vision-language model prune its visual tokens. The code around it stays as it was: the processor, `generate()` with
 * all its options, slicing the answer off by `inputs.input_ids.dims[1]`, `past_key_values` of earlier turns, direct calls.
 *
 * ```ts
 * const model = await AutoModelForImageTextToText.from_pretrained('llava-1.5-7b-hf', { dtype: 'fp32' });
 * const detach = await attach(model, { clip: 'clip-vit-large-patch14-336', model: 'llava-1.5-7b-hf', keep: 64 });
 * const output = await model.generate({ ...inputs, max_new_tokens: 64 });                 // 64 visual tokens
 * const other = await model.generate({ ...inputs, max_new_tokens: 64, desap: { keep: 32 } });
 * await detach();
 * ```
 *
 * The vision encoder is opened again, in parts or with further outputs, in place of the model's vision session, which is released; its
 * weights are read from the same files.
 * Everything else is set as own properties of this one instance. `generate` returns the sequences of the whole prompt; a direct call
 * `model(inputs)` returns the logits of the shortened one.
 *
 * Each sequence of a batch gets the ids that it gets alone, as in Python. The plain model of Transformers.js differs where prompts of
 * different length make a batch: its cached steps see the padding. There K = P and `keep: 'all'` can give different ids.
 *
 * Attach while no call of the model is running.
 *
 * @param model what `from_pretrained` returned
 * @returns puts the model back as it was, once the calls in flight have ended; also by `await using`
 * @throws DesapError `ERR_VALUE` for models of another kind and for bad options; `ERR_GRAPH` when a graph has parts of unknown
 *   meaning, with what was found; `ERR_FILE` when a folder lacks a file; `ERR_HEAD_MISMATCH` when the CLIP folder, or the file found
 *   for the model, does not belong to it; `ERR_DEVICE_UNAVAILABLE`; `ERR_MISSING_PACKAGE`
 */
export async function attach(model: LoadedModel, options: AttachOptions): Promise<Detach> {
  const hooked = requireModel(model);
  const open = familyOf(hooked);
  requireSessions(hooked);
  const defaults = callDefaults(hooked, options);
  if (isStandIn(hooked.sessions.vision_encoder))
    throw mismatch('ERR_VALUE', 'model', 'a model that is attached to already', 'detach() first');
  imageTokenId(hooked);

  const session = sessionOptions(hooked, options);
  const files = await locate(hooked, options.model);
  const runtime = await modelRuntime(hooked);
  let opened: Promise<Questions> | undefined;
  const questions = () => (opened ??= Questions.open(files.folder));
  const quiet = { ...options, session: { logSeverityLevel: 3 as const, ...session } };
  const family = await open(hooked, files, runtime, quiet, questions);

  const attached = { model: hooked, family, questions };
  const running = new Set<Promise<unknown>>();
  const restore = override(hooked, waitedFor(pruningHooks(attached, ownMethods(hooked), defaults), running));
  const plain = hooked.sessions.vision_encoder;
  hooked.sessions.vision_encoder = family.session;
  await plain.release();

  let detached: Promise<void> | undefined;
  const detach = () => {
    detached ??= (async () => {
      while (running.size > 0) await Promise.allSettled(running);
      restore();
      if (isReleased(family.session)) return;
      const reopened = await runtime.ort.InferenceSession.create(files.visionEncoder, quiet.session);
      hooked.sessions.vision_encoder = Object.assign(reopened, { config: plain.config });
      await family.session.release();
    })();
    return detached;
  };
  return Object.assign(detach, { [ASYNC_DISPOSE]: detach });
}

/** Puts a model back as it was, once the calls in flight have ended. Works with `await using`. */
export type Detach = (() => Promise<void>) & AsyncDisposable;

type OpenFamily = (
  model: HookedModel,
  files: ModelFiles,
  runtime: ModelRuntime,
  options: AttachOptions,
  questions: () => Promise<Questions>,
) => Promise<VisionFamily>;

/** By `model_type`: classes are not exported in a way that an instance could be tested against. */
function familyOf({ config }: HookedModel): OpenFamily {
  const type = config.model_type ?? '';
  if (QWEN.includes(type)) return openQwen;
  if (!LLAVA.includes(type)) {
    const why = REFUSED[type] ? ` ${REFUSED[type]}` : '';
    throw mismatch('ERR_VALUE', 'model.config.model_type', `${type}${why}`, [...LLAVA, ...QWEN].join(' | '));
  }
  const tower = config.vision_config?.model_type ?? CLIP;
  if (tower === CLIP) return openLlava;
  const wanted = `${CLIP}: a tower without class token, or of another kind, is one that no CLIP folder fits`;
  throw invalid('ERR_VALUE', 'model.config.vision_config.model_type', tower, wanted);
}

const CLIP = 'clip_vision_model';

/** The caller's session options, or the device that the model's own vision session runs on. */
function sessionOptions({ sessions }: HookedModel, { session }: AttachOptions): InferenceSession.SessionOptions {
  const { device } = sessions.vision_encoder.config ?? {};
  return session ?? (device && device !== 'cpu' ? { executionProviders: [device] } : {});
}

/** The model's methods as they are now, bound to it. */
function ownMethods(model: HookedModel): Hooks {
  return {
    forward_params: model.forward_params,
    forward: model.forward.bind(model),
    generate: model.generate.bind(model),
    prepare_inputs_for_generation: model.prepare_inputs_for_generation.bind(model),
    _update_model_kwargs_for_generation: model._update_model_kwargs_for_generation.bind(model),
  };
}

/** The same hooks, with the calls in flight on record. */
function waitedFor(hooks: Hooks, running: Set<Promise<unknown>>): Hooks {
  const tracked =
    <A>(call: (argument: A) => Promise<unknown>) =>
    (argument: A) => {
      const result = call(argument);
      running.add(result);
      result.then(
        () => running.delete(result),
        () => running.delete(result),
      );
      return result;
    };
  return { ...hooks, forward: tracked(hooks.forward), generate: tracked(hooks.generate) };
}
