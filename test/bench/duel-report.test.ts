import { expect, test } from 'vitest';
import type { Duel, Row } from '../../bench/head/duel.js';
import { duelReport } from '../../bench/head/duel-report.js';

const exactly = (x: number) => ({ median: x, low: x, high: x });
const row = (contestant: string, threads: number, arithmetic: Row['arithmetic'], shares: Row['shares']): Row => {
  return { contestant, threads, arithmetic, ms: exactly(40), ratio: exactly(1.5), shares };
};
const DUEL: Duel = {
  rows: [
    row('desap, float32', 1, 'float32', { registers: exactly(0.8), loaded: exactly(0.9) }),
    row('PyTorch, eager, bfloat16', 1, 'bf16', { registers: exactly(0.4), loaded: exactly(0.5) }),
    row('desap, float32', 2, 'float32', { registers: exactly(0.7), loaded: exactly(0.75) }),
    row('JavaScript reference', 1, 'float32', null),
  ],
  peaks: [
    { threads: 1, arithmetic: 'float32', registers: exactly(170), loaded: exactly(160) },
    { threads: 1, arithmetic: 'bf16', registers: exactly(340), loaded: exactly(320) },
  ],
  gflop: 4.84,
  rounds: { counted: 21, dropped: 2, foreign: exactly(0.01) },
  reference: { counted: 3, dropped: 0 },
  torch: '2.9.1',
  notes: ['Something was not measured.'],
};

test('the report has a row per contestant by threads, with shares of both peaks, and the peaks of both kinds of products', () => {
  const tables = duelReport(DUEL).filter((line) => line.startsWith('|'));
  expect(tables.slice(2, 6)).toEqual([
    '| 1 | desap, float32 | 40.0 (40.0 - 40.0) |  | 0.800 (0.800 - 0.800) | 0.900 (0.900 - 0.900) |',
    '| 1 | PyTorch, eager, bfloat16 | 40.0 (40.0 - 40.0) | 1.50 (1.50 - 1.50) | 0.400 (0.400 - 0.400) | 0.500 (0.500 - 0.500) |',
    '| 1 | JavaScript reference | 40.0 (40.0 - 40.0) | 1.50 (1.50 - 1.50) |  |  |',
    '| 2 | desap, float32 | 40.0 (40.0 - 40.0) |  | 0.700 (0.700 - 0.700) | 0.750 (0.750 - 0.750) |',
  ]);
  expect(tables.slice(8)).toEqual([
    '| 1 | float32 multiply-adds | 170 (170 - 170) | 160 (160 - 160) |',
    '| 1 | bfloat16 products | 340 (340 - 340) | 320 (320 - 320) |',
  ]);
});

test('the report names the version of PyTorch where it competed, and what was not measured', () => {
  expect(duelReport(DUEL).join('\n')).toContain('PyTorch 2.9.1, in a process of its own');
  const without = duelReport({ ...DUEL, torch: null });
  expect(without.join('\n')).not.toContain('in a process of its own');
  expect(without).toContain('Something was not measured.');
});
