/** The processor's peaks. `npm run bench:head` builds the addon that measures them. */
import { createRequire } from 'node:module';

/** What most of a call's products are of. */
export type Arithmetic = 'float32' | 'bf16';

/** GFLOP/s that so many threads reach together. */
export interface Peaks {
  /** Of products in registers and nothing else. */
  readonly registers: number;
  /** Of products whose operands are loaded: lower than the other where a neighbour on the core takes its share. */
  readonly loaded: number;
}

const { float32, bfloat16 } = createRequire(import.meta.url)('../peak/build/Release/peak.node') as {
  float32(isa: string, threads: number): Peaks;
  bfloat16(threads: number): Peaks;
};

/** Measures the peaks of one kind of products. The processor must have them; those of bfloat16 have one instruction set only. */
export function peaksOf(arithmetic: Arithmetic, isa: string, threads: number): Peaks {
  return arithmetic === 'bf16' ? bfloat16(threads) : float32(isa, threads);
}
