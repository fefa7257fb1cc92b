/** A trained model in tiles, against an implementation in PyTorch (models/MODEL_CARD_NEXT.md): the patches that it keeps, and its answers. */
import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { Tensor } from '../../src/tensor.js';
import { AnyresImageProcessor } from '../../src/vision/anyres-images.js';
import { compact, type EncodedImage, type KeptPatches } from '../../src/vision/index.js';
import { LlavaNextVision } from '../../src/vision/llava-next.js';
import { PlainLoop } from './plain-loop.js';

const FOLDER = 'models/tiny-llava-next';
const PATCHES = 144;

interface Item {
  readonly image: string;
  readonly question: string;
  /** The answer with all tokens. */
  readonly all: string;
  /** Patches of each tile, 16 of each. */
  readonly kept: readonly (readonly number[])[];
  /** The answer with these, merged, at their original positions, with the newlines of their rows. */
  readonly paper: string;
}
const items: readonly Item[] = JSON.parse(readFileSync('models/expected-next.json', 'utf8'));

/** Patches whose scores at a cut are the same in float32: they differ by 3e-7 relative. */
const TIES: ReadonlyMap<string, number> = new Map([['images/010.png what shape is the cyan thing ?', 1]]);

let vision: LlavaNextVision;
let loop: PlainLoop;
let tokenizer: Tokenizer;
let imageToken: number;
beforeAll(async () => {
  const json = async (name: string) => JSON.parse(await readFile(join(FOLDER, name), 'utf8'));
  imageToken = (await json('config.json')).image_token_id;
  tokenizer = new Tokenizer(await json('tokenizer.json'), await json('tokenizer_config.json'));
  loop = await PlainLoop.open(FOLDER, imageToken);
  vision = await LlavaNextVision.open(join(FOLDER, 'onnx/vision_encoder.onnx'), { clip: 'models/tiny-clip' });
});
afterAll(async () => {
  await Promise.all([vision?.dispose(), loop?.release()]);
});

/** The one word of an answer. */
async function answer(image: EncodedImage, question: string, kept: KeptPatches, features: Tensor): Promise<string> {
  const { ids } = tokenizer.encode(`<image>${question}<ans>`);
  ids.splice(ids.indexOf(imageToken), 1, ...new Array(image.tokenCount).fill(imageToken));
  const prompt = compact({ inputIds: ids, imageTokenId: imageToken, kept, positions: 'original' });
  return tokenizer.decode(await loop.generate({ ...prompt, features: [features] }, 1, []), {
    skip_special_tokens: true,
  });
}

/** Of each tile, the patches of kept units: the tiles are two by two, the image is a square. */
function patchesOf(indices: Int32Array, source: Uint8Array): number[][] {
  const tiles: number[][] = [[], [], [], [], []];
  const side = Math.sqrt(PATCHES);
  for (const [k, place] of indices.entries()) {
    if (source[k] === 2) continue;
    if (place < PATCHES) {
      tiles[0].push(place);
      continue;
    }
    const [row, column] = [Math.floor((place - PATCHES) / (2 * side + 1)), (place - PATCHES) % (2 * side + 1)];
    const tile = 1 + 2 * Math.floor(row / side) + Math.floor(column / side);
    tiles[tile].push((row % side) * side + (column % side));
  }
  return tiles.map((tile) => tile.sort((a, b) => a - b));
}

it('keeps the same patches of each tile and gives the same answers', async () => {
  const images = await AnyresImageProcessor.open(FOLDER);
  const wrong: string[] = [];
  let name = '';
  let image: EncodedImage | null = null;
  for (const item of items) {
    if (item.image !== name) {
      image?.dispose();
      [image] = await vision.encode(await images.process(join('models/eval-next', item.image)));
      name = item.image;
    }
    const seen = image as EncodedImage;
    expect(seen.tokenCount).toBe(744);
    const kept = await seen.prune(item.question, { keep: 16 });
    const about = `${item.image} ${item.question}`;
    const tiles = patchesOf(kept.indices, kept.source);
    const other = tiles.flatMap((tile, t) => tile.filter((patch) => !item.kept[t].includes(patch)));
    if (tiles.some((tile) => tile.length !== 16) || other.length > (TIES.get(about) ?? 0)) wrong.push(`${about}: kept`);
    if ((await answer(seen, item.question, kept, kept.features)) !== item.paper) wrong.push(`${about}: answer`);
    const all = { indices: Int32Array.from({ length: 744 }, (_, i) => i), assignment: new Int32Array(744) };
    if ((await answer(seen, item.question, all, await seen.all())) !== item.all) wrong.push(`${about}: all`);
  }
  image?.dispose();
  expect(wrong).toEqual([]);
}, 120_000);
