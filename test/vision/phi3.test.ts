/** Phi-3.5-vision's kind of encoder, against a reference in PyTorch (test/fixtures/families/phi3_v/make.py). */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readSafeTensors, toFloat32 } from '../../src/safetensors.js';
import { openVisionModel, type VisionInputs, type VisionModel } from '../../src/vision/index.js';
import { Phi3Vision } from '../../src/vision/phi3.js';
import { relativeError } from '../support.js';

const FOLDER = 'test/fixtures/families/phi3_v';
const ENCODER = join(FOLDER, 'onnx/vision_encoder.onnx');
const CLIP = join(FOLDER, 'clip');
const [SIDE, UNITS, E, W] = [32, 4, 16, 20];

interface Case {
  readonly rows: number;
  readonly columns: number;
  readonly tokens: number;
}
const cases: Case[] = JSON.parse(await readFile(join(FOLDER, 'expected.json'), 'utf8'));
const { tensors } = await readSafeTensors(join(FOLDER, 'expected.safetensors'));
const expected = (name: string) => toFloat32(tensors.get(name)!);
const question = { embeddings: { data: expected('question'), dims: [3, E] } };

/** Crops of waves, `more` of them behind those that the size asks for. */
function inputsOf(i: number, more = 0): VisionInputs {
  const { rows, columns } = cases[i];
  const crops = 1 + rows * columns;
  const data = new Float32Array((crops + more) * 3 * SIDE * SIDE);
  for (let at = 0; at < crops * 3 * SIDE * SIDE; at++) data[at] = Math.sin(at * at + i);
  return {
    pixelValues: { data, dims: [1, crops + more, 3, SIDE, SIDE] },
    imageSizes: { data: BigInt64Array.from([rows * SIDE, columns * SIDE], BigInt), dims: [1, 2] },
  };
}

/** Where the tokens of a tile stand: crops as one map with a separator behind each row, a separator, the whole image alike. */
function placesOf({ rows, columns }: Case, tile: number): number[] {
  const stride = 2 * columns + 1;
  const whole = 2 * rows * stride + 1;
  if (tile === rows * columns) return [0, 1, 3, 4].map((place) => whole + place);
  const first = Math.floor(tile / columns) * 2 * stride + (tile % columns) * 2;
  return [first, first + 1, first + stride, first + stride + 1];
}

let vision: VisionModel;
beforeAll(async () => {
  vision = await openVisionModel(FOLDER, { clip: CLIP });
});
afterAll(() => vision.dispose());

describe.each(cases.map((one, i) => [`${one.rows} x ${one.columns} crops`, i] as const))(
  'Phi-3.5-vision, %s',
  (_, i) => {
    const { rows, columns, tokens } = cases[i];
    const tiles = rows * columns + 1;

    it('gives all tokens as the file does, and for K of all units', async () => {
      const [image] = await vision.encode(inputsOf(i));
      expect(image.tokenCount).toBe(tokens);
      expect(image.tiles).toHaveLength(tiles);
      expect((await image.all()).dims).toEqual([1, tokens, W]);
      expect(relativeError((await image.all()).data as Float32Array, expected(`${i}.features`))).toBeLessThan(1e-5);
      const kept = await image.prune(question, { keep: UNITS });
      expect(kept.features.data).toEqual((await image.all()).data);
      expect([...kept.indices]).toEqual([...kept.indices.keys()]);
      image.dispose();
    });

    it('scores the patches, and a token by the mean of its own', async () => {
      const [image] = await vision.encode(inputsOf(i));
      const { maps } = await image.prune(question, { keep: 1, alignment: 'mean', maps: true });
      for (const name of ['task', 'saliency'] as const) {
        const map = maps?.[name] as Float32Array;
        const places = Array.from({ length: tiles }, (_, tile) => placesOf(cases[i], tile)).flat();
        const got = places.map((place) => map[place]);
        expect(relativeError(Float32Array.from(got), expected(`${i}.${name}`)), name).toBeLessThan(1e-4);
      }
      image.dispose();
    });

    it('keeps K of each crop, separators of rows with a kept token, and the one between', async () => {
      const [image] = await vision.encode(inputsOf(i));
      const { indices, source, tileCounts, features, task } = await image.prune(question, { keep: 1, merge: false });
      expect([...tileCounts]).toEqual(new Array(tiles).fill(1));
      expect(task).toEqual({ form: 'clip' });
      const all = (await image.all()).data as Float32Array;
      for (const [k, place] of indices.entries())
        expect((features.data as Float32Array).subarray(k * W, (k + 1) * W)).toEqual(
          all.subarray(place * W, (place + 1) * W),
        );
      const markers = [...indices].filter((_, k) => source[k] === 2);
      const between = 2 * rows * (2 * columns + 1);
      expect(markers).toContain(between);
      const ends = [...indices]
        .filter((_, k) => source[k] !== 2)
        .map((place) => {
          const [from, stride] = place < between ? [0, 2 * columns + 1] : [between + 1, 3];
          return from + Math.floor((place - from) / stride) * stride + stride - 1;
        });
      expect(markers).toEqual([...new Set([...ends, between])].sort((a, b) => a - b));
      image.dispose();
    });
  },
);

describe('Phi3Vision', () => {
  it('takes several images, and crops of padding', async () => {
    const [one, padded] = [inputsOf(0), inputsOf(1, 1)];
    const parts = [one, padded].map(({ pixelValues, imageSizes }) => [
      [...(pixelValues!.data as Float32Array)],
      [...(imageSizes!.data as BigInt64Array)],
    ]);
    const both = await vision.encode({
      pixelValues: {
        data: Float32Array.from(parts.flatMap(([pixels]) => pixels as number[])),
        dims: [2, 5, 3, SIDE, SIDE],
      },
      imageSizes: { data: BigInt64Array.from(parts.flatMap(([, sizes]) => sizes as bigint[])), dims: [2, 2] },
    });
    for (const [i, image] of both.entries())
      expect(relativeError((await image.all()).data as Float32Array, expected(`${i}.features`))).toBeLessThan(1e-5);
    const [alone] = await vision.encode(inputsOf(1));
    const kept = await Promise.all([both[1], alone].map((image) => image.prune(question, { keep: 2 })));
    expect(kept[0].indices).toEqual(kept[1].indices);
    for (const image of [...both, alone]) image.dispose();
  });

  it.each([
    ['all', 7],
    ['none', 0],
  ] as const)('keeps %s of the separators where it is told to', async (newline, markers) => {
    const own = await Phi3Vision.open(ENCODER, { clip: CLIP, newline });
    const [image] = await own.encode(inputsOf(0));
    expect((await image.prune(null, { keep: 1, taskShare: 0 })).indices).toHaveLength(5 + markers);
    image.dispose();
    await own.dispose();
  });

  it.each<[string, () => object, string, RegExp]>([
    ['no sizes', () => ({ ...inputsOf(0), imageSizes: undefined }), 'ERR_DTYPE', /^imageSizes: got undefined/],
    [
      'too few crops',
      () => ({ ...inputsOf(0), pixelValues: inputsOf(1).pixelValues }),
      'ERR_SHAPE',
      /^imageSizes: got 64 x 64 pixels and 3 crops/,
    ],
    [
      'sizes that are no multiples',
      () => ({ ...inputsOf(0), imageSizes: { data: BigInt64Array.from([40n, 32n]), dims: [1, 2] } }),
      'ERR_SHAPE',
      /^imageSizes: got 40 x 32/,
    ],
    [
      'images without crops',
      () => ({ ...inputsOf(0), pixelValues: { data: new Float32Array(3072), dims: [1, 3, 32, 32] } }),
      'ERR_SHAPE',
      /^pixelValues.dims: got/,
    ],
  ])('refuses %s', async (_, inputs, code, message) => {
    await expect(vision.encode(inputs())).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });

  it('refuses another CLIP, and a text where there is no text tower', async () => {
    const other = Phi3Vision.open(ENCODER, { clip: 'test/fixtures/families/llava_next/clip' });
    await expect(other).rejects.toMatchObject({ code: 'ERR_HEAD_MISMATCH' });
    const [image] = await vision.encode(inputsOf(0));
    await expect(image.prune('what is it?', { keep: 1 })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: /^question: got/,
    });
    image.dispose();
  });
});
