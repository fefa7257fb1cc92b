import { expect, test } from 'vitest';
import { imageSpans } from '../../src/transformers/spans.js';

const IMAGE = 9n;
const GLOBAL = 7n;
const END = 8n;

const spans = (rows: number[][], marks: object) =>
  imageSpans(BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length], IMAGE, marks);

test('an image ends with the piece behind its mark', () => {
  const tiled = [1, 2, 9, 9, 3, 9, 9, 4, 7, 9, 9, 2, 5];
  const twoWhole = [7, 9, 9, 2, 2, 7, 9, 9, 2, 5, 5, 5, 5];
  expect(spans([tiled, twoWhole], { beforeLast: GLOBAL })).toEqual([
    {
      sequence: 0,
      pieces: [
        [2, 3],
        [5, 6],
        [9, 10],
      ],
    },
    { sequence: 1, pieces: [[1, 2]] },
    { sequence: 1, pieces: [[6, 7]] },
  ]);
});

test('an image ends with the piece in front of its mark', () => {
  expect(spans([[6, 3, 9, 9, 3, 9, 8, 6, 9, 9, 8]], { afterLast: END })).toEqual([
    { sequence: 0, pieces: [[2, 3], [5]] },
    { sequence: 0, pieces: [[8, 9]] },
  ]);
});

test('an image ends with its sequence, marked or not', () => {
  const rows = [
    [1, 9, 9, 2, 9],
    [7, 9, 2, 9, 9],
  ];
  expect(spans(rows, { beforeLast: GLOBAL })).toEqual([
    { sequence: 0, pieces: [[1, 2], [4]] },
    { sequence: 1, pieces: [[1]] },
    { sequence: 1, pieces: [[3, 4]] },
  ]);
});

test('without any mark nothing is known', () => {
  expect(spans([[1, 9, 9, 2, 9]], { beforeLast: GLOBAL })).toBeNull();
  expect(spans([[1, 9, 9, 2, 9]], { afterLast: END })).toBeNull();
  expect(spans([[1, 9, 9, 2, 9]], {})).toBeNull();
  expect(spans([[1, 7, 2, 8, 1]], { beforeLast: GLOBAL, afterLast: END })).toBeNull();
});
