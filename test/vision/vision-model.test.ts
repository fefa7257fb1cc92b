/** What every vision model does, by the interface alone; and how a folder gets the one of its family. */
import { cp, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  LlavaVision,
  openVisionModel,
  QwenVision,
  type VisionInputs,
  type VisionModel,
} from '../../src/vision/index.js';
import { INPUT_NAMES } from '../../src/vision/vision-model.js';
import { normal, relativeError } from '../support.js';

const LLAVA = 'models/tiny-llava';
const CLIP = 'models/tiny-clip';
const FAMILIES = 'test/fixtures/families';
const QWEN = join(FAMILIES, 'qwen2_5_vl');
const FLAT = join(FAMILIES, 'llava_onevision');

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'desap-model-'));
});
afterAll(() => rm(root, { recursive: true }));

/** Inputs with images. */
type Images = VisionInputs & Required<Pick<VisionInputs, 'pixelValues'>>;

const llavaImages = (count: number): Images => ({
  pixelValues: { data: normal(1, count * 3 * 96 * 96), dims: [count, 3, 96, 96] },
});
const flatImages = (count: number): Images => ({
  pixelValues: { data: normal(3, count * 3 * 48 * 48), dims: [count, 3, 48, 48] },
});
const qwenImages = (count: number): Images => ({
  pixelValues: { data: normal(2, count * 96 * 96), dims: [count * 96, 96] },
  imageGridThw: {
    data: BigInt64Array.from(new Array(count).fill([1, 8, 12]).flat(), BigInt),
    dims: [count, 3],
  },
});

const FILES: [family: string, folder: string, options: object, inputs: (count: number) => Images][] = [
  ['llava', LLAVA, { clip: CLIP }, llavaImages],
  ['qwen', QWEN, {}, qwenImages],
  ['flat', FLAT, {}, flatImages],
];
describe.each(FILES)('%s', (family, folder, options, inputs) => {
  const question = 'what is the color ?';
  let vision: VisionModel;
  beforeAll(async () => {
    vision = await openVisionModel(folder, { ...options, keep: 8 });
  });
  afterAll(() => vision.dispose());

  /** What a session of the file gives for all tokens. */
  async function plain(given: Images): Promise<Float32Array> {
    const session = await ort.InferenceSession.create(join(folder, 'onnx/vision_encoder.onnx'));
    const [pixels, grid] = session.inputNames;
    const { pixelValues, imageGridThw } = given;
    const outputs = await session.run({
      [pixels]: new ort.Tensor('float32', pixelValues.data as Float32Array, pixelValues.dims),
      ...(imageGridThw && { [grid]: new ort.Tensor('int64', imageGridThw.data as BigInt64Array, imageGridThw.dims) }),
    });
    await session.release();
    return outputs[session.outputNames[0]].data as Float32Array;
  }

  it('says what it is and where it runs', () => {
    expect(vision.family).toBe(family);
    expect(vision.device).toMatch(/^(cpu|cuda:\d+|reference)$/);
    expect(vision.deviceDescription.length).toBeGreaterThan(3);
  });

  it('gives all tokens as the file does, image by image', async () => {
    const images = await vision.encode(inputs(3));
    const all = await Promise.all(images.map((image) => image.all()));
    for (const [i, { dims }] of all.entries()) expect(dims.slice(0, 2)).toEqual([1, images[i].tokenCount]);
    const wanted = await plain(inputs(3));
    const got = Float32Array.from(all.flatMap(({ data }) => [...(data as Float32Array)]));
    expect(relativeError(got, wanted)).toBeLessThan(1e-5);
    for (const image of images) image.dispose();
  });

  it('keeps all tokens as they are for K = P, in the order of the tiles', async () => {
    const [image] = await vision.encode(inputs(1));
    const tokens = image.tiles.reduce((sum, { rows, columns }) => sum + rows * columns, 0);
    expect(image.tokenCount).toBe(tokens);
    for (const amount of [{ keep: tokens }, { keepRatio: 1 }, { keepRatio: 0.9999 }]) {
      const { features, indices } = await image.prune(question, amount);
      expect([...indices]).toEqual([...indices.keys()]);
      expect(indices).toHaveLength(tokens);
      expect(relativeError(features.data as Float32Array, (await image.all()).data as Float32Array)).toBeLessThan(1e-5);
    }
  });

  it('gives images of one call what each gets alone', async () => {
    const together = await vision.encode(inputs(3));
    const { pixelValues, imageGridThw } = inputs(3);
    const size = (pixelValues.data as Float32Array).length / 3;
    for (const [i, image] of together.entries()) {
      const data = (pixelValues.data as Float32Array).subarray(i * size, (i + 1) * size);
      const [alone] = await vision.encode({
        pixelValues: { data, dims: [pixelValues.dims[0] / 3, ...pixelValues.dims.slice(1)] },
        imageGridThw: imageGridThw && qwenImages(1).imageGridThw,
      });
      const [one, other] = await Promise.all([image, alone].map((each) => each.prune(question, { keepRatio: 0.25 })));
      expect(one.indices).toEqual(other.indices);
      expect(one.assignment).toEqual(other.assignment);
      expect(relativeError(one.features.data as Float32Array, other.features.data as Float32Array)).toBeLessThan(1e-5);
      for (const each of [image, alone]) each.dispose();
    }
  });

  it('prunes one image in one call', async () => {
    const [image] = await vision.encode(inputs(1));
    const kept = await vision.prune(inputs(1), question);
    expect(kept.indices).toHaveLength(8);
    expect(kept.indices).toEqual((await image.prune(question)).indices);
    await expect(vision.prune(inputs(2), question)).rejects.toMatchObject({
      code: 'ERR_SHAPE',
      message: 'pixelValues: got 2 images, wanted one (encode several, and prune each)',
    });
  });

  it('takes a question as a text, as its embeddings, or none', async () => {
    const [image] = await vision.encode(inputs(1));
    const kept = await image.prune(question, { maps: true });
    expect(await image.prune(await vision.encodeQuestion(question), { maps: true })).toMatchObject({
      indices: kept.indices,
      maps: kept.maps,
    });
    const salient = await image.prune(null, { taskShare: 0, maps: true });
    expect([...salient.source]).toEqual(new Array(8).fill(1));
    expect(salient.maps?.task).toBeNull();
    expect((await image.prune(question, { taskShare: 0 })).indices).toEqual(salient.indices);
  });

  it.each<[string, unknown, object, RegExp]>([
    [
      'no question',
      undefined,
      {},
      /^question: got undefined, wanted a text, its embeddings, or null with taskShare: 0/,
    ],
    ['null with a share', null, {}, /^question: got null/],
    ['an empty question', ' ', {}, /^question: got ' ', wanted a question/],
    [
      'embeddings of another width',
      { embeddings: { data: normal(1, 6), dims: [2, 3] } },
      {},
      /^question\.dims: got \[2, 3\]/,
    ],
    ['a count and a share', question, { keep: 3, keepRatio: 0.5 }, /^keepRatio: got 0.5 beside keep: 3, wanted one/],
    ['a share as count', question, { keep: 0.5 }, /^keep: got 0.5, wanted .* keepRatio: 0.5/],
    ['a misspelt option', question, { kepp: 3 }, /^options: got the unknown option 'kepp', wanted one of keep, /],
    ['own features', question, { features: null }, /^options: got the unknown option 'features'/],
  ])('refuses %s by name', async (_, asked, how, message) => {
    const [image] = await vision.encode(inputs(1));
    await expect(image.prune(asked as string, how)).rejects.toMatchObject({
      name: 'DesapError',
      message: expect.stringMatching(message),
    });
  });

  it('refuses embeddings with a misspelt end', async () => {
    const [image] = await vision.encode(inputs(1));
    const asked = await vision.encodeQuestion(question);
    await expect(image.prune({ ...asked, endOfTxt: 0 } as never)).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(/^question: got the unknown option 'endOfTxt', wanted one of embeddings, /),
    });
    image.dispose();
  });

  it('refuses an image of which the encoder makes no finite numbers, and not the others of its call', async () => {
    const given = inputs(2);
    (given.pixelValues.data as Float32Array).fill(Number.NaN, (given.pixelValues.data as Float32Array).length / 2);
    const images = await vision.encode(given);
    await expect(images[1].prune(question)).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: expect.stringMatching(/^image: it is not finite behind the encoder/),
    });
    const [alone] = await vision.encode(inputs(1));
    expect((await images[0].prune(question)).indices).toEqual((await alone.prune(question)).indices);
    alone.dispose();
    for (const image of images) image.dispose();
  });

  it('names the inputs as the caller does', async () => {
    const names = { ...INPUT_NAMES, pixelValues: 'pixel_values', imageGridThw: 'image_grid_thw' };
    const flat = { ...inputs(1), pixelValues: { data: new Float32Array(4), dims: [4] } };
    await expect(vision.encode(flat, names)).rejects.toMatchObject({
      code: 'ERR_SHAPE',
      message: expect.stringMatching(/^pixel_values\.dims: got \[4\]/),
    });
  });

  it('ends the calls under way, and refuses later ones', async () => {
    const one = await openVisionModel(folder, { ...options, keep: 4 });
    const [image] = await one.encode(inputs(1));
    const running = [one.prune(inputs(1), question), image.prune(question)];
    const ended = one.dispose();
    for (const call of [() => one.encode(inputs(1)), () => one.encodeQuestion(question), () => image.prune(question)])
      await expect(call()).rejects.toMatchObject({ code: 'ERR_DISPOSED', message: /Vision: used after dispose/ });
    for (const { indices } of await Promise.all(running)) expect(indices).toHaveLength(4);
    await ended;
    image.dispose();
    await expect(image.all()).rejects.toMatchObject({ code: 'ERR_DISPOSED', message: /Image: used after dispose/ });
  });
});

describe('openVisionModel', () => {
  it('takes the path of an encoder, and the file of a dtype', async () => {
    const encoder = join(QWEN, 'onnx/vision_encoder.onnx');
    await using vision = await openVisionModel(encoder);
    expect(vision).toBeInstanceOf(QwenVision);

    const folder = join(root, 'half');
    await cp(QWEN, folder, { recursive: true });
    const onnx = (name: string) => join(folder, 'onnx', `${name}.onnx`);
    await rename(onnx('vision_encoder'), onnx('vision_encoder_fp16'));
    await rename(onnx('embed_tokens'), onnx('embed_tokens_quantized'));
    await using half = await openVisionModel(folder, { dtype: 'fp16', keep: 3 });
    expect((await half.prune(qwenImages(1), 'what?')).indices).toEqual(
      (await vision.prune(qwenImages(1), 'what?', { keep: 3 })).indices,
    );
    await expect(openVisionModel(folder)).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: /vision_encoder\.onnx: /,
    });
    await expect(openVisionModel(folder, { dtype: 'fp17' as 'fp16' })).rejects.toMatchObject({
      message: /^dtype: got 'fp17', wanted 'fp32' \| 'fp16'/,
    });
    const llava = await openVisionModel(join(LLAVA, 'onnx/vision_encoder.onnx'), { clip: CLIP, dtype: 'fp32' });
    expect(llava).toBeInstanceOf(LlavaVision);
    await llava.dispose();
  });

  it('takes LLaVA’s class with a SigLIP tower, as nanoLLaVA has it', async () => {
    const folder = join(root, 'nano');
    await cp(FLAT, folder, { recursive: true });
    const { vision_config: _, ...config } = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'));
    const nano = { ...config, model_type: 'llava_qwen2', mm_vision_tower: 'google/siglip-so400m-patch14-384' };
    await writeFile(join(folder, 'config.json'), JSON.stringify(nano));
    await using vision = await openVisionModel(folder, { keep: 4 });
    await using flat = await openVisionModel(FLAT, { keep: 4 });
    const [one, other] = await Promise.all([vision, flat].map((model) => model.prune(flatImages(1), 'what is it ?')));
    expect(one.indices).toEqual(other.indices);
    expect(one.task).toEqual({ form: 'llm' });
  });

  it.each<[string, object, RegExp]>([
    ['florence2', {}, /model_type: got 'florence2' with a DaViT encoder: .*ImageAnalysis\.from/],
    ['gemma3n', {}, /model_type: got 'gemma3n' with a MobileNet encoder: .*ImageAnalysis\.from/],
    ['fast_vlm', {}, /model_type: got 'fast_vlm' with a FastViT encoder: .*ImageAnalysis\.from/],
    ['moondream2', {}, /model_type: got 'moondream2' which no Transformers\.js loads/],
    ['internvl', {}, /model_type: got 'internvl' which no Transformers\.js loads/],
    ['mistral3', {}, /model_type: got 'mistral3' with a Pixtral tower/],
    ['glm_ocr', {}, /model_type: got 'glm_ocr' with a tower that merges patches by a convolution/],
    ['toString', {}, /model_type: got 'toString', wanted 'llava' \| /],
    ['llava_qwen2', { mm_vision_tower: 'mobileclip_l_1024' }, /config\.json: got a model with a FastViT encoder/],
    ['llava', { vision_config: { model_type: 'pixtral' } }, /vision_config\.model_type: got 'pixtral', wanted 'clip_/],
  ])('refuses %s with the reason', async (model_type, config, message) => {
    const folder = join(root, `refused ${model_type}`);
    await cp(join(LLAVA, 'onnx/vision_encoder.onnx'), join(folder, 'onnx/vision_encoder.onnx'));
    await writeFile(join(folder, 'config.json'), JSON.stringify({ model_type, ...config }));
    await expect(openVisionModel(folder)).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(message),
    });
  });

  it.each<[string, string, object, RegExp]>([
    ['a folder that is not there', 'no/such', {}, /no\/such\/onnx\/vision_encoder\.onnx: got no such file/],
    [
      'a file without a config',
      'test/fixtures/families/forms/qwen2_vl.q4.onnx',
      {},
      /forms\/config\.json: cannot be read/,
    ],
    ['no path', undefined as never, {}, /^model: got undefined, wanted the path/],
    ['a CLIP folder for Qwen-VL', QWEN, { clip: CLIP }, /^clip: got 'models\/tiny-clip', wanted none/],
    ['a CLIP folder for SigLIP', FLAT, { clip: CLIP }, /^clip: got 'models\/tiny-clip', wanted none/],
    ['a head for SigLIP', FLAT, { head: 'x' }, /unknown option 'head'/],
    ['no CLIP folder for LLaVA', LLAVA, {}, /^clip: got undefined, wanted a CLIP folder/],
    ['a table for LLaVA', LLAVA, { clip: CLIP, embedQuestion: () => {} }, /unknown option 'embedQuestion'/],
    ['an old name', LLAVA, { clipFolder: CLIP }, /the unknown option 'clipFolder', wanted clip, its name now/],
    ['null for options', LLAVA, null as never, /^options: got null, wanted an object/],
    ['a head that is none', LLAVA, { clip: CLIP, head: 5 }, /^head: got 5, wanted a head/],
    ['a CLIP folder that is no path', LLAVA, { clip: 5 }, /^clip: got 5, wanted a CLIP folder/],
    ['another encoding', LLAVA, { clip: CLIP, encoding: '64' }, /^encoding: got '64', wanted 'qq' \| /],
    ['another way with long texts', LLAVA, { clip: CLIP, longText: 'x' }, /^longText: got 'x', wanted 'segment' \| /],
    ['a table that is none', QWEN, { embedQuestion: 5 }, /^embedQuestion: got 5, wanted a function/],
    ['an unknown dtype', join(QWEN, 'onnx/vision_encoder.onnx'), { dtype: 'x' }, /^dtype: got 'x', wanted 'fp32' \| /],
    ...FILES.flatMap(([family, folder, options]): [string, string, object, RegExp][] => [
      [`a pruner that is none: ${family}`, folder, { ...options, pruner: {} }, /^pruner: got Object, wanted a Pruner/],
      [
        `a count in words: ${family}`,
        folder,
        { ...options, keep: '64' },
        /^keep: got '64', wanted a count of at least 1,/,
      ],
      [`a share above 1: ${family}`, folder, { ...options, keepRatio: 2 }, /^keepRatio: got 2, wanted a share/],
      [
        `a count and a share: ${family}`,
        folder,
        { ...options, keep: 4, keepRatio: 1 },
        /^keepRatio: got 1 beside keep: 4/,
      ],
      [
        `session options that are none: ${family}`,
        folder,
        { ...options, session: 'x' },
        /^session: got 'x', wanted session/,
      ],
      [
        `a runtime that is none: ${family}`,
        folder,
        { ...options, ort: {} },
        /^ort: got Object, wanted the onnxruntime-node/,
      ],
    ]),
  ])('refuses %s', async (_, model, options, message) => {
    await expect(openVisionModel(model, options)).rejects.toMatchObject({
      name: 'DesapError',
      message: expect.stringMatching(message),
    });
  });

  it.each([LlavaVision, QwenVision])('%o: refuses what is no path', async (Vision) => {
    for (const path of [undefined, null, 5, ''])
      await expect(Vision.open(path as never, {})).rejects.toMatchObject({
        name: 'DesapError',
        code: 'ERR_VALUE',
        message: expect.stringMatching(/^visionEncoder: got .*, wanted the path of a /),
      });
  });

  it('refuses an encoder that is not the one that was read', async () => {
    // The config of another family's folder: two by two patches to a token there, one by one here.
    const folder = join(root, 'mismatched');
    await cp(QWEN, folder, { recursive: true });
    const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'));
    config.vision_config.spatial_merge_size = 1;
    await writeFile(join(folder, 'config.json'), JSON.stringify(config));
    await expect(openVisionModel(folder)).rejects.toMatchObject({ name: 'DesapError' });
  });
});

describe('LLaVA', () => {
  it('needs no text tower where the saliency map alone decides', async () => {
    const clip = join(root, 'vision-only');
    await cp(CLIP, clip, { recursive: true, filter: (path) => !/text_model|tokenizer/.test(path) });
    await using vision = await LlavaVision.open(join(LLAVA, 'onnx/vision_encoder.onnx'), { clip });
    const [image] = await vision.encode(llavaImages(1));
    expect((await image.prune(null, { keep: 4, taskShare: 0 })).indices).toHaveLength(4);
    await expect(image.prune('what is it ?', { keep: 4 })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(
        /^question: got a text, and no text tower in .*vision-only, wanted its embeddings/,
      ),
    });
  });

  it('encodes several images in one run, of at most 1024 rows, and one by one where the tower takes no more', async () => {
    const runs: number[] = [];
    const spied = (refuses: boolean) => {
      const create = async (...given: Parameters<typeof ort.InferenceSession.create>) => {
        const session = await ort.InferenceSession.create(...given);
        const run = session.run.bind(session) as (...all: unknown[]) => Promise<never>;
        session.run = async (feeds: Record<string, ort.Tensor>, ...more: unknown[]) => {
          const [{ dims }] = Object.values(feeds);
          if (dims.length === 4) runs.push(dims[0]);
          if (refuses && dims.length === 4 && dims[0] > 1) throw new Error('a Reshape that knows one image only');
          return run(feeds, ...more);
        };
        return session;
      };
      return { ...ort, InferenceSession: { create } } as unknown as typeof ort;
    };
    const kept: number[][][] = [];
    for (const refuses of [false, true]) {
      await using vision = await LlavaVision.open(join(LLAVA, 'onnx/vision_encoder.onnx'), {
        ...{ clip: CLIP, ort: spied(refuses), keep: 8 },
      });
      await vision.encode(llavaImages(2));
      runs.length = 0;
      const images = await vision.encode(llavaImages(18));
      expect(runs).toEqual(refuses ? new Array(18).fill(1) : [7, 7, 2, 2]);
      const some = await Promise.all(images.map((image) => image.prune('what is it ?')));
      kept.push(some.map(({ indices }) => [...indices]));
    }
    expect(kept[1]).toEqual(kept[0]);
  });
});
