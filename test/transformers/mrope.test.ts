import { readFile } from 'node:fs/promises';
import { describe, expect, it } from 'vitest';
import { type MropeInputs, mropePositions } from '../../src/transformers/mrope.js';
import { QWEN_FAMILIES, videosOf } from './family-cases.js';

describe.each(QWEN_FAMILIES)('%s', async (family) => {
  const cases = await videosOf(family);
  const config = JSON.parse(await readFile(`test/fixtures/families/${family}/config.json`, 'utf8'));

  it.each(cases.map((given) => [given.name, given] as const))('%s: positions of Hugging Face', (_, given) => {
    const columns = given.input_ids[0].length;
    const { positions, deltas } = mropePositions({
      ids: BigInt64Array.from(given.input_ids.flat(), BigInt),
      dims: [given.input_ids.length, columns],
      mask: BigInt64Array.from(given.attention_mask.flat(), BigInt),
      image: { token: BigInt(config.image_token_id), grids: given.image_grid_thw },
      video: { token: BigInt(config.video_token_id), grids: given.video_grid_thw },
      merge: 2,
      tokensPerSecond: config.vision_config.tokens_per_second,
      seconds: given.second_per_grid_ts ?? undefined,
    });
    expect(Array.from(positions, Number)).toEqual(given.positions.flat(2));
    // What is generated goes on behind the last token.
    expect(Array.from(deltas, Number)).toEqual(given.positions[0].map((row) => row[columns - 1] + 1 - columns));
  });
});

describe('grids that are not the prompt’s', () => {
  const [text, image, video] = [1n, 5n, 6n];
  const prompt = (ids: bigint[], given: Partial<MropeInputs>) => () =>
    mropePositions({
      ids: BigInt64Array.from(ids),
      ...{ dims: [1, ids.length], mask: null, merge: 2, tokensPerSecond: undefined, seconds: undefined },
      ...{ image: { token: image, grids: [] }, video: { token: video, grids: [] } },
      ...given,
    });
  it.each([
    [
      'too few',
      [text, video, text, video],
      [[1, 2, 2]],
      /^video_grid_thw: got grids for 1, wanted grids for 2, as many/,
    ],
    [
      'of other frames',
      [text, video, text, video],
      [[3, 2, 2]],
      /^video_grid_thw: got grids for 1, wanted grids for 2/,
    ],
    [
      'of more tokens',
      [text, video, text],
      [[1, 2, 4]],
      /^video_grid_thw: got a grid of 2 tokens, wanted 1, as the prompt/,
    ],
  ] as const)('%s', (_, ids, grids, message) => {
    const error = expect.objectContaining({ code: 'ERR_VALUE', message: expect.stringMatching(message) });
    expect(prompt([...ids], { video: { token: video, grids } })).toThrow(error);
  });

  it('an image without a grid', () => {
    expect(prompt([text, image], {})).toThrow(/^image_grid_thw: got grids for 0, wanted grids for 1/);
  });
});
