/** Every refusal of `desap/onnxruntime` and `desap/transformers` is a DesapError, whatever is given for whatever. */
import { afterAll, describe } from 'vitest';
import { attach } from '../../src/transformers/index.js';
import * as vision from '../../src/vision/index.js';
import { normal } from '../support.js';
import { type Hole, refuseWrongValues } from '../wrong-values.js';

const CLIP = 'models/tiny-clip';
const LLAVA = 'models/tiny-llava';
const TEXT = { model: `${CLIP}/onnx/text_model.onnx`, tokenizer: CLIP };
const FAMILIES = 'test/fixtures/families';

const each = (name: string, fields: readonly string[], call: (given: never) => unknown): Hole[] =>
  fields.map((field) => [`${name} ${field}`, (value) => call({ [field]: value } as never)]);

const llava = await vision.openVisionModel(LLAVA, { clip: CLIP, keep: 4 });
const qwen = await vision.openVisionModel(`${FAMILIES}/qwen2_5_vl`, { keep: 4 });
const idefics = await vision.openVisionModel(`${FAMILIES}/idefics3`, { keep: 4 });
const text = await vision.ClipText.open(TEXT);
const siglip = await vision.SiglipText.open('test/fixtures/siglip');
const processor = await vision.ImageProcessor.open(CLIP);
const pixelValues = { data: normal(1, 3 * 96 * 96), dims: [1, 3, 96, 96] };
const [image] = await llava.encode({ pixelValues });
afterAll(async () => {
  image.dispose();
  for (const one of [llava, qwen, idefics, text, siglip]) await one.dispose();
});

const PRUNE = [
  ...['keep', 'keepRatio', 'taskShare', 'complement', 'distances', 'alignment', 'lambda', 'merge', 'maps', 'saliency'],
  ...['preset', 'method', 'methodOptions', 'allocation'],
];
const INPUTS = [
  ...['pixelValues', 'imageGridThw', 'pixelAttentionMask', 'spatialShapes', 'imageSizes', 'pixelValuesVideos'],
  ...['videoGridThw', 'tileCounts'],
];
const kept = { indices: Int32Array.of(0), assignment: new Int32Array(4) };
const prompt = { inputIds: [1, 9, 9, 9, 9, 2], imageTokenId: 9, kept };

describe('vision models', () => {
  refuseWrongValues([
    ['openVisionModel model', (v) => vision.openVisionModel(v)],
    ['openVisionModel options', (v) => vision.openVisionModel(LLAVA, v)],
    ...each('openVisionModel', ['clip', 'dtype', 'longText', 'device', 'method'], (given) =>
      vision.openVisionModel(LLAVA, { clip: CLIP, ...(given as object) }).then((one) => one.dispose()),
    ),
    ['LlavaVision.open options', (v) => vision.LlavaVision.open(LLAVA, v)],
    ['encode', (v) => llava.encode(v)],
    ...each('encode of LLaVA', INPUTS, (given) => llava.encode({ pixelValues, ...(given as object) })),
    ...each('encode of Qwen', INPUTS, (given) =>
      qwen.encode({
        pixelValues: { data: normal(2, 96 * 96), dims: [96, 96] },
        imageGridThw: { data: BigInt64Array.of(1n, 8n, 12n), dims: [1, 3] },
        ...(given as object),
      }),
    ),
    ...each('encode of Idefics3', INPUTS, (given) =>
      idefics.encode({ pixelValues: { data: normal(2, 3 * 48 * 48), dims: [1, 1, 3, 48, 48] }, ...(given as object) }),
    ),
    ['encodeQuestion', (v) => llava.encodeQuestion(v)],
    ['prune question', (v) => llava.prune({ pixelValues }, v)],
    ['prune options', (v) => llava.prune({ pixelValues }, 'a star', v)],
    ['image.prune question', (v) => image.prune(v)],
    ['image.prune embeddings', (v) => image.prune({ embeddings: v })],
    ['image.prune options', (v) => image.prune('a star', v)],
    ...each('image.prune', PRUNE, (given) => image.prune('a star', given)),
    ['pruneImages images', (v) => llava.pruneImages(v, ['a'])],
    ['pruneImages image', (v) => llava.pruneImages([v], ['a'])],
    ['pruneImages questions', (v) => llava.pruneImages([image], v)],
    ['pruneImages question', (v) => llava.pruneImages([image], [v])],
    ['pruneImages options', (v) => llava.pruneImages([image], ['a'], v)],
    ['pruneImages own options', (v) => llava.pruneImages([image], ['a'], [v])],
    ['mapImages images', (v) => llava.mapImages(v, ['a'])],
    ['mapImages questions', (v) => llava.mapImages([image], v)],
  ]);
});

describe('texts and images', () => {
  refuseWrongValues([
    ['ClipText.open', (v) => vision.ClipText.open(v)],
    ...each('ClipText.open', ['model', 'tokenizer', 'ort', 'longText', 'filter'], (given) =>
      vision.ClipText.open({ ...TEXT, ...(given as object) }).then((one) => one.dispose()),
    ),
    ...each('filter', ['maxTokens', 'importance', 'frequency', 'keepPunctuation'], (filter) =>
      vision.ClipText.open({ ...TEXT, longText: 'filter', filter }).then((one) => one.dispose()),
    ),
    ['SiglipText.open folder', (v) => vision.SiglipText.open(v)],
    ['SiglipText.open options', (v) => vision.SiglipText.open('test/fixtures/siglip', v)],
    ['ImageProcessor.open', (v) => vision.ImageProcessor.open(v)],
    ['ImageProcessor.process', (v) => processor.process(v)],
    ...each('ImageProcessor.process', ['data', 'width', 'height', 'channels'], (given) =>
      processor.process({ data: new Uint8Array(12), width: 2, height: 2, ...(given as object) }),
    ),
    ['ImageProcessor.process blob', (v) => processor.process({ arrayBuffer: async () => v })],
    ['ImageProcessor.process href', (v) => processor.process({ href: v } as never)],
    ['ImageProcessor.video', (v) => processor.video(v)],
    ['ImageProcessor.video frame', (v) => processor.video([v])],
    ['ImageProcessor.normalize', (v) => processor.normalize(v)],
    ...each('ImageProcessor.normalize', ['data', 'width', 'height'], (given) =>
      processor.normalize({ data: new Uint8Array(12), width: 2, height: 2, ...(given as object) }),
    ),
    ...each(
      'ImageProcessor.open',
      [
        'image_processor_type',
        'size',
        'resample',
        'crop_size',
        'do_resize',
        'image_mean',
        'image_std',
        'rescale_factor',
      ],
      (given) => vision.ImageProcessor.open(given),
    ),
    ['AnyresImageProcessor.open', (v) => vision.AnyresImageProcessor.open(v)],
    ['videoFrames', (v) => vision.videoFrames(v)],
    ['videoFrames options', (v) => vision.videoFrames('README.md', v)],
    ['compact', (v) => vision.compact(v)],
    ...each('compact', ['inputIds', 'attentionMask', 'imageTokenId', 'kept', 'positionIds', 'positions'], (given) =>
      vision.compact({ ...prompt, ...(given as object) } as never),
    ),
    ...each('compact kept', ['indices', 'assignment'], (given) =>
      vision.compact({ ...prompt, kept: { ...kept, ...(given as object) } } as never),
    ),
    ['tapsOf', (v) => vision.tapsOf(v)],
    ['attach model', (v) => attach(v, { keep: 4 })],
    ['attach options', (v) => attach({ config: {}, sessions: {} }, v)],
    ...each('attach', ['config', 'sessions'], (given) =>
      attach({ config: {}, sessions: {}, ...(given as object) }, { keep: 4 }),
    ),
  ]);
  // Most of the wrong values are texts that can be read, or none.
  refuseWrongValues([
    ['ClipText.encode', (v) => text.encode(v)],
    ['SiglipText.encode', (v) => siglip.encode(v)],
  ]);
});
