import type { Tensor } from 'onnxruntime-common';
import type { OrtModule } from '../onnx/edit.js';
import { floatToHalf } from '../tensor.js';
import { type AllFeatures, allFeatures, type FileInputs, namesOf, visionInputs } from '../vision/file-features.js';
import type { VisionModel } from '../vision/vision-model.js';
import type { ModelSession } from './model.js';

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

/** The output that Transformers.js reads. */
const IMAGE_FEATURES = 'image_features';

/**
 * An object with the face of the model's vision session, which was opened in parts instead. What the model calls without
 * pruning (`keep: 'all'`, `encode_image`) still gets what the plain session gave. Releasing it frees the vision model.
 *
 * @param inputs what the plain session calls its inputs
 * @param sample features that the plain session gave
 */
export function standIn(
  plain: ModelSession,
  vision: VisionModel,
  { ort, inputs, sample }: { ort: OrtModule; inputs: FileInputs; sample: Tensor },
): ModelSession {
  const { inputNames, outputNames, inputMetadata, outputMetadata, config } = plain;
  const state = { released: false };
  const names = namesOf(inputs);
  const face = {
    [STAND_IN]: state,
    ...{ inputNames, outputNames, inputMetadata, outputMetadata, config },
    release: async () => {
      if (state.released) return;
      state.released = true;
      await vision.dispose();
    },
    run: async (feeds: Record<string, Tensor>) => {
      const all = await allFeatures(vision, visionInputs(inputs, feeds), names);
      return { [IMAGE_FEATURES]: inForm(sample, all, ort) };
    },
  };
  return face as unknown as ModelSession;
}

/** Features as a tensor of the type and the rank that another one has. */
function inForm({ type, dims }: Tensor, { data, tiles }: AllFeatures, ort: OrtModule): Tensor {
  const width = dims[dims.length - 1];
  const rows = data.length / width;
  const shape = dims.length === 3 ? [tiles, rows / tiles, width] : [rows, width];
  return type === 'float16'
    ? new ort.Tensor('float16', Uint16Array.from(data, floatToHalf), shape)
    : new ort.Tensor('float32', data, shape);
}
