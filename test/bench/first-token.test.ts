/** The bench of the first token: its models are models, and its sums add up. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { InferenceSession } from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { CLOCKS } from '../../bench/first-token/clock.js';
import { feedsOf } from '../../bench/first-token/inputs.js';
import { measure } from '../../bench/first-token/measure.js';
import { MODELS, type Model, small, tokensOf } from '../../bench/first-token/models.js';
import { imagesOf, type Taken } from '../../bench/first-token/own-tower.js';
import { promptOf, rowsOf, waysOf } from '../../bench/first-token/ways.js';
import { writeEncoder } from '../../bench/first-token/write.js';

const modelOf = (name: string) => MODELS.find((model) => model.name === name) as Model;

describe('blocks that the file does not have', () => {
  const model = modelOf('Qwen2-VL-2B');
  const { blocks, encoder } = model;
  // In front of the blocks 7, a block 10, the same on fewer rows 3, what is behind the blocks 5.
  const [before, block, fewer, behind] = [7, 10, 3, 5];
  const taken = (pixels: number, rest: number): Taken => ({
    sessions: { pixels, rest, tail: 1, connector: 2 },
    ...{ analysis: 4, selection: 6, tokens: 100 },
  });
  const images = imagesOf(model, {
    all: before + encoder.blocks * block + behind,
    own: taken(before + (encoder.blocks - 1) * block, 0),
    fewer: taken(before + block, (encoder.blocks - 2) * fewer),
  });

  it('take what those take that it has', () => {
    expect(images.all).toMatchObject({ tower: before + blocks * block + behind, tokens: 1024 });
    expect(images.kept).toEqual({
      ...{ tower: before + (blocks - 1) * block + 1, connector: 2 },
      ...{ analysis: 4, selection: 6, tokens: 100 },
    });
    expect(images.dropped.tower).toBe(before + 5 * block + (blocks - 6) * fewer + 1);
  });
});

it('half of the tiles beside the whole view takes so much less', () => {
  const model = modelOf('LFM2-VL-450M');
  const image = (tower: number, tokens: number) => ({ tower, analysis: 10, selection: 5, connector: 5, tokens });
  const images = { all: image(980, 1280), kept: image(1000, 140), dropped: image(400, 140) };
  expect(waysOf(model).map((way) => promptOf(way, model, images))).toEqual([1325, 185, 185, 127, 127]);
  const prefill = { 'LFM2-VL-450M': { 1325: 1000, 185: 100, 127: 80 } };
  const rows = rowsOf(model, [{ ...images, prefill }]);
  expect(rows.map(({ parts }) => parts.sum.median)).toEqual([2000, 1120, 520, 692, 332]);
  expect(rows[2].sooner.median).toBeCloseTo(2000 / 520);
});

/** Of SmolVLM's 17 tiles as many as others have. */
const smallest = (model: Model): Model => ({ ...small(model), tiles: Math.min(model.tiles, 5) });

describe.each(MODELS.map((model): [string, Model] => [model.name, smallest(model)]))('%s', (_, model) => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'desap-first-token-'));
  });
  afterAll(() => rm(folder, { recursive: true }));

  it('has an encoder of all its tokens', async () => {
    const { visionEncoder } = await writeEncoder(model, folder);
    const session = await InferenceSession.create(visionEncoder);
    const { image_features: features } = await session.run(feedsOf(model.encoder, model.tiles));
    await session.release();
    const rows = features.size / model.encoder.languageWidth;
    // Newlines are no output of the encoder.
    const newlines = model.modelType === 'llava_next' ? 2 * Math.sqrt(rows / model.tiles) : 0;
    expect(rows + newlines).toBe(tokensOf(model));
    expect((features.data as Float32Array).every(Number.isFinite)).toBe(true);
  });

  it('is opened, pruned, and read with fewer tokens', async () => {
    const lengths = (images: Parameters<typeof promptOf>[2]) =>
      waysOf(model).map((way) => promptOf(way, model, images));
    const [round] = await measure(model, { rounds: 1, now: CLOCKS.wall }, lengths);
    expect(round.kept.tokens).toBeLessThan(round.all.tokens / 5);
    expect(round.dropped.tokens).toBeLessThanOrEqual(round.kept.tokens);
    expect(Object.keys(round.prefill)).toEqual(model.decoders.map(({ name }) => name));
    for (const prefill of Object.values(round.prefill))
      expect(Object.keys(prefill).map(Number)).toEqual([...new Set(lengths(round))].sort((a, b) => a - b));
  });
});
