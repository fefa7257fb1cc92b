import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { expectedAccuracy, measure } from '../bench/accuracy.js';
import { Llava } from '../src/cli/llava/llava.js';
import { close, items, keep } from './expected-items.js';

describe('the example model, against an implementation in PyTorch', () => {
  let llava: Llava;
  beforeAll(async () => {
    llava = await Llava.open('models/tiny-llava', { clip: 'models/tiny-clip' });
  });
  afterAll(() => llava?.dispose());

  it('keeps the same patches for the same reasons and gives the same answers', async () => {
    for (const { item, image, question, kept, source, full, pruned } of items) {
      using seen = await llava.see(join('models/eval', image));
      const answer = await seen.answer(question, { keep });
      const indices = [...(answer.pruned?.indices ?? [])];
      if (close.has(item)) {
        // The score at a cut is a tie in float32: one patch for each of the two maps may differ.
        const same = indices.filter((index) => kept.includes(index)).length;
        expect(same, `item ${item}`).toBeGreaterThanOrEqual(kept.length - 2);
      } else {
        expect(indices, `item ${item}`).toEqual(kept);
        expect([...(answer.pruned?.source ?? [])], `item ${item}`).toEqual(source);
      }
      expect(answer.text, `item ${item}, pruned`).toBe(pruned);
      expect((await seen.answer(question, { keep: 'all' })).text, `item ${item}, all tokens`).toBe(full);
    }
  });

  it('reaches the same accuracy over the whole evaluation set', async () => {
    const methods = ['DeSAP as printed, 50/50', 'decoupled similarity without alignment, 50/50'];
    const [measured, accuracy] = await Promise.all([
      measure({ keeps: [16], methods, baselines: false }),
      expectedAccuracy(),
    ]);
    for (const method of methods) {
      const difference = measured.merged[16][method].all - accuracy.merged[16][method].all;
      expect(Math.abs(difference), method).toBeLessThan(2.5);
    }
  });
});
