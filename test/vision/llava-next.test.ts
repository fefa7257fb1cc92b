/** LLaVA-NeXT over plain onnxruntime: Hugging Face's ids, unpruned and for given kept sets; its tiles, its newlines, what it refuses. */
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ImageAnalysis } from '../../src/index.js';
import { readModel } from '../../src/onnx/index.js';
import { formatSafeTensors } from '../../src/safetensors.js';
import { Tensor } from '../../src/tensor.js';
import { AnyresImageProcessor } from '../../src/vision/anyres-images.js';
import { type CompactOptions, compact, type VisionInputs } from '../../src/vision/index.js';
import { LlavaNextVision, type LlavaNextVisionOptions } from '../../src/vision/llava-next.js';
import { relativeError } from '../support.js';
import { image as imageOf, type Size } from '../transformers/family-cases.js';
import { PlainLoop } from './plain-loop.js';

const FOLDER = 'test/fixtures/families/llava_next';
const ENCODER = join(FOLDER, 'onnx/vision_encoder.onnx');
const CLIP = join(FOLDER, 'clip');
const IMAGE_TOKEN = 297;
const PATCHES = 16;

interface Ids {
  readonly ids: number[];
  readonly tokens: number;
}
interface Case {
  readonly picture: Size;
  readonly tiles: number;
  readonly tokens: number;
  readonly grid: [rows: number, columns: number];
  readonly layout: { readonly uh: number; readonly uw: number; readonly top: number; readonly left: number };
  readonly input_ids: number[];
  readonly unpruned: number[];
  /** Patches of each tile, those of padding among them. */
  readonly kept: Record<string, number[]>;
  readonly [policy: string]: unknown;
}
interface Expected {
  readonly never_generated: number[];
  readonly max_new_tokens: number;
  readonly cases: Case[];
  readonly counts: { height: number; width: number; tiles: number; tokens: number }[];
}
const expected: Expected = JSON.parse(await readFile(join(FOLDER, 'expected.json'), 'utf8'));

let loop: PlainLoop;
let processor: AnyresImageProcessor;
const opened = new Map<string, LlavaNextVision>();
beforeAll(async () => {
  loop = await PlainLoop.open(FOLDER, IMAGE_TOKEN);
  processor = await AnyresImageProcessor.open(FOLDER);
});
afterAll(async () => {
  await loop.release();
  for (const vision of opened.values()) await vision.dispose();
});

/** One model for each set of options. */
async function visionOf(options: Partial<LlavaNextVisionOptions> = {}): Promise<LlavaNextVision> {
  const key = JSON.stringify(options);
  const vision = opened.get(key) ?? (await LlavaNextVision.open(ENCODER, { clip: CLIP, ...options }));
  opened.set(key, vision);
  return vision;
}

const inputsOf = (...pictures: Size[]) => processor.process(pictures.map(imageOf));

/** Ids of a prompt whose image tokens are replaced by rows. */
async function idsOf(given: Case, kept: CompactOptions['kept'], positions: 'compact' | 'original', features: Tensor) {
  const prompt = compact({ inputIds: given.input_ids, imageTokenId: IMAGE_TOKEN, kept, positions });
  const { max_new_tokens: count, never_generated: never } = expected;
  return loop.generate({ ...prompt, features: [features] }, count, never);
}

/** Where a patch stands among the image's tokens; nowhere where it is padding. */
function placeOf({ grid, layout: { uh, uw, top, left } }: Case, anyres: string, tile: number, patch: number): number[] {
  if (tile === 0 || anyres === 'paper') return [tile * PATCHES + patch];
  const side = Math.sqrt(PATCHES);
  const r = Math.floor((tile - 1) / grid[1]) * side + Math.floor(patch / side) - top;
  const c = ((tile - 1) % grid[1]) * side + (patch % side) - left;
  return r < 0 || c < 0 || r >= uh || c >= uw ? [] : [PATCHES + r * (uw + 1) + c];
}

/** The ids of a case with another number of image tokens. */
function withImageTokens({ input_ids: ids }: Case, count: number): number[] {
  const [first, last] = [ids.indexOf(IMAGE_TOKEN), ids.lastIndexOf(IMAGE_TOKEN)];
  return [...ids.slice(0, first), ...new Array(count).fill(IMAGE_TOKEN), ...ids.slice(last + 1)];
}

describe.each(expected.cases.map((one) => [one.picture.join(' '), one] as const))('LLaVA-NeXT: %s', (_, given) => {
  it('gives all tokens as Hugging Face packs them, and its ids', async () => {
    const vision = await visionOf();
    const [image] = await vision.encode(await inputsOf(given.picture));
    expect(image.tokenCount).toBe(given.tokens);
    expect(image.tiles).toHaveLength(given.tiles);
    const all = await image.all();
    const everything = {
      indices: Int32Array.from({ length: given.tokens }, (_, i) => i),
      assignment: new Int32Array(given.tokens),
    };
    expect(await idsOf(given, everything, 'compact', all)).toEqual(given.unpruned);
    image.dispose();
  });

  it('gives all tokens for K of all patches, where all newlines stay', async () => {
    const [image] = await (await visionOf({ newline: 'all' })).encode(await inputsOf(given.picture));
    const kept = await image.prune('what is it ?', { keep: PATCHES });
    expect([...kept.indices]).toEqual([...kept.indices.keys()]);
    expect(kept.indices).toHaveLength(given.tokens);
    const all = await image.all();
    expect(kept.features.dims).toEqual(all.dims);
    expect(relativeError(kept.features.data as Float32Array, all.data as Float32Array)).toBeLessThan(1e-6);
    expect(await idsOf(given, kept, 'original', kept.features)).toEqual(given.unpruned);
    image.dispose();
  });

  it.each([
    ['model', 'kept-rows', 'compact'],
    ['model', 'kept-rows', 'original'],
    ['model', 'all', 'compact'],
    ['model', 'all', 'original'],
    ['model', 'none', 'compact'],
    ['model', 'none', 'original'],
    ['paper', undefined, 'compact'],
  ] as const)('gives the ids of Hugging Face for given patches: %s %s %s', async (anyres, newline, positions) => {
    const [image] = await (await visionOf({ anyres, ...(newline && { newline }) })).encode(
      await inputsOf(given.picture),
    );
    const { ids, tokens } = given[newline ? `${anyres} ${newline} ${positions}` : anyres] as Ids;
    const places = Object.entries(given.kept).flatMap(([tile, patches]) =>
      patches.flatMap((patch) => placeOf(given, anyres, Number(tile), patch)),
    );
    // A map of ones where patches are given chooses these: an image's K is shared over its tiles by what the map says of them.
    const saliency = new Float32Array(image.tokenCount);
    for (const place of places) saliency[place] = 1;
    const how = { taskShare: 0, saliency, merge: false, allocation: 'image', keep: places.length } as const;
    const kept = await image.prune(null, how);
    expect([...kept.indices].filter((_, k) => kept.source[k] !== 2)).toEqual(places.sort((a, b) => a - b));
    expect(kept.indices).toHaveLength(tokens);
    expect(kept.task).toBe(null);
    const prompt = anyres === 'model' ? given : { ...given, input_ids: withImageTokens(given, image.tokenCount) };
    expect(await idsOf(prompt, kept, positions, kept.features)).toEqual(ids);
    image.dispose();
  });
});

describe('an image in tiles', () => {
  const wide: Size = [4, 100, 30];
  const scene: Size = [3, 96, 70];
  const question = 'what is it ?';

  it('is what it is alone beside others of a call, whose padding takes no part', async () => {
    const vision = await visionOf();
    const both = await inputsOf(wide, scene);
    expect(both.pixelValues.dims).toEqual([2, 5, 3, 32, 32]);
    const together = await vision.encode(both);
    const alone = [...(await vision.encode(await inputsOf(wide))), ...(await vision.encode(await inputsOf(scene)))];
    // All tiles of all images, one after the other, as some programs batch them.
    const flat = await Promise.all([wide, scene].map((one) => inputsOf(one)));
    const data = Float32Array.from(flat.flatMap(({ pixelValues }) => [...(pixelValues.data as Float32Array)]));
    const inARow = await vision.encode({ ...both, pixelValues: new Tensor('float32', data, [9, 3, 32, 32]) });
    for (const [i, image] of alone.entries())
      for (const other of [together[i], inARow[i]]) {
        const [a, b] = await Promise.all([image, other].map((one) => one.prune(question, { keep: 3 })));
        expect(b.indices).toEqual(a.indices);
        expect(relativeError(b.features.data as Float32Array, a.features.data as Float32Array)).toBeLessThan(1e-5);
      }
    for (const image of [...together, ...alone, ...inARow]) image.dispose();
  });

  it('keeps K of each tile, or all of a tile that has fewer, and never a patch of padding', async () => {
    const [image] = await (await visionOf()).encode(await inputsOf(scene));
    // Two rows of four are padding: 12 patches of each tile are the image's.
    expect([...(await image.prune(question, { keep: 14 })).tileCounts]).toEqual([14, 12, 12, 12, 12]);
    const { source, indices, assignment, counts, tileCounts } = await image.prune(question, { keep: 3 });
    expect([...tileCounts]).toEqual([3, 3, 3, 3, 3]);
    expect(source.filter((one) => one !== 2)).toHaveLength(15);
    // Merging stays within a tile, and every unit goes somewhere.
    expect(counts.reduce((sum, count, k) => sum + (source[k] === 2 ? 0 : count), 0)).toBe(16 + 4 * 12);
    const tileOf = (place: number) => {
      if (place < PATCHES) return 0;
      const [row, column] = [Math.floor((place - PATCHES) / 9), (place - PATCHES) % 9];
      return 1 + 2 * Number(row >= 3) + Number(column >= 4);
    };
    for (const [place, k] of assignment.entries())
      if (k >= 0 && source[k] !== 2) expect(tileOf(indices[k])).toBe(tileOf(place));
    await expect(image.prune(question, { keep: 17 })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: /^keep: got 17, wanted a count from 1 to 16/,
    });
    image.dispose();
  });

  it('shares the tokens of the image over its tiles, at least one for each', async () => {
    const [image] = await (await visionOf({ newline: 'none' })).encode(await inputsOf(scene));
    const { tileCounts, indices } = await image.prune(question, { keep: 20, allocation: 'image' });
    expect(indices).toHaveLength(20);
    expect(tileCounts.reduce((sum, count) => sum + count)).toBe(20);
    expect(Math.min(...tileCounts)).toBeGreaterThanOrEqual(1);
    const all = await image.prune(question, { keepRatio: 1, allocation: 'image' });
    expect(all.indices).toHaveLength(16 + 4 * 12);
    image.dispose();
  });

  it('is scored by the patches that are its own', async () => {
    const [image] = await (await visionOf()).encode(await inputsOf(scene));
    const { maps } = await image.prune(question, { keep: 3, maps: true });
    const [whole, first] = await (image as unknown as { analyses(): Promise<ImageAnalysis[]> }).analyses();
    expect([whole.patches, first.patches]).toEqual([16, 12]);
    // Newlines have no score.
    const newlines = Array.from({ length: 6 }, (_, row) => PATCHES + 9 * row + 8);
    for (const place of newlines) expect(maps?.saliency[place]).toBe(0);
    expect(maps?.saliency.filter((value) => value > 0)).toHaveLength(16 + 4 * 12);
    image.dispose();
  });

  it.each([
    [10000, 1, 16, 0],
    [1, 10000, 16 + 4, 4],
  ])('may have nothing in its tiles: %i x %i', async (width, height, tokens, newlines) => {
    const pixels = { data: new Uint8Array(3 * width * height).fill(99), width, height };
    const [image] = await (await visionOf({ newline: 'all' })).encode(await processor.process(pixels));
    expect(image.tokenCount).toBe(tokens);
    const { indices, tileCounts } = await image.prune(question, { keep: 4 });
    expect(indices).toHaveLength(4 + newlines);
    expect([...tileCounts].slice(1).every((count) => count === 0)).toBe(true);
    expect((await image.all()).dims.slice(0, 2)).toEqual([1, tokens]);
    image.dispose();
  });
});

describe('LlavaNextVision refuses', () => {
  let inputs: VisionInputs;
  let folder: string;
  beforeAll(async () => {
    inputs = await inputsOf([3, 96, 70]);
    folder = await mkdtemp(join(tmpdir(), 'desap-next-'));
  });
  afterAll(() => rm(folder, { recursive: true }));
  const sizes = (...edges: number[]) => new Tensor('int64', BigInt64Array.from(edges, BigInt), [edges.length / 2, 2]);

  it.each<[string, () => Partial<Record<keyof VisionInputs, unknown>>, string, RegExp]>([
    ['no pixels', () => ({ pixelValues: undefined }), 'ERR_DTYPE', /^pixelValues: got undefined/],
    ['no sizes', () => ({ imageSizes: undefined }), 'ERR_DTYPE', /^imageSizes: got undefined/],
    [
      'sizes in floats',
      () => ({ imageSizes: new Tensor('float32', new Float32Array(2), [1, 2]) }),
      'ERR_DTYPE',
      /^imageSizes: got/,
    ],
    [
      'sizes of two images',
      () => ({ imageSizes: sizes(70, 96, 70, 96) }),
      'ERR_SHAPE',
      /^pixelValues.dims: got \[1, 5, 3, 32, 32\]/,
    ],
    ['a size of no pixels', () => ({ imageSizes: sizes(0, 96) }), 'ERR_VALUE', /^imageSizes: got 0/],
    [
      'a size of fewer tiles',
      () => ({ imageSizes: sizes(30, 100) }),
      'ERR_SHAPE',
      /^pixelValues.dims: got more than 4 tiles of image 0/,
    ],
    [
      'tiles that are missing',
      () => ({ pixelValues: new Tensor('float32', new Float32Array(4 * 3072), [1, 4, 3, 32, 32]) }),
      'ERR_SHAPE',
      /^pixelValues.dims: got 4 tiles, wanted 5/,
    ],
    [
      'tiles of another size',
      () => ({ pixelValues: new Tensor('float32', new Float32Array(5 * 768), [1, 5, 3, 16, 16]) }),
      'ERR_SHAPE',
      /^pixelValues.dims: got \[1, 5, 3, 16, 16\], wanted \[1, tiles, 3, 32, 32\]/,
    ],
    [
      'inputs of other families',
      () => ({ imageGridThw: sizes(1, 2) }),
      'ERR_VALUE',
      /^inputs: got the unknown option 'imageGridThw'/,
    ],
  ])('%s', async (_, change, code, message) => {
    const given = { ...inputs, ...change() } as VisionInputs;
    const encoded = (await visionOf()).encode(given);
    await expect(encoded).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });

  it('tiles that are not finite, and says so of their image alone', async () => {
    const both = await inputsOf([3, 96, 70], [4, 100, 30]);
    const pixels = (both.pixelValues.data as Float32Array).slice();
    pixels[5 * 3072 + 7] = Number.NaN;
    const [good, bad] = await (await visionOf()).encode({
      ...both,
      pixelValues: new Tensor('float32', pixels, both.pixelValues.dims),
    });
    await expect(bad.prune('what is it ?', { keep: 2 })).rejects.toMatchObject({ code: 'ERR_NOT_FINITE' });
    expect((await good.prune('what is it ?', { keep: 2 })).tileCounts).toHaveLength(5);
    for (const image of [good, bad]) image.dispose();
  });

  it('a folder without the newline vector, unless no newline stays', async () => {
    const bare = join(folder, 'bare');
    await cp(FOLDER, bare, { recursive: true, filter: (path) => !path.endsWith('.safetensors') });
    const encoder = join(bare, 'onnx/vision_encoder.onnx');
    await expect(LlavaNextVision.open(encoder, { clip: CLIP })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(/^newlineVector: got none, wanted the vector of the model's newlines/),
    });
    const none = await LlavaNextVision.open(encoder, { clip: CLIP, newline: 'none' });
    const [image] = await none.encode(inputs);
    expect((await image.prune('what is it ?', { keep: 2 })).indices).toHaveLength(10);
    await expect(image.all()).rejects.toMatchObject({ code: 'ERR_VALUE', message: /^newlineVector: got none/ });
    image.dispose();
    await none.dispose();
    // The same by each way in which the vector may be given.
    const file = join(folder, 'newline.safetensors');
    const vector = new Float32Array(24).fill(0.5);
    await writeFile(file, formatSafeTensors({ 'model.image_newline': { data: vector, shape: [24] } }));
    for (const newlineVector of [vector, file]) {
      const given = await LlavaNextVision.open(encoder, { clip: CLIP, newlineVector });
      const [one] = await given.encode(inputs);
      expect([...((await one.all()).data as Float32Array).slice(-24)]).toEqual([...vector]);
      one.dispose();
      await given.dispose();
    }
    const wrong = LlavaNextVision.open(encoder, { clip: CLIP, newlineVector: new Float32Array(23) });
    await expect(wrong).rejects.toMatchObject({ code: 'ERR_SHAPE', message: /^newlineVector: got 23/ });
    const empty = LlavaNextVision.open(encoder, { clip: CLIP, newlineVector: join(FOLDER, 'config.json') });
    await expect(empty).rejects.toMatchObject({ code: 'ERR_FILE' });
  });

  it.each([
    ['anyres', { anyres: 'tiles' as never }],
    ['newline', { newline: 'some' as never }],
    ['config.image_grid_pinpoints', { config: { image_grid_pinpoints: [[32, 40]] } as never }],
    ['options', { newLine: 'all' } as never],
  ])('a bad %s', async (argument, options) => {
    await expect(LlavaNextVision.open(ENCODER, { clip: CLIP, ...options })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(new RegExp(`^${argument}`)),
    });
  });

  it("another tower than CLIP's, but not one that was trained further, of which it warns", async () => {
    const model = readModel(ENCODER);
    const bytes = await readFile(ENCODER);
    const weight = [...model.initializers.values()].find(
      ({ dims, data }) => dims.join() === '24,48' && 'offset' in data,
    );
    const { offset } = weight!.data as { offset: number };
    const changed = async (name: string, factor: number) => {
      const other = Buffer.from(bytes);
      for (let i = 0; i < 24 * 48; i++) other.writeFloatLE(bytes.readFloatLE(offset + 4 * i) * factor, offset + 4 * i);
      await cp(FOLDER, join(folder, name), { recursive: true });
      await writeFile(join(folder, name, 'onnx/vision_encoder.onnx'), other);
      return LlavaNextVision.open(join(folder, name, 'onnx/vision_encoder.onnx'), { clip: CLIP });
    };
    const warnings: Error[] = [];
    const seen = (warning: Error) => warnings.push(warning);
    process.on('warning', seen);
    await (await changed('tuned', 1.02)).dispose();
    await new Promise((resolve) => setImmediate(resolve));
    process.off('warning', seen);
    expect(warnings.map(({ message }) => message)).toEqual([expect.stringMatching(/was trained further than that of/)]);
    await expect(changed('other', -30)).rejects.toMatchObject({ code: 'ERR_HEAD_MISMATCH' });
  });
});
