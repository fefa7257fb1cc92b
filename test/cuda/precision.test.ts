/** What each precision costs on the example model: kept patches and answers of 100 questions, against the expected ones. */
import { describe, expect, it } from 'vitest';
import { GPU_PRECISIONS, runExpectedItems } from '../../bench/precision.js';
import { provideCuda } from '../support.js';

const device = provideCuda();

/** Least agreement; bench/results/precision.md has what was measured. A GPU may round its sums differently. */
const LIMITS = {
  fp32: { same: 94, overlap: 0.995, answers: 99 },
  fp16: { same: 85, overlap: 0.985, answers: 97 },
  bf16: { same: 60, overlap: 0.94, answers: 95 },
} as const;

describe.each(GPU_PRECISIONS)(`${device} %s`, (precision) => {
  it('keeps the expected patches', { timeout: 300_000 }, async () => {
    const { agreement } = await runExpectedItems({ device: 'cuda', precision });
    const { same, overlap, answers } = agreement;
    expect(same).toBeGreaterThanOrEqual(LIMITS[precision].same);
    expect(overlap).toBeGreaterThanOrEqual(LIMITS[precision].overlap);
    expect(answers).toBeGreaterThanOrEqual(LIMITS[precision].answers);
  });
});
