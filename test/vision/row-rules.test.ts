/** Rules that say which rows stay inside the tower: the same rows on every device. */
import { afterAll, describe, expect, it } from 'vitest';
import { type Backend, openBackend } from '../../src/index.js';
import { farthestPoints, mostDistant } from '../../src/kernels/farthest-points.js';
import { uniform } from '../../src/onnx/head/pixels.js';
import { nearestKept, unitsThatStay } from '../../src/vision/row-rules.js';
import { ROW_RULES } from '../../src/vision/tower-options.js';
import { devicesUnderTest } from '../support.js';

const [UNITS, WIDTH, HEADS] = [40, 24, 3];
const next = uniform(5);
const floats = (length: number) => Float32Array.from({ length }, () => 2 * next() - 1);
const layer = (rows: number) => ({ weight: floats(rows * WIDTH), bias: floats(rows) });
const hidden = { data: floats((UNITS + 1) * WIDTH), rows: UNITS + 1, cols: WIDTH };
const states = { data: floats(UNITS * WIDTH), rows: UNITS, cols: WIDTH };
const norm = { weight: floats(WIDTH), bias: floats(WIDTH) };
const weights = { heads: HEADS, epsilon: 1e-5, ln1: norm, q: layer(WIDTH), k: layer(WIDTH), v: layer(WIDTH) };
const block = { tap: { hidden, weights }, classToken: true, patches: null };

const open = new Map<string, Backend>();
afterAll(() => {
  for (const backend of open.values()) backend.dispose();
});

describe.each(devicesUnderTest())('%s', (name, options) => {
  const backendOf = async () => {
    const backend = open.get(name) ?? (await openBackend(options));
    open.set(name, backend);
    return backend;
  };
  it.each(ROW_RULES)('%s keeps the rows of the reference', async (by) => {
    const reference = open.get('reference') ?? (await openBackend({ device: 'reference' }));
    open.set('reference', reference);
    for (const count of [1, 2, 13, UNITS - 1]) {
      const kept = await unitsThatStay(by, { backend: await backendOf(), states, block }, count);
      expect([...kept]).toEqual([...(await unitsThatStay(by, { backend: reference, states, block }, count))]);
      expect(new Set(kept).size).toBe(count);
      expect([...kept].sort((a, b) => a - b)).toEqual([...kept]);
    }
  });

  it('distance begins with the row of the largest sum of distances', async () => {
    const first = mostDistant(states);
    const others = farthestPoints(states, Int32Array.of(first), 12);
    const kept = await unitsThatStay('distance', { backend: await backendOf(), states }, 13);
    expect([...kept]).toEqual([first, ...others].sort((a, b) => a - b));
  });

  it('dropped rows go to the kept one of the highest cosine', async () => {
    const kept = Int32Array.of(3, 17, 30);
    const dropped = Int32Array.of(0, 5, 31, 39);
    const nearest = await nearestKept(await backendOf(), states, { kept, dropped });
    const row = (i: number) => states.data.subarray(i * WIDTH, (i + 1) * WIDTH);
    const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, x, i) => sum + x * b[i], 0);
    const cosine = (i: number, j: number) => dot(row(i), row(j)) / Math.sqrt(dot(row(i), row(i)) * dot(row(j), row(j)));
    const wanted = [...dropped].map((one) => [0, 1, 2].sort((a, b) => cosine(one, kept[b]) - cosine(one, kept[a]))[0]);
    expect([...nearest]).toEqual(wanted);
  });
});
