import { expect, test } from 'vitest';
import { busyMilliseconds, foreignShare, type LoadReading } from '../../bench/foreign-load.js';
import { ratios, spread } from '../../bench/harness.js';
import { runRounds } from '../../bench/head/rounds.js';
import { headWork } from '../../bench/head/work.js';

test('busy time is all but idle and waiting, without counting guests twice', () => {
  const stat = 'cpu  100 20 30 5000 600 7 8 9 40 5\ncpu0 50 10 15 2500 300 3 4 4 20 2\n';
  expect(busyMilliseconds(stat)).toBe(10 * (100 + 20 + 30 + 7 + 8 + 9));
});

test('foreign load is what was busy and not ours, of all cores', () => {
  const before = { wall: 1000, busy: 5000, own: 300 };
  expect(foreignShare(before, { wall: 1100, busy: 5150, own: 400 }, 2)).toBeCloseTo(50 / 200);
  expect(foreignShare(before, { wall: 1100, busy: 5100, own: 400 }, 2)).toBe(0);
});

/** A machine of one core whose others take these shares of one round after the other. */
function machineWith(shares: readonly number[]): () => LoadReading {
  let readings = 0;
  let busy = 0;
  return () => {
    const round = Math.floor(readings / 2);
    if (readings++ % 2 === 1) busy += 1000 * shares[round];
    return { wall: 1000 * readings, busy, own: 0 };
  };
}

test('a round that others disturbed is dropped, and another takes its place', async () => {
  const order: string[] = [];
  const sampler = (name: string) => () => order.push(name);
  const load = machineWith([0, 40, 0.01]);
  const limits = { rounds: 2, limit: 3, foreign: 0.04 };
  const { samples, dropped, foreign } = await runRounds([sampler('a'), sampler('b')], limits, load);
  expect(order.join('')).toBe('abbaab');
  expect(samples).toEqual([
    [1, 5],
    [2, 6],
  ]);
  expect(dropped).toBe(1);
  expect(foreign).toHaveLength(2);
});

test('a machine that is never quiet is an error, and without a reading all rounds count', async () => {
  const limits = { rounds: 1, limit: 2, foreign: 0.04 };
  await expect(runRounds([() => 1], limits, machineWith([40, 40]))).rejects.toThrow('in all of 2 rounds');
  expect(await runRounds([() => 1], limits, () => null)).toEqual({ samples: [[1]], dropped: 0, foreign: null });
});

test('medians, percentiles and ratios pair by pair', () => {
  const samples = Array.from({ length: 21 }, (_, i) => i);
  expect(spread(samples)).toEqual({ median: 10, low: 2, high: 18 });
  expect(ratios([2, 9, 8], [1, 3, 2])).toEqual({ median: 3, low: 2, high: 4 });
});

test('the work of the head at the shape of LLaVA-1.5 is 4.84 GFLOP, without a class token more', () => {
  const llava = { rows: 577, width: 1024, heads: 16, projectionDim: 768, text: 30, keep: 64, classToken: true };
  expect(headWork(llava) / 1e9).toBeCloseTo(4.84, 2);
  const qwen = { rows: 4096, width: 1280, heads: 16, projectionDim: 1280, text: 30, keep: 455, classToken: false };
  expect(headWork(qwen) / 1e9).toBeCloseTo(166.7, 1);
});
