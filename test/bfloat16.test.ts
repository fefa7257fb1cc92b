/** `precision: 'bf16'` on the CPU: by this processor's instruction, or emulated as it is defined. */
import { describe, expect, it } from 'vitest';
import { mapErrors, runExpectedItems } from '../bench/precision.js';
import { devices, openBackend, Pruner } from '../src/index.js';
import { normalTensor, provideBfloat16, randomHead, relativeError, values } from './support.js';

const { name, isa } = provideBfloat16();

describe(`${name} bf16`, () => {
  it('is reported, and float32 where nobody accepts less or the instruction set has no such products', () => {
    const cpu = devices().find(({ device }) => device === 'cpu');
    const bfloat16 = cpu && 'bfloat16' in cpu && cpu.bfloat16;
    for (const [precision, set, got] of [
      ['bf16', isa, 'bf16'],
      ['bf16', undefined, bfloat16 ? 'bf16' : 'fp32'],
      ['fp16', isa, 'fp32'],
      ['fp32', isa, 'fp32'],
      [undefined, isa, 'fp32'],
      ['bf16', 'scalar', 'fp32'],
    ] as const) {
      using backend = openBackend({ device: 'cpu', precision, isa: set });
      expect(backend.precision).toBe(got);
    }
  });

  it('is the default instruction set only where it is faster than float32', () => {
    const cpu = devices().find(({ device }) => device === 'cpu');
    if (!cpu || !('bfloat16' in cpu)) throw new Error('no CPU addon');
    expect(cpu.bfloat16).toBe(cpu.isas[0] === isa);
    if (name === 'cpu emulated') return; // where it comes first, being what is tested
    const [x, weight] = [normalTensor(1, 512, 512), normalTensor(2, 512, 512)];
    const shortest = (precision: 'bf16' | 'fp32') => {
      using backend = openBackend({ device: 'cpu', precision, isa, threads: 1 });
      const times = Array.from({ length: 9 }, () => {
        const start = performance.now();
        backend.sync.linear({ x, weight });
        return performance.now() - start;
      });
      return Math.min(...times);
    };
    expect(shortest('bf16') < shortest('fp32')).toBe(cpu.bfloat16);
  });

  it('rounds operands to 8 bits and nothing else', () => {
    using rounding = openBackend({ device: 'cpu', precision: 'bf16', isa });
    using exact = openBackend({ device: 'cpu' });
    const [x, weight] = [normalTensor(1, 50, 96), normalTensor(2, 70, 96)];
    const [got, want] = [rounding, exact].map(({ sync }) => values(sync.linear({ x, weight })));
    expect(relativeError(got, want)).toBeGreaterThan(1e-4);
    expect(relativeError(got, want)).toBeLessThan(1e-2);
    const short = values(normalTensor(3, 50, 96)).map((value) => Math.round(value * 8) / 8);
    const [same, as] = [rounding, exact].map(({ sync }) =>
      values(sync.linear({ x: { data: short, dims: [50, 96] }, weight: { data: short, dims: [50, 96] } })),
    );
    expect(relativeError(same, as)).toBeLessThan(1e-6); // these need no rounding
    const [bits, float] = [rounding, exact].map(({ sync }) => values(sync.unitRows({ x })));
    expect(bits).toEqual(float);
  });

  it('gives the same bits with any number of threads', async () => {
    const head = randomHead(4, { width: 96, heads: 4, projectionDim: 48 });
    const [hidden, text] = [normalTensor(5, 161, 96), normalTensor(6, 7, 48)];
    const results = await Promise.all(
      [1, 2, 3, 5].map(async (threads) => {
        using pruner = await Pruner.load(head, { device: 'cpu', precision: 'bf16', isa, threads });
        const { maps, tokens, indices } = await pruner.prune(hidden, text, { keep: 20, maps: true });
        return { maps, tokens: values(tokens), indices };
      }),
    );
    for (const result of results) expect(result).toEqual(results[0]);
  });

  it('keeps the expected patches of the example model, but for a few', { timeout: 300_000 }, async () => {
    const { maps: exact } = await runExpectedItems({ device: 'reference' });
    const { agreement, maps } = await runExpectedItems({ device: 'cpu', precision: 'bf16', isa });
    expect(agreement.overlap).toBeGreaterThanOrEqual(0.94); // bench/results/precision.md has what was measured
    expect(agreement.same).toBeGreaterThanOrEqual(60);
    expect(agreement.answers).toBeGreaterThanOrEqual(95);
    const { task, saliency } = mapErrors(maps, exact);
    expect(task).toBeLessThan(0.1);
    expect(saliency).toBeLessThan(0.1);
    expect(task).toBeGreaterThan(1e-4); // it did round
  });
});
