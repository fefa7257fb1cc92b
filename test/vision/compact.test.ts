import { describe, expect, it } from 'vitest';
import { Tensor } from '../../src/tensor.js';
import { compact } from '../../src/vision/compact.js';

const IMAGE = 9;
const kept = { indices: Int32Array.from([1, 3]), assignment: new Int32Array(4) };
const inputIds = [1, IMAGE, IMAGE, IMAGE, IMAGE, 5, 6];
const numbers = ({ data }: Tensor) => Array.from(data as BigInt64Array, Number);

describe('compact', () => {
  it('renumbers the tokens that stay', () => {
    const prompt = compact({ inputIds, imageTokenId: IMAGE, kept });
    expect(numbers(prompt.inputIds)).toEqual([1, IMAGE, IMAGE, 5, 6]);
    expect(numbers(prompt.attentionMask)).toEqual([1, 1, 1, 1, 1]);
    expect(numbers(prompt.positionIds)).toEqual([0, 1, 2, 3, 4]);
    expect(prompt.nextPosition).toBe(5);
    expect(prompt.inputIds.dims).toEqual([1, 5]);
  });

  it('leaves them at their places', () => {
    const prompt = compact({ inputIds, imageTokenId: IMAGE, kept, positions: 'original' });
    expect(numbers(prompt.positionIds)).toEqual([0, 2, 4, 5, 6]);
    expect(prompt.nextPosition).toBe(7);
  });

  it('does not count padding', () => {
    const attentionMask = BigInt64Array.from([0n, 0n, 1n, 1n, 1n, 1n, 1n, 1n]);
    const padded = new Tensor('int64', BigInt64Array.from([0n, 0n, 1n, 9n, 9n, 9n, 9n, 5n]), [1, 8]);
    const compacted = compact({ inputIds: padded, attentionMask, imageTokenId: IMAGE, kept });
    expect(numbers(compacted.attentionMask)).toEqual([0, 0, 1, 1, 1, 1]);
    expect(numbers(compacted.positionIds)).toEqual([1, 1, 0, 1, 2, 3]);
    const original = compact({ inputIds: padded, attentionMask, imageTokenId: IMAGE, kept, positions: 'original' });
    expect(numbers(original.positionIds)).toEqual([1, 1, 0, 2, 4, 5]);
  });

  it('takes several images in the order of the prompt', () => {
    const second = { indices: Int32Array.from([0]), assignment: new Int32Array(2) };
    const ids = [1, IMAGE, IMAGE, IMAGE, IMAGE, 5, IMAGE, IMAGE, 6];
    const prompt = compact({ inputIds: ids, imageTokenId: IMAGE, kept: [kept, second], positions: 'original' });
    expect(numbers(prompt.inputIds)).toEqual([1, IMAGE, IMAGE, 5, IMAGE, 6]);
    expect(numbers(prompt.positionIds)).toEqual([0, 2, 4, 5, 6, 8]);
  });

  it("gathers the caller's own positions, of one row or of M-RoPE's three", () => {
    const one = new Tensor('int64', BigInt64Array.from([0n, 3n, 4n, 5n, 6n, 9n, 10n]), [1, 7]);
    const prompt = compact({ inputIds, positionIds: one, imageTokenId: IMAGE, kept });
    expect(numbers(prompt.positionIds)).toEqual([0, 4, 6, 9, 10]);
    expect(prompt.nextPosition).toBe(11);
    const rows = [0, 1, 1, 1, 1, 3, 4, 0, 1, 1, 2, 2, 3, 4, 0, 1, 2, 1, 2, 3, 4];
    const three = new Tensor('int64', BigInt64Array.from(rows, BigInt), [3, 1, 7]);
    const mrope = compact({ inputIds, positionIds: three, imageTokenId: IMAGE, kept });
    expect(mrope.positionIds.dims).toEqual([3, 1, 5]);
    expect(numbers(mrope.positionIds)).toEqual([0, 1, 1, 3, 4, 0, 1, 2, 3, 4, 0, 2, 2, 3, 4]);
    expect(mrope.nextPosition).toBe(5);
    expect(() => compact({ inputIds, positionIds: one, positions: 'original', imageTokenId: IMAGE, kept })).toThrow(
      /one of the two/,
    );
    const short = new Tensor('int64', new BigInt64Array(6), [1, 6]);
    expect(() => compact({ inputIds, positionIds: short, imageTokenId: IMAGE, kept })).toThrow(/positionIds.dims/);
    const floats = new Tensor('float32', new Float32Array(7), [1, 7]);
    expect(() => compact({ inputIds, positionIds: floats, imageTokenId: IMAGE, kept })).toThrow(/int64/);
  });

  it('takes negative ids, one for all images or one for each', () => {
    const negative = (first: number, second: number) => [
      1,
      first,
      first,
      first,
      first,
      5,
      second,
      second,
      second,
      second,
    ];
    for (const [inputIds, imageTokenId] of [
      [negative(-300, -300), -300],
      [negative(-1, -2), [-1, -2]],
    ] as const) {
      const prompt = compact({ inputIds, imageTokenId, kept: [kept, kept] });
      const visual = Array.from(prompt.inputIds.data as BigInt64Array).filter((id) => id < 0n);
      expect(visual).toHaveLength(2 * kept.indices.length);
      expect(prompt.inputIds.dims).toEqual([1, 2 + visual.length]);
    }
  });

  it('refuses a prompt that does not fit the patches', () => {
    expect(() => compact({ inputIds: [1, IMAGE, 5], imageTokenId: IMAGE, kept })).toThrow(/1 image tokens.*wanted 4/);
  });

  it('refuses masks, batches, types and forms that it cannot take', () => {
    expect(() => compact({ inputIds, attentionMask: [1, 1], imageTokenId: IMAGE, kept })).toThrow(/attentionMask/);
    const batch = new Tensor('int64', new BigInt64Array(8).fill(9n), [2, 4]);
    expect(() => compact({ inputIds: batch, imageTokenId: IMAGE, kept })).toThrow(/one sequence/);
    const floats = new Tensor('float32', new Float32Array(7), [1, 7]);
    expect(() => compact({ inputIds: floats, imageTokenId: IMAGE, kept })).toThrow(/int64/);
    expect(() => compact({ inputIds, imageTokenId: IMAGE, kept, positions: 'middle' as never })).toThrow(/positions/);
    const beyond = { indices: Int32Array.from([4]), assignment: new Int32Array(4) };
    expect(() => compact({ inputIds, imageTokenId: IMAGE, kept: beyond })).toThrow(/^kept\.indices: got 4, .*0 to 3/);
    expect(() => compact({ inputIds, imageTokenId: IMAGE, kept: [kept, beyond] })).toThrow(/^kept\[1\]\.indices/);
  });

  const good = { inputIds, imageTokenId: IMAGE, kept };
  it.each<[string, object, string, RegExp]>([
    ['nothing', {}, 'ERR_VALUE', /^inputIds: got undefined/],
    ['no image token', { ...good, imageTokenId: undefined }, 'ERR_VALUE', /^imageTokenId: got undefined/],
    ['no result', { ...good, kept: undefined }, 'ERR_VALUE', /^kept: got undefined/],
    ['a result that is none', { ...good, kept: { indices: 4 } }, 'ERR_VALUE', /^kept: got Object/],
    ['a fraction as an id', { ...good, inputIds: [1, 0.5] }, 'ERR_VALUE', /^inputIds\[1\]: got 0\.5/],
    ['a mask that is none', { ...good, attentionMask: null }, 'ERR_VALUE', /^attentionMask: got null/],
    ['positions that are no tensor', { ...good, positionIds: 3 }, 'ERR_VALUE', /^positionIds: got 3/],
    ['an unknown option', { ...good, position: 'compact' }, 'ERR_VALUE', /^options: got the unknown option 'position'/],
  ])('refuses %s by name', (_, options, code, message) => {
    expect(() => compact(options as never)).toThrow(
      expect.objectContaining({ name: 'DesapError', code, message: expect.stringMatching(message) }),
    );
  });
});
