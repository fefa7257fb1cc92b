import { expect, test } from 'vitest';
import { besidePeak, peakShares } from '../../bench/head/beside-peak.js';

test('a sample is the time, between two measurements of both peaks', async () => {
  const order: string[] = [];
  const measured = [
    { registers: 100, loaded: 90 },
    { registers: 120, loaded: 70 },
  ];
  const peaks = () => {
    order.push('peaks');
    return measured.shift()!;
  };
  const time = async () => {
    order.push('call');
    return 50;
  };
  expect(await besidePeak(time, peaks)).toEqual({ ms: 50, registers: 110, loaded: 80 });
  expect(order).toEqual(['peaks', 'call', 'peaks']);
});

test('a share is the work by its time and by the peak of its own round', () => {
  const samples = [
    { ms: 50, registers: 100, loaded: 80 },
    { ms: 100, registers: 40, loaded: 40 },
  ];
  expect(peakShares(4e9, samples, 'registers')).toEqual([0.8, 1]);
  expect(peakShares(4e9, samples, 'loaded')).toEqual([1, 1]);
});
