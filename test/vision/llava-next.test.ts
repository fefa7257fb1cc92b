/** LLaVA-NeXT over plain onnxruntime: Hugging Face's ids, unpruned and for given kept sets; its tiles, its newlines, what it refuses. */
import { cp, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readSafeTensors, toFloat32 } from '../../src/safetensors.js';
import type { Tensor } from '../../src/tensor.js';
import { AnyresImageProcessor } from '../../src/vision/anyres-images.js';
import { type CompactOptions, compact, type VisionInputs } from '../../src/vision/index.js';
import { LlavaNextVision, type LlavaNextVisionOptions } from '../../src/vision/llava-next.js';
import { relativeError } from '../support.js';
import { imageOf, type Size } from '../transformers/family-cases.js';
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
