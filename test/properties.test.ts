/**
 * What holds of every prune, whatever its shape, its options and the memory that it is given. A failure names the seed that shows it
 * again, and the smallest case that fast-check finds.
 */
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { DesapError, HostBuffer, type PruneOptions, type PruneResult, Pruner, type TensorLike } from '../src/index.js';
import { select } from '../src/kernels/select.js';
import { floatToHalf, halfToFloat } from '../src/tensor.js';
import { normal, randomHead, relativeError, values } from './support.js';

const RUNS = { numRuns: Number(process.env.DESAP_RUNS ?? 150), seed: 20_26 };

/** Where numbers lie: by themselves, inside of more memory, shared, resizable, or in the addon's. */
const PLACES = ['own', 'inside', 'shared', 'resizable', 'host'] as const;
type Place = (typeof PLACES)[number];

const shapes = fc.record({
  heads: fc.integer({ min: 1, max: 4 }),
  depth: fc.integer({ min: 1, max: 19 }),
  patches: fc.integer({ min: 1, max: 70 }),
  projectionDim: fc.integer({ min: 1, max: 33 }),
  words: fc.integer({ min: 1, max: 9 }),
  classToken: fc.boolean(),
});

const requests = fc.record({
  share: fc.double({ min: 0, max: 1, noNaN: true }),
  asRatio: fc.boolean(),
  taskShare: fc.double({ min: 0, max: 1, noNaN: true }),
  alignment: fc.constantFrom('fcma' as const, 'mean' as const),
  complement: fc.constantFrom('saliency' as const, 'diversity' as const),
  encoding: fc.constantFrom('qq' as const, 'qk' as const, 'kk' as const, 'vv' as const),
  lambda: fc.double({ min: -2, max: 2, noNaN: true }),
  merge: fc.boolean(),
});

const cases = fc.record({
  shape: shapes,
  request: requests,
  place: fc.constantFrom(...PLACES),
  half: fc.boolean(),
  stacked: fc.boolean(),
  seed: fc.integer({ min: 1, max: 1000 }),
});
type Case = typeof cases extends fc.Arbitrary<infer T> ? T : never;

const owned: HostBuffer[] = [];
afterAll(() => {
  for (const buffer of owned) buffer.dispose();
});

/** Memory around a tensor, and the tensor in it. */
function placed(
  data: Float32Array | Uint16Array,
  place: Place,
): { around: ArrayBufferLike; data: Float32Array | Uint16Array } {
  const Class = data.constructor as Float32ArrayConstructor;
  const item = data.BYTES_PER_ELEMENT;
  const before = place === 'inside' || place === 'shared' ? 3 : 0;
  const around = memory(data.byteLength + 2 * before * item, place);
  const view = new Class(around as ArrayBuffer, before * item, data.length);
  view.set(data);
  return { around, data: view };
}

function memory(bytes: number, place: Place): ArrayBufferLike {
  if (place === 'shared') return new SharedArrayBuffer(bytes);
  if (place === 'host') {
    const count = Math.ceil(bytes / 2);
    const buffer = HostBuffer.forTensor('float16', [count], { pinned: false });
    owned.push(buffer);
    return (buffer.tensor('float16', [count]).data as unknown as Uint16Array).buffer;
  }
  const options = place === 'resizable' ? { maxByteLength: 2 * bytes } : undefined;
  return new (ArrayBuffer as new (bytes: number, options?: object) => ArrayBuffer)(bytes, options);
}

function inputs({ shape, place, half, stacked, seed }: Case) {
  const [rows, width] = [shape.patches + Number(shape.classToken), shape.heads * shape.depth];
  const numbers = normal(seed, rows * width);
  const given = placed(half ? Uint16Array.from(numbers, floatToHalf) : numbers, place);
  const hidden: TensorLike = { data: given.data, dims: stacked ? [1, rows, width] : [rows, width] };
  const words = placed(normal(seed + 1, shape.words * shape.projectionDim), place);
  const text: TensorLike = { data: words.data, dims: [shape.words, shape.projectionDim] };
  return { hidden, text, memories: [given.around, words.around] };
}

function optionsOf({ request, shape }: Case): PruneOptions & { encoding: 'qq' | 'qk' | 'kk' | 'vv' } {
  const { share, asRatio, ...rest } = request;
  const keep = Math.max(1, Math.floor(share * shape.patches));
  return { ...rest, maps: true, ...(asRatio ? { keepRatio: keep / shape.patches } : { keep }) };
}

const keepOf = ({ request, shape }: Case) => Math.max(1, Math.floor(request.share * shape.patches));

const bytesOf = (memory: ArrayBufferLike) => Buffer.from(new Uint8Array(memory).slice()).toString('base64');

/** What is true of any result, whatever the device. */
function check(result: PruneResult, one: Case): void {
  const [K, P, width] = [keepOf(one), one.shape.patches, one.shape.heads * one.shape.depth];
  const { indices, source, assignment, counts, tokens, maps } = result;
  expect(indices).toHaveLength(K);
  expect(indices.every((index, k) => index >= 0 && index < P && (k === 0 || index > indices[k - 1]))).toBe(true);
  expect(source.every((by) => by <= 1)).toBe(true);
  expect(tokens.dims).toEqual([K, width]);
  expect(tokens.type).toBe(one.half ? 'float16' : 'float32');
  expect(assignment).toHaveLength(P);
  indices.forEach((index, k) => {
    expect(assignment[index]).toBe(k);
  });
  expect(assignment.every((k) => k >= (one.request.merge ? 0 : -1) && k < K)).toBe(true);
  const members = new Int32Array(K);
  for (const k of assignment) if (k >= 0) members[k]++;
  expect(counts).toEqual(members);
  // The task's share are the largest of its map, and the rest of the saliency.
  const taskKeep = Math.floor(K * one.request.taskShare + 0.5);
  expect(source.filter((by) => by === 0)).toHaveLength(taskKeep);
  const chosen = select(maps!.task, maps!.saliency, K, taskKeep);
  if (one.request.complement === 'saliency') expect(indices).toEqual(chosen.indices);
  else for (const [k, index] of chosen.indices.entries()) if (chosen.source[k] === 0) expect(indices).toContain(index);
}

/** A token is the mean of the patches that went into it. */
function checkMeans({ tokens, assignment, counts, indices }: PruneResult, one: Case, hidden: TensorLike): void {
  const width = one.shape.heads * one.shape.depth;
  const from = one.shape.classToken ? width : 0;
  const rows = one.half ? Float32Array.from(hidden.data as Uint16Array, halfToFloat) : (hidden.data as Float32Array);
  const means = new Float64Array(indices.length * width);
  assignment.forEach((k, patch) => {
    for (let d = 0; d < width && k >= 0; d++) means[k * width + d] += rows[from + patch * width + d] / counts[k];
  });
  const got = one.half
    ? Float32Array.from(
        new Uint16Array((tokens.data as Float32Array).buffer, (tokens.data as Float32Array).byteOffset, means.length),
        halfToFloat,
      )
    : values(tokens);
  expect(relativeError(got, means)).toBeLessThan(one.half ? 1e-3 : 1e-5);
}

const headOf = ({ shape, seed }: Case) => {
  const { heads, depth, projectionDim, classToken } = shape;
  return randomHead(seed, { width: heads * depth, heads, projectionDim, classToken });
};

const plainly = ({ timings: _, ...rest }: PruneResult) => rest;

describe('every prune', () => {
  it(
    'keeps K patches by rank, merges the others into means, and gives the reference its maps',
    { timeout: 300_000 },
    () =>
      fc.assert(
        fc.asyncProperty(cases, async (one) => {
          const { hidden, text, memories } = inputs(one);
          const before = memories.map(bytesOf);
          using pruner = await Pruner.load(headOf(one), { device: 'cpu', threads: 2 });
          using reference = await Pruner.load(headOf(one), { device: 'reference' });
          const asked = optionsOf(one);
          const result = await pruner.prune(hidden, text, asked);
          check(result, one);
          checkMeans(result, one, hidden);
          const wanted = reference.pruneSync(hidden, text, asked);
          check(wanted, one);
          expect(relativeError(result.maps!.task!, wanted.maps!.task!)).toBeLessThan(1e-4);
          expect(relativeError(result.maps!.saliency, wanted.maps!.saliency)).toBeLessThan(1e-4);
          // In place, from a copy, and in two steps: the same bits.
          expect(plainly(pruner.pruneSync(hidden, text, asked))).toEqual(plainly(result));
          const { encoding, ...question } = asked;
          using image = await pruner.analyze(hidden, { encoding });
          expect(plainly(await image.prune(text, question))).toEqual(plainly(result));
          expect(memories.map(bytesOf)).toEqual(before);
        }),
        RUNS,
      ),
  );

  it('gives the same bits wherever its numbers lie', { timeout: 300_000 }, () =>
    fc.assert(
      fc.asyncProperty(cases, async (one) => {
        using pruner = await Pruner.load(headOf(one), { device: 'cpu', threads: 1 });
        const [first, ...others] = await Promise.all(
          PLACES.map(async (place) => {
            const { hidden, text } = inputs({ ...one, place });
            return plainly(await pruner.prune(hidden, text, optionsOf(one)));
          }),
        );
        for (const other of others) expect(other).toEqual(first);
      }),
      { ...RUNS, numRuns: Math.ceil(RUNS.numRuns / 3) },
    ),
  );
});

describe('every wrong argument is refused by a DesapError, or does no harm', () => {
  const anything = fc.anything({
    withBigInt: true,
    withDate: true,
    withMap: true,
    withNullPrototype: true,
    withSet: true,
    withSparseArray: true,
    withTypedArray: true,
  });
  const small: Case = {
    shape: { heads: 2, depth: 8, patches: 16, projectionDim: 12, words: 3, classToken: true },
    request: {
      share: 0.5,
      asRatio: false,
      taskShare: 0.5,
      alignment: 'fcma',
      complement: 'saliency',
      encoding: 'qq',
      lambda: 0.1,
      merge: true,
    },
    place: 'own',
    half: false,
    stacked: false,
    seed: 1,
  };
  const { hidden, text, memories } = inputs(small);
  const tensors = fc.oneof(
    anything,
    fc.record(
      { data: anything, dims: fc.oneof(anything, fc.constant([17, 16])), type: anything },
      { requiredKeys: [] },
    ),
    fc.record({
      data: fc.constantFrom(hidden.data, text.data),
      dims: fc.array(fc.oneof(fc.integer(), fc.double()), { maxLength: 5 }),
    }),
    fc.record({
      type: fc.constantFrom('bfloat16', 'float16', 'float64'),
      data: fc.constant(new Uint16Array(17 * 16)),
      dims: fc.constant([17, 16]),
    }),
  );
  const NAMES = ['keep', 'keepRatio', 'taskShare', 'complement', 'distances', 'alignment', 'lambda', 'merge'] as const;
  const MORE = ['task', 'saliency', 'features', 'maps', 'matrices', 'encoding', 'method', 'seed', 'other'] as const;
  const given = fc.dictionary(
    fc.constantFrom<string>(...NAMES, ...MORE),
    fc.oneof(anything, fc.integer(), fc.double()),
    { maxKeys: 4 },
  );

  it.each(['cpu', 'reference'] as const)('%s', { timeout: 300_000 }, async (device) => {
    using pruner = await Pruner.load(headOf(small), { device });
    const good = plainly(await pruner.prune(hidden, text, { keep: 8 }));
    const before = memories.map(bytesOf);
    const calls: ((x: unknown, t: unknown, o: unknown) => unknown)[] = [
      (x, t, o) => pruner.prune(x as never, t as never, o as never),
      (x, t, o) => pruner.pruneSync(x as never, t as never, o as never),
      (x, t, o) => pruner.pruneBatch([hidden, x] as never, t as never, o as never),
      (x) => pruner.analyze(x as never).then((image) => image.dispose()),
    ];
    await fc.assert(
      fc.asyncProperty(
        fc.nat(calls.length - 1),
        fc.oneof(tensors, fc.constant(hidden)),
        fc.oneof(tensors, fc.constant(text)),
        fc.oneof(anything, given, fc.constant({ keep: 8 })),
        async (which, x, t, o) => {
          try {
            await calls[which](x, t, o);
          } catch (error) {
            expect(error).toBeInstanceOf(DesapError);
            expect((error as DesapError).code).not.toMatch(/INTERNAL|OUT_OF_MEMORY|LOST/);
          }
        },
      ),
      { ...RUNS, numRuns: 20 * RUNS.numRuns },
    );
    expect(plainly(await pruner.prune(hidden, text, { keep: 8 }))).toEqual(good);
    expect(memories.map(bytesOf)).toEqual(before);
  });
});
