import { types } from 'node:util';
import type { Tensor } from 'onnxruntime-common';
import { DesapError, invalid } from '../errors.js';
import type { TextEmbeddings } from '../index.js';
import { PrunedVision, type VisionAnalysis } from '../vision/llava.js';
import type { KeptTokens, SeenImage, VisionFamily } from './family.js';
import { floats, joined, seeAll } from './images.js';
import type { HookedModel, ModelInputs, ModelRuntime, ModelSession } from './model.js';
import type { ModelFiles } from './model-files.js';
import type { AttachOptions, CallOptions } from './options.js';
import { FeatureForm, requireSame, standIn } from './vision-session.js';

/**
 * LLaVA and its relatives: a CLIP tower without its last layer, a projector, one placeholder for each patch. Kept patches are
 * merged before the projector.
 *
 * @throws DesapError as `PrunedVision.open`; `ERR_GRAPH` for encoders with further inputs; `ERR_HEAD_MISMATCH` when the file is not
 *   the loaded one
 */
export async function openLlava(
  model: HookedModel,
  files: ModelFiles,
  { ort }: ModelRuntime,
  { clip, ...options }: AttachOptions,
): Promise<VisionFamily> {
  const plain = model.sessions.vision_encoder;
  if (clip === undefined && options.pruner === undefined)
    throw invalid('ERR_VALUE', 'clip', clip, 'the CLIP folder of the model’s vision tower');
  if (plain.inputNames.length !== 1 || plain.outputNames.length !== 1)
    throw new DesapError(
      'ERR_GRAPH',
      `model.sessions.vision_encoder: got the inputs ${plain.inputNames.join(', ')} and the outputs ${plain.outputNames.join(', ')}, wanted pixel_values and image_features only`,
    );
  const vision = await PrunedVision.open(files.visionEncoder, { ...options, clip, ort, keep: undefined });
  try {
    if (!vision.dropsClassToken)
      throw new DesapError(
        'ERR_GRAPH',
        `${files.visionEncoder}: got features of all rows, the class token's too (vision_feature_select_strategy "full"), wanted those of the patches only`,
      );
    const encode = async (pixels: Tensor) => {
      const parts: Float32Array[] = [];
      for (const image of imagesOf(pixels, ort.Tensor))
        parts.push((await vision.encodeAll(image)).data as Float32Array);
      return { data: joined(parts), images: parts.length };
    };
    const trial = trialImage(model, plain, ort.Tensor);
    const sample = (await plain.run({ [plain.inputNames[0]]: trial }))[plain.outputNames[0]] as Tensor;
    requireSame((await encode(trial)).data, floats(sample), { file: files.visionEncoder });
    const release = () => vision.dispose();
    const session = standIn(plain, {
      like: new FeatureForm(ort, sample),
      encode: (feeds) => encode(feeds[plain.inputNames[0]]),
      release,
    });
    return {
      session,
      asks: () => true,
      encodeQuestion: (question) => vision.text.encode(question),
      see: async ({ pixel_values }: ModelInputs) =>
        seeAll(imagesOf(pixel_values as unknown as Tensor, ort.Tensor), async (image) =>
          seen(await vision.analyze(image)),
        ),
    };
  } catch (error) {
    await vision.dispose();
    throw error;
  }
}

function seen(analysis: VisionAnalysis): SeenImage {
  return {
    tokens: analysis.patches,
    prune: async (question: TextEmbeddings | null, options: CallOptions & { keep: number }): Promise<KeptTokens> => {
      const { keep, taskShare, alignment, lambda, merge } = options;
      const pruned = await analysis.prune(question as TextEmbeddings, { keep, taskShare, alignment, lambda, merge });
      const { indices, source, assignment, counts, features } = pruned;
      return { indices, source, assignment, counts, features: features.data as Float32Array };
    },
    [Symbol.dispose]: () => analysis.dispose(),
  };
}

/** The images of `pixel_values` [n, 3, H, W], as tensors [1, 3, H, W] over the same memory. */
function imagesOf({ type, data, dims }: Tensor, TensorClass: typeof Tensor): Tensor[] {
  if (dims.length !== 4) throw invalid('ERR_SHAPE', 'pixel_values.dims', dims, '[images, 3, H, W]');
  if (!types.isFloat32Array(data)) throw invalid('ERR_DTYPE', 'pixel_values', type, 'float32');
  const size = data.length / dims[0];
  return Array.from(
    { length: dims[0] },
    (_, i) => new TensorClass('float32', data.subarray(i * size, (i + 1) * size), [1, ...dims.slice(1)]),
  );
}

/** Image size of CLIP configs that do not state one. */
const DEFAULT_IMAGE_SIZE = 224;

/** An image of waves, of the size that the encoder says, or else the model's config. */
function trialImage({ config }: HookedModel, plain: ModelSession, TensorClass: typeof Tensor): Tensor {
  const input = plain.inputMetadata[0];
  const side = config.vision_config?.image_size ?? DEFAULT_IMAGE_SIZE;
  const shape = input.isTensor && input.shape.length === 4 ? input.shape : ['', '', '', ''];
  const dims = shape.map((extent, axis) =>
    typeof extent === 'number' && extent > 0 ? extent : [1, 3, side, side][axis],
  );
  const size = dims.reduce((product, extent) => product * extent, 1);
  return new TensorClass(
    'float32',
    Float32Array.from({ length: size }, (_, i) => Math.sin(i * i)),
    dims,
  );
}
