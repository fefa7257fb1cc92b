/** The processor's peaks. `npm run bench:head` builds the addon that measures them. */
import { createRequire } from 'node:module';

/** What most of a call's products are of. Where nothing else is said, float32 is by the best instruction set of the machine. */
export type Arithmetic = 'float32' | 'float32 by AVX2' | 'bf16';

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

/** Measures the peaks of products that the processor must have; `isa` is its best instruction set. */
export function peaksOf(arithmetic: Arithmetic, isa: string, threads: number): Peaks {
  if (arithmetic === 'bf16') return bfloat16(threads);
  return float32(arithmetic === 'float32' ? isa : 'avx2', threads);
}
