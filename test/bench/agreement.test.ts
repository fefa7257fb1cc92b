import { expect, test } from 'vitest';
import { requireAgreement } from '../../bench/head/agreement.js';

const WANT = { indices: [1, 4], assignment: [0, 0, 1, 1], tokens: Float32Array.of(1, -2, 4) };

test('contestants with the same patches and nearly the same tokens agree', () => {
  expect(() => requireAgreement('a', { ...WANT, tokens: Float32Array.of(1, -2, 4.0001) }, WANT)).not.toThrow();
});

test.each([
  ['another patch', { ...WANT, indices: [1, 3] }, '1 indices and 0 assignments'],
  ['a patch too many', { ...WANT, indices: [1, 4, 5] }, '1 indices and 0 assignments'],
  ['another assignment', { ...WANT, assignment: [0, 1, 1, 1] }, '0 indices and 1 assignments'],
  ['other tokens', { ...WANT, tokens: Float32Array.of(1, -2, 4.01) }, 'tokens by 0.002'],
  ['tokens that are no numbers', { ...WANT, tokens: Float32Array.of(1, Number.NaN, 4) }, 'tokens by Infinity'],
])('%s is no agreement', (_, got, message) => {
  expect(() => requireAgreement('a, 2 threads', got, WANT)).toThrow(message);
});
