import type { InferenceSession } from 'onnxruntime-common';
import { type Abortable, abortable } from '../abort.js';
import { ASYNC_DISPOSE } from '../dispose-symbols.js';
import { mismatch } from '../errors.js';
import { tapsOf } from '../methods/index.js';
import { missing } from '../methods/method.js';
import { checkSession } from '../onnx/edit.js';
import { field } from '../options.js';
import { traced } from '../trace.js';
import { type LoadedFamily, loadedFamilyOf } from '../vision/families.js';
import { confirmFeatures, fileInputs, runTrials } from '../vision/file-features.js';
import { asEmbeddings } from '../vision/question-table.js';
import type { VisionModel } from '../vision/vision-model.js';
import { confirmPlacing, type ModelRuntime, modelRuntime } from './embeddings.js';
import { FurtherInputs, type FurtherOutput } from './further-inputs.js';
import { type Hooks, pruningHooks } from './hooks.js';
import {
  decoderOf,
  furtherOutputs,
  type HookedModel,
  type LoadedModel,
  type ModelInputs,
  type ModelSession,
  requireModel,
  requireSessions,
  sessionNames,
} from './model.js';
import { locate, type ModelFiles } from './model-files.js';
import { type AttachOptions, attachOptions, type CallOptions, type OpeningOptions } from './options.js';
import { override } from './override.js';
import { Questions } from './question/question.js';
import { isReleased, isStandIn, standIn } from './vision-session.js';
import { imageIds } from './visual-ids.js';

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
 * A signal ends a call: `generate({ ..., desap: { signal: AbortSignal.timeout(5000) } })` rejects with `ERR_ABORTED`, and no further step is begun.
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
export function attach(model: LoadedModel, options: AttachOptions): Promise<Detach> {
  return attachThrough(model, options, () => {});
}

/**
 * The same.
 * @param watch is shown the vision model before it is used, and may put methods of its own in front of the model's
 */
export async function attachThrough(
  model: LoadedModel,
  options: AttachOptions,
  watch: (vision: VisionModel) => void,
): Promise<Detach> {
  const hooked = requireModel(model);
  const family = loadedFamilyOf('model.config', hooked.config);
  requireSessions(hooked);
  const { defaults, folder, opening } = attachOptions(hooked, options);
  const plain = hooked.sessions.vision_encoder;
  if (isStandIn(plain)) throw mismatch('ERR_VALUE', 'model', 'a model that is attached to already', 'detach() first');
  imageIds(hooked);

  const files = await locate(hooked, folder);
  await confirmPlacing(hooked);
  const runtime = await modelRuntime(hooked);
  const session = { logSeverityLevel: 3 as const, ...sessionOptions(hooked, opening) };
  let opened: Promise<Questions> | undefined;
  const questions = () => (opened ??= Questions.open(files.folder));
  const how = { ...tapsFor(family, defaults), ...opening, session };
  const vision = await openVision(hooked, family, files, how, { ...runtime, questions });
  watch(vision.model);

  const running = new Set<Promise<unknown>>();
  const name = sessionNames(hooked).decoder;
  const decoder = hooked.sessions[name];
  const { further } = vision;
  const hooks = pruningHooks({ model: hooked, vision: vision.model, questions, further }, ownMethods(hooked), defaults);
  const restore = override(hooked, waitedFor(hooks, running));
  hooked.sessions.vision_encoder = vision.session;
  if (further) hooked.sessions[name] = further.session;
  await plain.release();

  let detached: Promise<void> | undefined;
  const detach = () => {
    detached ??= (async () => {
      while (running.size > 0) await Promise.allSettled(running);
      restore();
      hooked.sessions[name] = decoder;
      if (isReleased(vision.session)) return;
      const reopened = await runtime.ort.InferenceSession.create(files.visionEncoder, session);
      hooked.sessions.vision_encoder = Object.assign(reopened, { config: plain.config });
      await vision.session.release();
    })();
    return detached;
  };
  return Object.assign(detach, { [ASYNC_DISPOSE]: detach });
}

/** Puts a model back as it was, once the calls in flight have ended. Works with `await using`. */
export type Detach = (() => Promise<void>) & AsyncDisposable;

/** The taps that the method of every call reads. */
function tapsFor({ isTapped }: LoadedFamily, { method = 'desap', methodOptions }: CallOptions): OpeningOptions {
  const taps = tapsOf(method, methodOptions);
  if (taps.length === 0) return {};
  if (isTapped) return { taps };
  throw missing(
    `'${method}', which reads the tap '${taps[0]}'`,
    'a method that reads features only: this encoder is no tower of CLIP',
  );
}

const VISION_SESSION = 'model.sessions.vision_encoder';

interface Vision {
  readonly model: VisionModel;
  /** Stands in for the model's vision session. */
  readonly session: ModelSession;
  /** What its decoder takes of visual tokens besides their features. */
  readonly further: FurtherInputs | null;
}

/** Opens the vision model, and checks that it computes what the loaded session computes. */
async function openVision(
  hooked: HookedModel,
  family: LoadedFamily,
  files: ModelFiles,
  opening: OpeningOptions,
  { ort, embed, questions }: ModelRuntime & { questions: () => Promise<Questions> },
): Promise<Vision> {
  const { config } = hooked;
  const plain = hooked.sessions.vision_encoder;
  const inputs = fileInputs(plain, VISION_SESSION, furtherOutputs(plain));
  const embedQuestion = async (question: string) => {
    const reader = await questions();
    const ids = reader.encode(question);
    return { ...asEmbeddings(await embed(ids)), ids, words: reader.words(ids) };
  };
  const model = await family.open({ ...files, config }, { ...opening, embedQuestion, ort });
  try {
    fileInputs(plain, VISION_SESSION, model.further);
    const { visionEncoder: file } = files;
    const { further } = model;
    const samples = await runTrials(plain, await family.trials(plain, config), { file, ort, further });
    const wanted = `those of the file that the model was loaded from${family.premise}`;
    await confirmFeatures(model, samples, { argument: 'options.model', file, wanted });
    const sample = samples[0].features;
    return {
      model,
      session: standIn(plain, model, { ort, inputs, sample }),
      further: FurtherInputs.of(decoderOf(hooked), outputsOf(plain, model.further), ort),
    };
  } catch (error) {
    await model.dispose();
    throw error;
  }
}

/** Outputs of a session with these names. */
function outputsOf({ outputMetadata }: ModelSession, names: readonly string[] = []): FurtherOutput[] {
  const own = outputMetadata.filter(({ name }) => names.includes(name));
  return own.map((output) => ({ name: output.name, shape: output.isTensor ? output.shape : [] }));
}

/** The caller's session options, or the device that the model's own vision session runs on. */
function sessionOptions({ sessions }: HookedModel, { session }: OpeningOptions): InferenceSession.SessionOptions {
  const { device } = sessions.vision_encoder.config ?? {};
  if (session !== undefined) return checkSession(session);
  return device && device !== 'cpu' ? { executionProviders: [device] } : {};
}

/** The model's methods as they are now, bound to it. */
function ownMethods(model: HookedModel): Hooks {
  return {
    forward_params: model.forward_params,
    forward: model.forward.bind(model),
    generate: model.generate.bind(model),
    prepare_inputs_for_generation: model.prepare_inputs_for_generation.bind(model),
    _update_model_kwargs_for_generation: model._update_model_kwargs_for_generation.bind(model),
    get_rope_index: model.get_rope_index?.bind(model),
  };
}

/** The same hooks, with the calls in flight on record. One that its signal ended is in flight until its last step has ended. */
function waitedFor(hooks: Hooks, running: Set<Promise<unknown>>): Hooks {
  const tracked =
    <A>(call: (argument: A) => Promise<unknown>) =>
    (argument: A) =>
      abortable(signalIn(argument as ModelInputs), () => {
        const result = call(argument);
        running.add(result);
        result.then(
          () => running.delete(result),
          () => running.delete(result),
        );
        return result;
      });
  return {
    ...hooks,
    forward: tracked(hooks.forward),
    generate: (argument) => traced('attach.generate', () => tracked(hooks.generate)(argument)),
  };
}

/** The signal among the options of a call. */
function signalIn({ desap }: ModelInputs): AbortSignal | undefined {
  return typeof desap === 'object' && desap !== null ? field('desap', desap as Abortable, 'signal') : undefined;
}
