import { expect, test } from 'vitest';
import { estimate, pairedDifference } from '../../../src/cli/eval/statistics.js';

test('the standard error of right and wrong answers', () => {
  // p = 3/5; sqrt(p (1 - p) / (n - 1)) = sqrt(0.24 / 4).
  const { mean, error } = estimate([1, 0, 1, 1, 0]);
  expect(mean).toBeCloseTo(0.6, 12);
  expect(error).toBeCloseTo(Math.sqrt(0.06), 12);
});

test('the standard error of soft scores', () => {
  // Mean 0.4; squares 0.16 + 0.04 + 0.36 = 0.56; sqrt(0.56 / 2 / 3).
  expect(estimate([0, 0.2, 1]).error).toBeCloseTo(Math.sqrt(0.56 / 6), 12);
});

test('as numpy has them (std with ddof 1)', () => {
  const a = [0.3, 1, 0.6, 0, 1, 0.9, 1, 0];
  const b = [0, 1, 0.3, 0.6, 1, 0, 1, 0.3];
  expect(estimate(a).error).toBeCloseTo(0.15698043554168506, 12);
  const { mean, error } = pairedDifference(a, b);
  expect(mean).toBeCloseTo(0.075, 12);
  expect(error).toBeCloseTo(0.15783128424274537, 12);
});

test('a difference has the error of its pairs, not of both means', () => {
  const hard = [1, 1, 0, 0, 1, 0, 1, 0];
  const better = [1, 1, 0, 0, 1, 1, 1, 0];
  const { mean, error } = pairedDifference(better, hard);
  expect(mean).toBe(1 / 8);
  expect(error).toBeCloseTo(1 / 8, 12); // one of eight: sqrt((7/8) / 7 / 8)
  expect(error).toBeLessThan(estimate(better).error as number);
});

test('one question says nothing of the error', () => {
  expect(estimate([1])).toEqual({ mean: 1, error: null });
});
