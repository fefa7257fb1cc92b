import { describe, expect, it } from 'vitest';
import { decoderFlops, MODEL_SHAPES, prunerFlops } from '../src/flops.js';

const { decoder, head } = MODEL_SHAPES['llava-1.5-7b'];

describe('flops', () => {
  it('gives the numbers of the paper for LLaVA-1.5-7B, eq. 6', () => {
    expect(decoderFlops(576, decoder) / 1e12).toBeCloseTo(3.82, 2);
    expect(decoderFlops(64, decoder) / 1e12).toBeCloseTo(0.42, 2);
    expect(decoderFlops(576, decoder) / decoderFlops(64, decoder)).toBeCloseTo(9.2, 1);
  });

  it('is linear in layers and grows faster than linearly in tokens', () => {
    expect(decoderFlops(64, { ...decoder, layers: 1 }) * 32).toBe(decoderFlops(64, decoder));
    expect(decoderFlops(128, decoder)).toBeGreaterThan(2 * decoderFlops(64, decoder));
    expect(decoderFlops(0, decoder)).toBe(0);
  });

  it('counts the head of CLIP-L/14-336 like the sum of its matrix products', () => {
    const cost = prunerFlops(head, 64, 30);
    expect(2 * cost.alignment).toBe(2 * 576 * 30 * 768);
    expect((2 * cost.total) / 1e9).toBeCloseTo(7.2, 1);
    expect(cost.total).toBe(
      cost.projections + cost.attention + cost.readOut + cost.saliency + cost.alignment + cost.merging,
    );
    expect(cost.total / (decoderFlops(576, decoder) - decoderFlops(64, decoder))).toBeLessThan(0.002);
  });

  it('keeps every patch without merging cost', () => {
    expect(prunerFlops(head, 576, 8).merging).toBe(0);
  });

  it('pays for every query row without a class token', () => {
    const without = prunerFlops({ ...head, classToken: false }, 64, 8);
    expect(without.saliency).toBe(576 * 576 * 1024);
  });
});
