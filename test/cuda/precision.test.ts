/** What each precision costs on the example model: kept patches and answers of 100 questions, against the expected ones. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Llava } from '../../src/runtimes/llava.js';
import { items, keep } from '../expected-items.js';
import { provideCuda } from '../support.js';

const device = provideCuda();

/**
 * Of 100 questions: how many keep the expected patches exactly, the share of patches in common, how many answers are equal. Emulated:
 * 100, 1 and 100 in strict; 94, 0.996 and 100 in fast; 70, 0.964 and 99 in bf16. A card may round its sums differently.
 */
const LIMITS = {
  strict: { same: 94, overlap: 0.995, answers: 99 },
  fast: { same: 85, overlap: 0.985, answers: 97 },
  bf16: { same: 60, overlap: 0.94, answers: 95 },
} as const;

describe.each(Object.entries(LIMITS))(`${device} %s`, (precision, limits) => {
  it('keeps the expected patches', { timeout: 300_000 }, async () => {
    const llava = await Llava.open('models/tiny-llava', {
      clip: 'models/tiny-clip',
      device: 'cuda',
      precision: precision as keyof typeof LIMITS,
    });
    const found = { same: 0, common: 0, answers: 0 };
    for (const { image, question, kept, pruned } of items) {
      using seen = await llava.see(join('models/eval', image));
      const answer = await seen.answer(question, { keep });
      const common = [...(answer.pruned?.indices ?? [])].filter((index) => kept.includes(index)).length;
      found.common += common / keep;
      found.same += Number(common === keep);
      found.answers += Number(answer.text === pruned);
    }
    await llava.dispose();
    expect(found.same).toBeGreaterThanOrEqual(limits.same);
    expect(found.common / items.length).toBeGreaterThanOrEqual(limits.overlap);
    expect(found.answers).toBeGreaterThanOrEqual(limits.answers);
  });
});
