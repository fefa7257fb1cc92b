/** Questions and images of whole vision models in SigLIP's space, against the float64 reference of the read-out on the file's own states. */
import { copyFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { BlockWeights, LinearWeights, SiglipHead } from '../../src/index.js';
import { BlockHead } from '../../src/index.js';
import { HIDDEN } from '../../src/onnx/block-values.js';
import { openGraph } from '../../src/onnx/edit.js';
import { siglipFromCheckpoint } from '../../src/onnx/head/siglip-checkpoint.js';
import { readLastBlock } from '../../src/onnx/last-block.js';
import { formatSafeTensors, type WritableTensors } from '../../src/safetensors.js';
import { float32 } from '../../src/tensor.js';
import { openVisionModel, type VisionModel } from '../../src/vision/index.js';
import { SiglipText } from '../../src/vision/siglip-text.js';
import { normal, ROOT, randomBlock, relativeError, values } from '../support.js';

const FIXTURE = join(ROOT, 'test/fixtures/siglip');
const FAMILIES = join(ROOT, 'test/fixtures/families');
const [WIDTH, HEADS] = [32, 4];
const QUESTION = 'what colour is the big dog';

const { head } = await siglipFromCheckpoint(join(FIXTURE, 'model.safetensors'));
const random = randomBlock(9, { width: WIDTH, heads: HEADS, norm: 'layer' });

/** A SigLIP folder with these last two blocks, and the fixture's pooling head and text tower. */
async function siglipOf(blocks: readonly BlockWeights[], pooling: SiglipHead): Promise<string> {
  const tensors: WritableTensors = {};
  const add = (name: string, { weight, bias }: { weight: Float32Array; bias: Float32Array | null }, isNorm = false) => {
    const rows = bias as Float32Array;
    const shape = isNorm ? [rows.length] : [rows.length, weight.length / rows.length];
    tensors[`vision_model.${name}.weight`] = { data: weight, shape };
    tensors[`vision_model.${name}.bias`] = { data: rows, shape: [rows.length] };
  };
  for (const [i, block] of blocks.entries()) {
    add(`encoder.layers.${i}.layer_norm1`, block.norm1, true);
    for (const field of ['q', 'k', 'v', 'out'] as const)
      add(`encoder.layers.${i}.self_attn.${field}_proj`, block[field]);
  }
  const packed = (of: (layer: LinearWeights) => Float32Array) =>
    Float32Array.from([pooling.q, pooling.k, pooling.v].flatMap((layer) => [...of(layer)]));
  const shapes = { in_proj_weight: [3 * WIDTH, WIDTH], in_proj_bias: [3 * WIDTH] };
  const packs = { in_proj_weight: packed(({ weight }) => weight), in_proj_bias: packed(({ bias }) => bias) };
  for (const name of ['in_proj_weight', 'in_proj_bias'] as const)
    tensors[`vision_model.head.attention.${name}`] = { data: packs[name], shape: shapes[name] };
  tensors['vision_model.head.probe'] = { data: pooling.probe, shape: [1, 1, WIDTH] };
  add('head.attention.out_proj', pooling.out);
  add('head.layernorm', pooling.norm, true);
  add('head.mlp.fc1', pooling.fc1);
  add('head.mlp.fc2', pooling.fc2);
  add('post_layernorm', pooling.postNorm, true);
  const folder = await mkdtemp(join(tmpdir(), 'desap-siglip-form-'));
  await mkdir(join(folder, 'onnx'));
  for (const file of ['tokenizer.json', 'tokenizer_config.json', 'onnx/text_model.onnx'])
    await copyFile(join(FIXTURE, file), join(folder, file));
  await writeFile(join(folder, 'model.safetensors'), formatSafeTensors(tensors));
  const vision = { num_attention_heads: HEADS, num_hidden_layers: 2, layer_norm_eps: 1e-6 };
  await writeFile(join(folder, 'config.json'), JSON.stringify({ model_type: 'siglip', vision_config: vision }));
  return folder;
}

/** Pixels, and the side of the square of patches that make a token. */
const CASES = {
  paligemma: { dims: [1, 3, 32, 32], side: 1, seat: 'last' },
  gemma3: { dims: [1, 3, 32, 32], side: 4, seat: 'last' },
  idefics3: { dims: [1, 1, 3, 32, 32], side: 2, seat: 'last' },
  llava_onevision: { dims: [1, 3, 48, 48], side: 1, seat: 'before' },
} as const;

describe.each(Object.entries(CASES))('%s', (family, { dims, seat }) => {
  const file = join(FAMILIES, family, 'onnx/vision_encoder.onnx');
  const encoder = readLastBlock(file);
  const pixels = float32(
    normal(
      1,
      dims.reduce((size: number, extent) => size * extent, 1),
    ),
    dims,
  );
  let folder: string;
  let own: BlockWeights;
  let vision: VisionModel;
  beforeAll(async () => {
    own = await encoder.weights(ort);
    folder = await siglipOf(seat === 'last' ? [random, own] : [own, random], head);
    vision = await openVisionModel(join(FAMILIES, family), { keep: 3, task: 'siglip', siglip: folder, device: 'cpu' });
  });
  afterAll(async () => {
    await vision?.dispose();
    await rm(folder, { recursive: true });
  });

  /** z, v_s and the maps of patches, by the reference on the states that the block takes. */
  async function reference() {
    const session = await openGraph(ort, seat === 'last' ? encoder.tower : encoder.beyond);
    const [input] = session.inputNames;
    const feeds: Record<string, ort.Tensor> = { [input]: new ort.Tensor('float32', values(pixels), dims) };
    if (session.inputNames.includes('pixel_attention_mask'))
      feeds.pixel_attention_mask = new ort.Tensor('bool', new Uint8Array(32 * 32).fill(1), [1, 1, 32, 32]);
    const { [HIDDEN]: hidden } = await session.run(feeds);
    await session.release();
    const block = seat === 'last' ? own : random;
    using exact = await BlockHead.load({ ...block, siglip: head }, { device: 'reference' });
    const { saliency, siglip } = await exact.analyze(float32(hidden.data as Float32Array, hidden.dims));
    await using text = await SiglipText.open(FIXTURE);
    const row = (await text.encode(QUESTION)).embeddings.data as Float32Array;
    const length = Math.hypot(...row);
    const z = values(siglip!.embeddings);
    const task = saliency.map((_, i) => row.reduce((sum, x, c) => sum + (x / length) * z[i * WIDTH + c], 0));
    return { task, saliency, probe: siglip!.probeSaliency };
  }

  /** Means over the patches of each token: squares of a grid, row by row. */
  function pooled(scores: Float32Array, tokens: number): number[] {
    const side = Math.sqrt(scores.length / tokens);
    const [patches, across] = [Math.sqrt(scores.length), Math.sqrt(tokens)];
    const means = new Array<number>(tokens).fill(0);
    for (const [i, score] of scores.entries()) {
      const [row, column] = [Math.floor(i / patches), i % patches];
      means[Math.floor(row / side) * across + Math.floor(column / side)] += score / side ** 2;
    }
    return means;
  }

  it('compares each patch with the question, and pools what it says', async () => {
    const { task, saliency } = await reference();
    const pruned = await vision.prune({ pixelValues: pixels }, QUESTION, { maps: true });
    expect(pruned.task).toEqual({ form: 'siglip' });
    const tokens = pruned.assignment.length;
    expect(relativeError(pruned.maps!.task!, pooled(task, tokens))).toBeLessThan(1e-4);
    expect(relativeError(pruned.maps!.saliency, pooled(saliency, tokens))).toBeLessThan(1e-4);
    expect(pruned.features.dims[1]).toBe(3);
    const salient = await vision.prune({ pixelValues: pixels }, null, { taskShare: 0, maps: true });
    expect(salient.task).toBeNull();
    expect(relativeError(salient.maps!.saliency, pooled(saliency, tokens))).toBeLessThan(1e-4);
  });

  it("takes the probe's attention for a saliency, and words of a question", async () => {
    const { probe } = await reference();
    const siglip = { folder, saliency: 'probe', text: 'words' } as const;
    await using other = await openVisionModel(join(FAMILIES, family), {
      keep: 3,
      task: 'siglip',
      siglip,
      device: 'cpu',
    });
    const pruned = await other.prune({ pixelValues: pixels }, QUESTION, { maps: true });
    expect(relativeError(pruned.maps!.saliency, pooled(probe, pruned.assignment.length))).toBeLessThan(1e-4);
    const { embeddings } = await other.encodeQuestion(QUESTION);
    expect(embeddings.dims).toEqual([4, WIDTH]);
    const asked = (alignment: 'mean' | 'fcma') =>
      other.prune({ pixelValues: pixels }, QUESTION, { maps: true, alignment });
    const [mean, fcma] = [await asked('mean'), await asked('fcma')];
    expect(pruned.maps!.task).toEqual(mean.maps!.task);
    expect(relativeError(fcma.maps!.task!, mean.maps!.task!)).toBeGreaterThan(1e-3);
  });

  it('refuses a question whose end is not there, or not finite, by its name', async () => {
    const [image] = await vision.encode({ pixelValues: pixels });
    const { embeddings } = await vision.encodeQuestion(QUESTION);
    const asked = (more: object) => image.prune({ embeddings, ...more } as never);
    await expect(asked({ endOfText: 1 })).rejects.toThrow(/^endOfText: got 1, wanted an integer from 0 to 0/);
    await expect(asked({ endOfText: new Float32Array(WIDTH).fill(Number.NaN) })).rejects.toThrow(/^endOfText: got NaN/);
    const nan = { data: new Float32Array(WIDTH).fill(Number.NaN), dims: [1, WIDTH] };
    await expect(asked({ embeddings: nan })).rejects.toThrow(/^question: got NaN/);
    image.dispose();
  });

  it('keeps all tokens as the file encodes them', async () => {
    const [image] = await vision.encode({ pixelValues: pixels });
    const all = await image.all();
    const kept = await image.prune(QUESTION, { keep: image.tokenCount });
    expect(kept.features.data).toEqual(all.data);
    image.dispose();
  });
});

it('leaves out tiles by a question in its space, and keeps of the others what it keeps of them anyway', async () => {
  const idefics3 = join(FAMILIES, 'idefics3');
  const own = await readLastBlock(join(idefics3, 'onnx/vision_encoder.onnx')).weights(ort);
  const folder = await siglipOf([random, own], head);
  try {
    const open = (more: object) =>
      openVisionModel(idefics3, { task: 'siglip', siglip: { folder, text: 'words' }, device: 'cpu', ...more });
    await using whole = await open({});
    await using some = await open({ tiles: { keep: 2, by: 'task' } });
    const inputs = {
      pixelValues: float32(normal(7, 5 * 3 * 32 * 32), [1, 5, 3, 32, 32]),
      tileGrids: [[2, 2]] as const,
    };
    const [[want], [got]] = [await whole.encode(inputs), await some.encode(inputs)];
    const how = { keep: 3, merge: false } as const;
    const [wanted, pruned] = [await want.prune(QUESTION, how), await got.prune(QUESTION, how)];
    expect(pruned.task).toEqual({ form: 'siglip' });
    const { taken, by } = pruned.looked!;
    expect([taken.length, by]).toEqual([2, 'task']);
    // The whole view stands behind the tiles.
    const size = want.tokenCount / 5;
    const stays = (place: number) => [...taken, 4].includes(Math.floor(place / size));
    const places = [...wanted.indices].filter(stays);
    expect([...pruned.indices]).toEqual(places);
    const width = wanted.features.dims[2];
    const rows = places.flatMap((place) => {
      const row = wanted.indices.indexOf(place);
      return [...(wanted.features.data as Float32Array).subarray(row * width, (row + 1) * width)];
    });
    expect(relativeError(pruned.features.data as Float32Array, Float32Array.from(rows))).toBeLessThan(1e-5);
    for (const image of [want, got]) image.dispose();
  } finally {
    await rm(folder, { recursive: true });
  }
});

describe('the options', () => {
  const paligemma = join(FAMILIES, 'paligemma');
  it.each<[string, object, RegExp]>([
    ['task without a folder', { task: 'siglip' }, /^siglip: got undefined, wanted the folder of the SigLIP/],
    [
      'a folder without the task',
      { siglip: FIXTURE },
      /^siglip: got a SigLIP beside task: 'llm', wanted task: 'siglip'/,
    ],
    ['another task', { task: 'clip', siglip: FIXTURE }, /^task: got 'clip', wanted 'llm' \| 'siglip'/],
    [
      'another saliency',
      { task: 'siglip', siglip: { folder: FIXTURE, saliency: 'rows' } },
      /^siglip\.saliency: got 'rows', wanted 'columns' \| 'probe'/,
    ],
    [
      'no folder in it',
      { task: 'siglip', siglip: {} },
      /^siglip\.folder: got undefined, wanted the folder of a SigLIP/,
    ],
    [
      'an unknown name',
      { task: 'siglip', siglip: { folder: FIXTURE, path: '' } },
      /^siglip: got the unknown option 'path'/,
    ],
    [
      'another SigLIP',
      { task: 'siglip', siglip: FIXTURE },
      /^siglip: got .*, whose last blocks differ from the vision encoder's by/,
    ],
  ])('refuse %s', async (_, options, message) => {
    await expect(openVisionModel(paligemma, { keep: 3, ...options } as never)).rejects.toThrow(message);
  });

  it('refuse a SigLIP for an encoder that rotates', async () => {
    await expect(
      openVisionModel(join(FAMILIES, 'qwen2_vl'), { keep: 3, task: 'siglip', siglip: FIXTURE }),
    ).rejects.toMatchObject({
      code: 'ERR_HEAD_MISMATCH',
      message: expect.stringMatching(/^siglip: .*rotates queries and keys/),
    });
  });
});
