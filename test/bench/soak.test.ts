import { expect, test } from 'vitest';
import { BOUNDS, type Sample, type Steady, trend } from '../../bench/soak/samples.js';

/** An hour of samples of which one number is `at(share of the time)`, with noise that is the same each time. */
function hour(name: Steady, at: (share: number) => number, noise = 0): Sample[] {
  return Array.from({ length: 200 }, (_, i) => {
    const still: Record<keyof Sample, number> = {
      ...{ minutes: (60 * i) / 199, rss: 200, native: 20, heap: 15, external: 4 },
      ...{ descriptors: 28, threads: 19, handles: 0, delay: 5, lateDelay: 9 },
    };
    return { ...still, [name]: at(i / 199) + noise * Math.sin(i * 12.9898) };
  });
}

const names = Object.keys(BOUNDS) as Steady[];

test.each(names)('%s that stays is flat, whatever single samples do', (name) => {
  expect(
    trend(
      hour(name, () => 100),
      name,
    ),
  ).toMatchObject({ median: 100, growth: 0, isFlat: true });
  const peaks = hour(name, () => 100).map((one, i) => (i % 10 === 3 ? { ...one, [name]: 300 } : one));
  expect(trend(peaks, name)).toMatchObject({ growth: 0, isFlat: true });
});

test.each(names)('%s that grows by twice its bound is seen through noise', (name) => {
  const { growth, isFlat } = trend(
    hour(name, (share) => 100 + 2 * BOUNDS[name] * share, BOUNDS[name]),
    name,
  );
  expect(isFlat).toBe(false);
  expect(growth).toBeGreaterThan(1.5 * BOUNDS[name]);
  expect(growth).toBeLessThan(2.5 * BOUNDS[name]);
});

test('a step of first use near the start or the end is no growth, steps that go on are', () => {
  for (const when of [0.15, 0.85]) {
    const step = hour('rss', (share) => (share < when ? 200 : 260), 1);
    expect(trend(step, 'rss').isFlat).toBe(true);
  }
  const stairs = hour('rss', (share) => 200 + 20 * Math.floor(8 * share));
  expect(trend(stairs, 'rss').isFlat).toBe(false);
});

test('a number that falls is flat', () => {
  expect(
    trend(
      hour('heap', (share) => 30 - 10 * share),
      'heap',
    ).isFlat,
  ).toBe(true);
});
