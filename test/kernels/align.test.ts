import { afterAll, describe, expect, it } from 'vitest';
import { align } from '../../src/kernels/align.js';
import type { Alignment } from '../../src/kernels/kernels.js';
import { unitRows } from '../../src/kernels/unit-rows.js';
import { float32 } from '../../src/tensor.js';
import { backendsUnderTest, normal, relativeError, values } from '../support.js';

const backends = backendsUnderTest();
afterAll(() => backends.forEach(([, backend]) => void backend.dispose()));

const unit = (seed: number, rows: number, cols: number) =>
  float32(Float32Array.from(unitRows({ data: normal(seed, rows * cols), rows, cols }).data), [rows, cols]);

describe.each(backends)('align on %s', (_, backend) => {
  it('is eq. 3 for one patch and one text token', () => {
    const one = float32(Float32Array.of(0.6, 0.8), [1, 2]);
    const other = float32(Float32Array.of(1, 0), [1, 2]);
    const { task, matrices } = backend.sync.align({
      visual: one,
      text: other,
      global: Float32Array.of(0, 1),
      matrices: true,
    });
    // m = alpha = 0.6, beta = 0: both softmaxes run over one entry, so M_V = alpha and M_T = beta.
    expect(values(matrices!.visualAlignment!)[0]).toBeCloseTo(0.6, 6);
    expect(values(matrices!.textAlignment!)[0]).toBeCloseTo(0, 6);
    expect(task[0]).toBeCloseTo(0.36, 6);
  });

  it.each([
    [1, 1, 16],
    [16, 5, 16],
    [49, 7, 20],
    [145, 30, 64],
    [600, 77, 96],
    [33, 16, 32],
  ])('agrees with float64 for %i patches, %i text tokens, width %i', async (P, T, E) => {
    const [visual, text, global, endOfText] = [unit(1, P, E), unit(2, T, E), unit(3, 1, E), unit(4, 1, E)];
    for (const alignment of ['fcma', 'fcma-clamped', 'mean'] satisfies Alignment[])
      for (const lambda of [0.1, 5, -3]) {
        const want = align(
          { data: values(visual), rows: P, cols: E },
          { data: values(text), rows: T, cols: E },
          values(endOfText),
          values(global),
          alignment,
          lambda,
        );
        const { task, matrices } = await backend.align({
          visual,
          text,
          global,
          endOfText,
          alignment,
          lambda,
          matrices: true,
        });
        expect(relativeError(task, want.task)).toBeLessThan(1e-5);
        expect(relativeError(values(matrices!.similarity), want.similarity)).toBeLessThan(1e-5);
        if (alignment === 'mean') expect(matrices!.visualAlignment).toBeNull();
        else {
          expect(relativeError(values(matrices!.visualAlignment!), want.visualAlignment!)).toBeLessThan(1e-5);
          expect(relativeError(values(matrices!.textAlignment!), want.textAlignment!)).toBeLessThan(1e-5);
        }
      }
  });

  it('takes any lambda: the softmaxes become choices of the largest', () => {
    const [visual, text, global] = [unit(1, 9, 16), unit(2, 4, 16), unit(3, 1, 16)];
    for (const lambda of [1e3, -1e6, 1e6]) {
      const { task } = backend.sync.align({ visual, text, global, lambda });
      expect(task.every(Number.isFinite)).toBe(true);
    }
  });

  it('takes the last text row as the end of the text, and gives no matrices unless asked', () => {
    const [visual, text, global] = [unit(1, 9, 16), unit(2, 4, 16), unit(3, 1, 16)];
    const endOfText = values(text).slice(3 * 16);
    const byDefault = backend.sync.align({ visual, text, global });
    expect(byDefault.task).toEqual(backend.sync.align({ visual, text, global, endOfText }).task);
    expect(byDefault.matrices).toBeNull();
  });
});
