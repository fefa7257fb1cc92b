/** What a caller's objects become after a call, or between two looks at them, changes no result and breaks nothing. */

import { runInNewContext } from 'node:vm';
import { afterAll, describe, expect, test } from 'vitest';
import { DesapError, HostBuffer, openBackend, type PruneResult, Pruner, type TensorLike } from '../src/index.js';
import { normalTensor, randomHead, values } from './support.js';

const head = randomHead(1, { width: 32, heads: 2, projectionDim: 16 });
const hidden = normalTensor(2, 17, 32);
const text = normalTensor(3, 5, 16);
const data = () => values(hidden).slice();
const saliency = () => Float32Array.from({ length: 16 }, (_, i) => i);
const take = (memory: ArrayBufferView) => structuredClone(memory.buffer, { transfer: [memory.buffer as ArrayBuffer] });

const pruners = await Promise.all(
  (['cpu', 'reference'] as const).map(async (device) => ({
    device,
    pruner: await Pruner.load(head, { device, threads: 2 }),
  })),
);
afterAll(() => {
  for (const { pruner } of pruners) pruner.dispose();
});

/** An option that does something when it is read. */
const reading = (then: () => unknown) => ({
  get keep() {
    then();
    return 3;
  },
});

describe.each(pruners)('$device', ({ pruner }) => {
  const want = pruner.pruneSync(hidden, text, { keep: 3, maps: true });
  const same = (got: PruneResult) => {
    expect(got.indices).toEqual(want.indices);
    expect(got.tokens.data).toEqual(want.tokens.data);
  };

  test('options that change after the call', async () => {
    const options: { keep: number; maps?: boolean } = { keep: 3 };
    const pending = pruner.prune(hidden, text, options);
    options.maps = true;
    options.keep = 5;
    same(await pending);
    expect((await pending).maps).toBeUndefined();
  });

  test('maps that are overwritten or transferred after the call', async () => {
    for (const change of [(map: Float32Array) => map.fill(-7), take]) {
      const [task, salient] = [saliency(), saliency()];
      const pending = pruner.prune(hidden, text, { keep: 3, task, saliency: salient, maps: true });
      change(task);
      change(salient);
      expect((await pending).maps).toEqual({ task: saliency(), saliency: saliency() });
    }
  });

  test('maps that are overwritten after the result', () => {
    const map = saliency();
    const { maps } = pruner.pruneSync(hidden, text, { keep: 3, saliency: map, maps: true });
    map.fill(-7);
    expect(maps?.saliency).toEqual(saliency());
  });

  test('rows and texts that are overwritten after the call', async () => {
    const [rows, words] = [data(), values(text).slice()];
    const pending = pruner.prune({ data: rows, dims: [17, 32] }, { data: words, dims: [5, 16] }, { keep: 3 });
    rows.fill(Number.NaN);
    words.fill(Number.NaN);
    same(await pending);
  });

  test('fields that are something else the second time', async () => {
    let looks = 0;
    const once = <T>(first: T, later: unknown) => (looks++ === 0 ? first : later) as T;
    const fresh = <T>(make: () => T) => {
      looks = 0;
      return make();
    };
    const calls: (() => Promise<PruneResult>)[] = [
      () =>
        pruner.prune(
          {
            data: hidden.data,
            get dims() {
              return once([17, 32], [1000, 32]);
            },
          },
          text,
          { keep: 3 },
        ),
      () =>
        pruner.prune(
          {
            get data() {
              return once(hidden.data, new Float32Array(2));
            },
            dims: [17, 32],
          },
          text,
          { keep: 3 },
        ),
      () =>
        pruner.prune(hidden, text, {
          get keep() {
            return once(3, 1e9);
          },
        }),
      () =>
        pruner.prune(hidden, text, {
          keep: 3,
          get taskShare() {
            return once(0.5, 50);
          },
        }),
      () =>
        pruner.prune(
          hidden,
          {
            embeddings: text,
            get endOfText() {
              return once(4, 1e9);
            },
          },
          { keep: 3 },
        ),
    ];
    for (const call of calls) same(await fresh(call));
  });

  test('memory that goes away while the call is read', async () => {
    const attempts: (() => unknown)[] = [
      () => {
        const rows = data();
        return pruner.pruneSync(
          { data: rows, dims: [17, 32] },
          text,
          reading(() => take(rows)),
        );
      },
      () => {
        const rows = data();
        return pruner.prune(
          { data: rows, dims: [17, 32] },
          text,
          reading(() => take(rows)),
        );
      },
      () => {
        const rows = data();
        const words = {
          get data() {
            take(rows);
            return values(text);
          },
          dims: [5, 16],
        } as TensorLike;
        return pruner.pruneSync({ data: rows, dims: [17, 32] }, words, { keep: 3 });
      },
      () => {
        const memory = Reflect.construct(ArrayBuffer, [544 * 4, { maxByteLength: 544 * 4 }]) as ArrayBuffer & {
          resize(to: number): void;
        };
        const rows = new Float32Array(memory);
        rows.set(data());
        return pruner.pruneSync(
          { data: rows, dims: [17, 32] },
          text,
          reading(() => memory.resize(16)),
        );
      },
      () => {
        const map = saliency();
        const features = {
          get data() {
            take(map);
            return new Float32Array(16);
          },
          dims: [16, 1],
        } as TensorLike;
        return pruner.pruneSync(hidden, text, { keep: 3, saliency: map, features });
      },
    ];
    for (const attempt of attempts)
      await expect((async () => attempt())()).rejects.toMatchObject({ name: 'DesapError', code: 'ERR_DETACHED' });
    same(await pruner.prune(hidden, text, { keep: 3 }));
  });

  test('arrays that say something else of themselves', async () => {
    class Lying extends Float32Array {
      override get length() {
        return 544;
      }
    }
    class Other extends Float32Array {
      static get [Symbol.species]() {
        return Uint8Array as never;
      }
      override subarray(): never {
        return new Float32Array(1) as never;
      }
    }
    await expect(pruner.prune({ data: new Lying(8), dims: [17, 32] }, text, { keep: 3 })).rejects.toMatchObject({
      code: 'ERR_SHAPE',
    });
    const own = Object.defineProperty(new Float32Array(8), 'length', { value: 544 });
    expect(() => pruner.pruneSync({ data: own, dims: [17, 32] }, text, { keep: 3 })).toThrow(DesapError);
    const [first] = await pruner.pruneBatch({ data: new Other(data()), dims: [1, 17, 32] }, text, { keep: 3 });
    same(first);
    const tagged = Object.defineProperty(data(), Symbol.toStringTag, { value: 'X' });
    same(await pruner.prune({ data: tagged, dims: [17, 32] }, text, { keep: 3 }));
  });

  test('values of another realm', async () => {
    const { rows, dims } = runInNewContext('({ rows: new Float32Array(544), dims: [17, 32] })') as {
      rows: Float32Array;
      dims: number[];
    };
    rows.set(data());
    same(await pruner.prune({ data: rows, dims }, text, { keep: 3 }));
    same(await pruner.prune({ data: rows, dims }, text, runInNewContext('({ keep: 3 })') as { keep: number }));
    const kept = runInNewContext('Int32Array.of(0, 1)') as Int32Array;
    expect((await pruner.backend.merge({ features: hidden, kept })).tokens.dims).toEqual([2, 32]);
  });
});

test('a HostBuffer that is disposed of while the call is read', async () => {
  const [{ pruner }] = pruners;
  const buffer = HostBuffer.forTensor('float32', [17, 32]);
  const rows = buffer.tensor('float32', [17, 32]);
  (rows.data as Float32Array).set(data());
  await expect(
    pruner.prune(
      rows,
      text,
      reading(() => buffer.dispose()),
    ),
  ).rejects.toMatchObject({ name: 'DesapError' });
  using backend = openBackend({ device: 'reference' });
  expect(backend.device).toBe('reference');
});
