/** Qwen-VL over plain onnxruntime-node, against what Hugging Face says of the folders. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { AutoProcessor, type Processor } from '@huggingface/transformers';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { compact, type EncodedImage, type QwenImage, QwenVision, type VisionInputs } from '../../src/vision/index.js';
import { normal } from '../support.js';
import { type Case, type Expected, expectedOf, inputsOf, QWEN_FAMILIES, ROOT } from '../transformers/family-cases.js';
import { PlainLoop } from './plain-loop.js';

const CHANNELS = 96;

/** Images of normal numbers with these grids. */
function noise(...grids: [frames: number, rows: number, columns: number][]): VisionInputs {
  const patches = grids.reduce((sum, [t, h, w]) => sum + t * h * w, 0);
  return {
    pixelValues: { data: normal(3, patches * CHANNELS), dims: [patches, CHANNELS] },
    imageGridThw: { data: BigInt64Array.from(grids.flat(), BigInt), dims: [grids.length, 3] },
  };
}

/** onnxruntime-node with a record of its sessions: the extents of their runs' first inputs, and how many are open at once, at most. */
function counting() {
  const runs: string[] = [];
  const sessions = { open: 0, most: 0 };
  const create = async (...given: Parameters<typeof ort.InferenceSession.create>) => {
    const session = await ort.InferenceSession.create(...given);
    const run = session.run.bind(session) as (...all: unknown[]) => Promise<never>;
    sessions.most = Math.max(sessions.most, ++sessions.open);
    const release = session.release.bind(session);
    session.release = () => {
      sessions.open--;
      return release();
    };
    session.run = async (feeds: object, ...more: unknown[]) => {
      runs.push((Object.values(feeds)[0] as ort.Tensor).dims.join('x'));
      return run(feeds, ...more);
    };
    return session;
  };
  return { runs, sessions, ort: { ...ort, InferenceSession: { create } } as unknown as typeof ort };
}

describe.each(QWEN_FAMILIES)('%s', (family) => {
  const folder = join(ROOT, family);
  let expected: Expected;
  let processor: Processor;
  let vision: QwenVision;
  let loop: PlainLoop;
  let imageToken: number;

  beforeAll(async () => {
    expected = await expectedOf(family);
    processor = await AutoProcessor.from_pretrained(folder);
    imageToken = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')).image_token_id;
    vision = await QwenVision.open(join(folder, 'onnx', 'vision_encoder.onnx'));
    loop = await PlainLoop.open(folder, imageToken);
  });
  afterAll(async () => {
    await vision.dispose();
    await loop.release();
  });

  /** Images of a case, with the sequence that each belongs to. */
  async function encoded(given: Case): Promise<{ image: EncodedImage; sequence: number }[]> {
    const { pixel_values: pixelValues, image_grid_thw: imageGridThw } = await inputsOf(processor, given);
    const images = await vision.encode({ pixelValues, imageGridThw });
    const sequences = given.pictures.flatMap((own, sequence) =>
      new Array<number>(given.frames ? 1 : own.length).fill(sequence),
    );
    return images.map((image, i) => ({ image, sequence: sequences[i] }));
  }

  it('gives Hugging Face’s ids for all tokens and for fewer, in a loop over plain onnxruntime', async () => {
    for (const given of expected.cases) {
      const images = await encoded(given);
      const questions = given.prompts.map((prompt) => prompt.split('<|vision_end|>').at(-1)!.split('<|im_end|>')[0]);
      for (const { options, ...wanted } of given.pruned) {
        const what = `${given.name}, ${JSON.stringify(options)}`;
        const { keep, ...how } = options;
        const kept = await Promise.all(
          images.map(({ image, sequence }, i) => {
            const amount = Array.isArray(keep) ? { keep: keep[i] } : keep < 1 ? { keepRatio: keep } : { keep };
            return image.prune(how.taskShare === 0 ? null : questions[sequence], { ...how, ...amount });
          }),
        );
        const list = (key: 'indices' | 'source' | 'assignment') => kept.map((one) => [...one[key]]);
        expect(list('indices'), what).toEqual(wanted.indices);
        expect(list('source'), what).toEqual(wanted.source);
        expect(list('assignment'), what).toEqual(wanted.assignment);
        for (const [sequence, ids] of wanted.ids.entries()) {
          const own = kept.filter((_, i) => images[i].sequence === sequence);
          expect(await answer(given, sequence, own), what).toEqual(ids);
        }
      }
      const all = await Promise.all(images.map(async ({ image }) => whole(image)));
      for (const [sequence, ids] of given.unpruned.entries()) {
        const own = all.filter((_, i) => images[i].sequence === sequence);
        expect(await answer(given, sequence, own), given.name).toEqual(ids);
      }
      for (const { image } of images) image.dispose();
    }
  });

  type Tokens = Pick<Awaited<ReturnType<EncodedImage['prune']>>, 'features' | 'indices' | 'assignment'>;

  async function whole(image: EncodedImage): Promise<Tokens> {
    const places = Int32Array.from({ length: image.tokenCount }, (_, i) => i);
    return { features: await image.all(), indices: places, assignment: places };
  }

  /** The answer to one sequence of a case, without its padding. */
  async function answer(given: Case, sequence: number, kept: readonly Tokens[]): Promise<number[]> {
    const isThere = given.attention_mask[sequence].map((bit) => bit === 1);
    const own = <T>(row: readonly T[]) => row.filter((_, column) => isThere[column]);
    const inputIds = own(given.input_ids[sequence]);
    const positions = given.positions.flatMap((axis) => own(axis[sequence]));
    const positionIds = new ort.Tensor('int64', BigInt64Array.from(positions, BigInt), [3, 1, inputIds.length]);
    const prompt = compact({ inputIds, positionIds, imageTokenId: imageToken, kept });
    const features = kept.map((one) => one.features);
    return loop.generate({ ...prompt, features }, expected.max_new_tokens, expected.never_generated);
  }

  it('closes what it compares with before it opens the encoder, beside which there are its tail and a connector', async () => {
    const { sessions, ort: counted } = counting();
    const opened = await QwenVision.open(join(folder, 'onnx', 'vision_encoder.onnx'), { ort: counted });
    // The encoder, the rest of its last block, the connector; packed features come from the whole encoder.
    const count = family === 'qwen3_vl_packed' ? 2 : 3;
    expect(sessions).toEqual({ open: count, most: count });
    await opened.dispose();
    expect(sessions.open).toBe(0);
  });

  it('encodes images of equal grids in one run, as it does each alone', async () => {
    const { runs, ort: counted } = counting();
    await using several = await QwenVision.open(join(folder, 'onnx', 'vision_encoder.onnx'), { ort: counted });
    const grids: [number, number, number][] = [
      [1, 8, 12],
      [1, 10, 4],
      [1, 8, 12],
      [2, 6, 4],
      [1, 8, 12],
    ];
    const inputs = noise(...grids);
    await several.encode(inputs);
    runs.length = 0;
    const images = await several.encode(inputs);
    expect(runs.filter((extents) => extents.endsWith(`x${CHANNELS}`))).toEqual(['288x96', '40x96', '48x96']);
    let at = 0;
    for (const [i, grid] of grids.entries()) {
      const patches = grid[0] * grid[1] * grid[2];
      const data = (inputs.pixelValues!.data as Float32Array).subarray(at * CHANNELS, (at += patches) * CHANNELS);
      const { imageGridThw } = noise(grid);
      const [alone] = await several.encode({ pixelValues: { data, dims: [patches, CHANNELS] }, imageGridThw });
      expect(images[i].tokenCount).toBe(patches / 4);
      expect((await images[i].all()).data).toEqual((await alone.all()).data);
      const [one, other] = await Promise.all([images[i], alone].map((image) => image.prune('what?', { keep: 3 })));
      expect(one.indices).toEqual(other.indices);
      expect(one.features.data).toEqual(other.features.data);
    }
    expect(images[3].tiles).toEqual([
      { frame: 0, rows: 3, columns: 2 },
      { frame: 1, rows: 3, columns: 2 },
    ]);
  });
});

describe('one encoder', () => {
  const encoder = join(ROOT, 'qwen2_vl/onnx/vision_encoder.onnx');
  let vision: QwenVision;
  let image: QwenImage;
  beforeAll(async () => {
    vision = await QwenVision.open(encoder, { keep: 5 });
    [image] = await vision.encode(noise([1, 8, 12]));
  });
  afterAll(() => vision.dispose());

  it('takes the question as a text or as embeddings, with the mean of the rows as its end', async () => {
    const asked = await vision.encodeQuestion('what is the color?');
    const kept = await image.prune('what is the color?', { taskShare: 1, maps: true });
    expect((await image.prune(asked, { taskShare: 1, maps: true })).maps).toEqual(kept.maps);
    const last = { ...asked, endOfText: asked.embeddings.dims[0] - 1 };
    expect((await image.prune(last, { taskShare: 1, maps: true })).maps?.task).not.toEqual(kept.maps?.task);
  });

  it('tells which row of a question is not finite', async () => {
    const { embeddings } = await vision.encodeQuestion('what is the color?');
    const data = (embeddings.data as Float32Array).slice();
    data[data.length / embeddings.dims[0]] = Number.NaN;
    const bad = { embeddings: { data, dims: embeddings.dims } };
    await expect(image.prune(bad)).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: /^question: .* in row 1,/,
    });
  });

  it('gives the features and the time of each part', async () => {
    const { features, counts, assignment, timings } = await image.prune('what?', { merge: false });
    expect(features.dims).toEqual([1, 5, 32]);
    expect([...counts]).toEqual([1, 1, 1, 1, 1]);
    expect(assignment.filter((place) => place < 0)).toHaveLength(19);
    expect(timings.vision).toBeGreaterThan(0);
    expect((await image.analysis()).saliency()).toHaveLength(24);
  });

  it('asks another table when it is given one', async () => {
    const questions: string[] = [];
    const embedQuestion = async (question: string) => {
      questions.push(question);
      return vision.encodeQuestion('what?');
    };
    await using other = await QwenVision.open(encoder, { embedQuestion });
    const [seen] = await other.encode(noise([1, 8, 12]));
    const kept = await seen.prune('never mind', { keep: 5 });
    expect(kept.indices).toEqual((await image.prune('what?')).indices);
    expect(questions).toEqual(['never mind']);
  });

  const pixels = (dims: number[]) => ({ data: new Float32Array(dims.reduce((a, b) => a * b, 1)), dims });
  const grid = (...values: number[]) => ({ data: BigInt64Array.from(values, BigInt), dims: [values.length / 3, 3] });
  it.each<[string, object, string, RegExp]>([
    ['no inputs', {}, 'ERR_DTYPE', /^pixelValues: got undefined/],
    ['pixels of a flat kind', { pixelValues: pixels([96]) }, 'ERR_SHAPE', /^pixelValues.dims: got \[96\]/],
    ['no grid', { pixelValues: pixels([96, 96]) }, 'ERR_VALUE', /^imageGridThw: got undefined/],
    [
      'a grid of floats',
      { pixelValues: pixels([96, 96]), imageGridThw: pixels([1, 3]) },
      'ERR_VALUE',
      /^imageGridThw: got Object, wanted the grid of each image, \[images, 3\] int64/,
    ],
    [
      'a grid of two numbers',
      { pixelValues: pixels([96, 96]), imageGridThw: { data: new BigInt64Array(2), dims: [1, 2] } },
      'ERR_SHAPE',
      /^imageGridThw.dims: got \[1, 2\]/,
    ],
    [
      'a grid that is not merged whole',
      { pixelValues: pixels([84, 96]), imageGridThw: grid(1, 7, 12) },
      'ERR_VALUE',
      /^imageGridThw: got \[1, 7, 12\] for image 0, wanted .* multiples of 2/,
    ],
    [
      'patches for another grid',
      { pixelValues: pixels([96, 96]), imageGridThw: grid(1, 8, 12, 1, 2, 2) },
      'ERR_SHAPE',
      /^pixelValues.dims: got \[96, 96\], wanted 100 patches, as imageGridThw says/,
    ],
    [
      'patches of another size',
      { pixelValues: pixels([96, 95]), imageGridThw: grid(1, 8, 12) },
      'ERR_SHAPE',
      /^pixelValues: got float32 \[96, 95\], which the vision encoder does not take/,
    ],
    ['a misspelt input', { pixels: pixels([96, 96]) }, 'ERR_VALUE', /^inputs: got the unknown option 'pixels'/],
  ])('refuses %s by name', async (_, inputs, code, message) => {
    await expect(vision.encode(inputs as never)).rejects.toMatchObject({
      name: 'DesapError',
      code,
      message: expect.stringMatching(message),
    });
  });

  it.each<[string, object, RegExp]>([
    ['a CLIP folder', { clip: 'models/tiny-clip' }, /^clip: got 'models\/tiny-clip', wanted none/],
    ['another encoding', { encoding: 'kq' }, /^encoding: got 'kq', wanted 'qq', 'kk', 'vv' or 'qk'/],
    ['an old name', { modelDir: 'x' }, /^options: got the unknown option 'modelDir', wanted model, its name now/],
    ['a misspelt option', { kep: 3 }, /^options: got the unknown option 'kep'/],
  ])('refuses %s', async (_, options, message) => {
    await expect(QwenVision.open(encoder, options)).rejects.toMatchObject({ code: 'ERR_VALUE', message });
  });

  it('refuses what has no table, no config, or another last block', async () => {
    const config = { vision_config: { spatial_merge_size: 2, depth: 3, fullatt_block_indexes: [1] } };
    await expect(QwenVision.open(encoder, { config })).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: /fullatt_block_indexes: got 1, wanted the last block, 2/,
    });
    await expect(QwenVision.open(encoder, { model: 'test' })).rejects.toMatchObject({ code: 'ERR_FILE' });
    await using alone = await QwenVision.open(encoder, {
      config: { vision_config: { spatial_merge_size: 2 } },
      model: 'models/tiny-clip',
    });
    const [seen] = await alone.encode(noise([1, 8, 12]));
    expect((await seen.prune(null, { keep: 4, taskShare: 0 })).indices).toHaveLength(4);
    await expect(seen.prune('what?', { keep: 4 })).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: /embed_tokens\.onnx: got no such file/,
    });
  });
});
