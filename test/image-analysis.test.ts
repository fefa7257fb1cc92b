/** An analysis from parts prunes as the head's own does that has the same parts; and pruning without a text. */
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterAll, describe, expect, it } from 'vitest';
import { type DeviceOptions, HostBuffer, ImageAnalysis, openBackend, Pruner } from '../src/index.js';
import { float32, floatToHalf } from '../src/tensor.js';
import { devicesUnderTest, normal, normalTensor, randomHead, relativeError, values } from './support.js';

setFlagsFromString('--expose-gc');
const gc = runInNewContext('gc') as () => void;

const SHAPE = { width: 48, heads: 4, projectionDim: 40 };
const [PATCHES, TEXT] = [60, 7];
const text = { embeddings: normalTensor(3, TEXT, SHAPE.projectionDim), endOfText: 4 };

const parts = (seed = 1, patches = PATCHES) => ({
  patchEmbeddings: normalTensor(seed, patches, SHAPE.projectionDim),
  global: normal(seed + 10, SHAPE.projectionDim),
  saliency: normal(seed + 20, patches).map(Math.abs),
  features: normalTensor(seed + 30, patches, 20),
});

describe.each(devicesUnderTest())('an analysis from parts on %s', (_, options) => {
  const backend = openBackend(options);
  afterAll(() => backend.dispose());
  const exact = { device: 'reference' } as const;

  it.each([true, false])('prunes as the analysis that has these parts (class token %s)', async (classToken) => {
    using pruner = await Pruner.load(randomHead(5, { ...SHAPE, classToken }), options);
    const hidden = normalTensor(6, PATCHES + Number(classToken), SHAPE.width);
    using own = await pruner.analyze(hidden);
    using made = await ImageAnalysis.from(
      {
        patchEmbeddings: own.patchEmbeddings(),
        global: classToken ? own.global() : undefined,
        saliency: own.saliency(),
        features: float32(values(hidden).slice(Number(classToken) * SHAPE.width), [PATCHES, SHAPE.width]),
      },
      pruner.backend,
    );
    expect([made.rows, made.patches]).toEqual([PATCHES, PATCHES]);
    const choice = { keep: 16, maps: true, matrices: true };
    const [want, got] = [await own.prune(text, choice), await made.prune(text, choice)];
    expect(got.indices).toEqual(want.indices);
    expect(got.source).toEqual(want.source);
    expect(got.assignment).toEqual(want.assignment);
    expect(got.counts).toEqual(want.counts);
    expect(got.tokens.data).toEqual(want.tokens.data);
    expect(got.maps?.saliency).toEqual(want.maps?.saliency);
    expect(relativeError(got.maps!.task!, want.maps!.task!)).toBeLessThan(1e-4);
    expect(relativeError(values(got.matrices!.similarity), values(want.matrices!.similarity))).toBeLessThan(1e-5);
  });

  it('agrees with the reference', async () => {
    using want = ImageAnalysis.fromSync(parts(), exact);
    using got = await ImageAnalysis.from(parts(), backend);
    expect(relativeError(values(got.patchEmbeddings()), values(want.patchEmbeddings()))).toBeLessThan(1e-6);
    expect(relativeError(got.global(), want.global())).toBeLessThan(1e-6);
    expect(got.saliency()).toEqual(want.saliency());
    expect(got.intermediates()).toBeNull();
    const choice = { keepRatio: 0.2, maps: true };
    const [expected, pruned] = [want.pruneSync(text, choice), await got.prune(text, choice)];
    expect(pruned.indices).toEqual(expected.indices);
    expect(pruned.assignment).toEqual(expected.assignment);
    expect(relativeError(values(pruned.tokens), values(expected.tokens))).toBeLessThan(1e-6);
  });

  it('has the direction of the rows as its global vector where none is given', () => {
    const { patchEmbeddings, saliency, features } = parts();
    using want = ImageAnalysis.fromSync({ patchEmbeddings, saliency, features }, exact);
    using got = ImageAnalysis.fromSync({ patchEmbeddings, saliency, features }, backend);
    expect(relativeError(got.global(), want.global())).toBeLessThan(1e-5);
  });

  it('merges float16 features to float16 tokens', async () => {
    const { patchEmbeddings, saliency } = parts();
    const bits = Uint16Array.from(normal(8, PATCHES * 6), floatToHalf);
    const given = { patchEmbeddings, saliency, features: { type: 'float16', data: bits, dims: [PATCHES, 6] } };
    using want = ImageAnalysis.fromSync(given, exact);
    using got = await ImageAnalysis.from(given, backend);
    const tokens = (await got.prune(text, { keep: 9 })).tokens;
    expect(tokens.type).toBe('float16');
    expect(tokens.data).toEqual(want.pruneSync(text, { keep: 9 }).tokens.data);
  });

  it('prunes without a text by saliency alone', async () => {
    using image = await ImageAnalysis.from(parts(), backend);
    const choice = { keep: 12, taskShare: 0, maps: true };
    const [alone, asked] = [await image.prune(null, choice), image.pruneSync(text, choice)];
    expect(alone.indices).toEqual(asked.indices);
    expect(alone.source).toEqual(new Uint8Array(12).fill(1));
    expect(alone.timings.align).toBe(0);
    expect(alone.tokens.data).toEqual(asked.tokens.data);
    expect(alone.maps).toEqual({ task: null, saliency: image.saliency() });
    expect(image.pruneSync(null, choice).tokens.data).toEqual(alone.tokens.data);
    using pruner = await Pruner.load(randomHead(5, SHAPE), options);
    const hidden = normalTensor(6, PATCHES + 1, SHAPE.width);
    using own = await pruner.analyze(hidden);
    const kept = await own.prune(null, choice);
    expect(kept.indices).toEqual((await own.prune(text, choice)).indices);
    expect((await pruner.prune(hidden, null, choice)).tokens.data).toEqual(kept.tokens.data);
  });

  it('names the part that is not finite', async () => {
    const bad = (name: 'patchEmbeddings' | 'features', row: number) => {
      const given = parts();
      values(given[name])[row * given[name].dims[1] + 1] = Number.NaN;
      return given;
    };
    const given = parts();
    const from = (broken: ReturnType<typeof parts>) => ImageAnalysis.from(broken, backend);
    await expect(from(bad('patchEmbeddings', 3))).rejects.toThrow(/^patchEmbeddings: got NaN, Inf .* in row 3/);
    await expect(from(bad('features', 7))).rejects.toThrow(/^features: got NaN, Inf .* in row 7/);
    await expect(from({ ...given, global: given.global.map(() => Number.NaN) })).rejects.toThrow(/^global: got NaN/);
    await expect(
      from({ ...given, saliency: given.saliency.map((s, i) => (i === 5 ? Number.POSITIVE_INFINITY : s)) }),
    ).rejects.toThrow(/^saliency: got NaN, Inf .* in row 5/);
  });

  it('names the first part that is not finite: patchEmbeddings, global, saliency, features', async () => {
    const given = parts();
    for (const [name, data] of [
      ['features', values(given.features)],
      ['saliency', given.saliency],
      ['global', given.global],
      ['patchEmbeddings', values(given.patchEmbeddings)],
    ] as const) {
      data[0] = Number.NaN;
      await expect(ImageAnalysis.from(given, backend)).rejects.toThrow(new RegExp(`^${name}: got NaN`));
    }
  });

  it('returns no row that is not finite, merged or not', async () => {
    using image = await ImageAnalysis.from(parts(), backend);
    const choice = { keep: 9, merge: false };
    const { indices } = await image.prune(text, choice);
    const features = normalTensor(7, PATCHES, 6);
    const prune = () => image.prune(text, { ...choice, features });
    for (let i = 0; i < PATCHES; i++) if (!indices.includes(i)) values(features)[i * 6] = Number.NaN;
    values(features)[indices[0] * 6] = 1e25;
    expect(values((await prune()).tokens)[0]).toBe(Math.fround(1e25));
    values(features)[indices[4] * 6 + 5] = Number.NEGATIVE_INFINITY;
    const named = new RegExp(`^features: got NaN, Inf .* in row ${indices[4]}`);
    await expect(prune()).rejects.toThrow(named);
    expect(() => image.pruneSync(text, { ...choice, features })).toThrow(named);
  });

  it('keeps its device as long as itself', async () => {
    const analyses = await (async () => {
      const pruner = await Pruner.load(randomHead(5, SHAPE), options);
      return [
        await ImageAnalysis.from(parts(), openBackend(options)),
        ImageAnalysis.fromSync(parts(), openBackend(options)),
        await pruner.analyze(normalTensor(6, PATCHES + 1, SHAPE.width)),
      ];
    })();
    for (let i = 0; i < 5; i++) {
      gc();
      await sleep(5);
    }
    for (const image of analyses) expect((await image.prune(text, { keep: 4 })).indices).toHaveLength(4);
  });

  it('prunes no more once its device is disposed; its maps can be read', async () => {
    const pruner = await Pruner.load(randomHead(5, SHAPE), options);
    const image = await pruner.analyze(normalTensor(6, PATCHES + 1, SHAPE.width));
    const made = await ImageAnalysis.from(parts(), pruner.backend);
    pruner.dispose();
    for (const one of [image, made]) {
      await expect(one.prune(text, { keep: 4 })).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
      expect(() => one.pruneSync(text, { keep: 4 })).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
      expect(one.saliency()).toHaveLength(PATCHES);
    }
  });

  it('takes a task map in place of the one of a text', async () => {
    using image = await ImageAnalysis.from(parts(), backend);
    const task = normal(50, PATCHES);
    const choice = { keep: 12, maps: true };
    const got = await image.prune(null, { ...choice, task });
    expect(got.maps!.task).toEqual(task);
    const want = backend.sync.select({ task, saliency: image.saliency(), keep: 12, taskKeep: 6 });
    expect([got.indices, got.source]).toEqual([want.indices, want.source]);
    const beside = await image.prune(text, { ...choice, task, alignment: 'mean' });
    expect([beside.indices, beside.maps!.task]).toEqual([got.indices, task]);
    const asked = await image.prune(text, choice);
    const again = await image.prune(null, { ...choice, task: asked.maps!.task! });
    expect([again.indices, again.source, again.assignment]).toEqual([asked.indices, asked.source, asked.assignment]);
    expect(again.tokens.data).toEqual(asked.tokens.data);
    const matrices = await image.prune(text, { ...choice, task, matrices: true });
    expect(matrices.matrices!.similarity.dims).toEqual([PATCHES, TEXT]);
    expect(matrices.indices).toEqual(got.indices);
  });

  it('names a task map that is not finite, and one that does not fit', async () => {
    using image = await ImageAnalysis.from(parts(), backend);
    const task = normal(50, PATCHES);
    task[7] = Number.NaN;
    await expect(image.prune(null, { keep: 12, task })).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: expect.stringMatching(/^task: .* row 7/),
    });
    await expect(image.prune(null, { keep: 12, task: task.subarray(1) })).rejects.toThrow(/^task: got 59 elements/);
    await expect(image.prune(null, { keep: 12, task, matrices: true })).rejects.toThrow(
      /^matrices: got true without a text/,
    );
  });

  it('prunes several in one go as each alone, to the bit', async () => {
    using first = await ImageAnalysis.from(parts(), backend);
    using second = await ImageAnalysis.from(parts(2, 33), backend);
    const task = normal(50, 33);
    const images = [first, second, first];
    const texts = [text, null, { embeddings: normalTensor(9, 3, SHAPE.projectionDim) }];
    const choices = [
      { keep: 12, maps: true },
      { keep: 5, task, merge: false },
      { keepRatio: 1, alignment: 'mean' } as const,
    ];
    const plain = ({ timings: _, tokens, ...rest }: Awaited<ReturnType<ImageAnalysis['prune']>>) => ({
      ...rest,
      tokens: tokens.data,
    });
    const alone = await Promise.all(images.map((image, b) => image.prune(texts[b], choices[b])));
    const all = await ImageAnalysis.pruneBatch(images, texts, choices);
    expect(all.map(plain)).toEqual(alone.map(plain));
    expect(ImageAnalysis.pruneBatchSync(images, texts, choices).map(plain)).toEqual(alone.map(plain));
    const shared = await ImageAnalysis.pruneBatch(images, text, { keep: 5 });
    for (const [b, image] of images.entries())
      expect(plain(shared[b])).toEqual(plain(await image.prune(text, { keep: 5 })));
    expect(await ImageAnalysis.pruneBatch([], text, { keep: 5 })).toEqual([]);
  });

  it('names which of several is at fault', async () => {
    using first = await ImageAnalysis.from(parts(), backend);
    using second = await ImageAnalysis.from(parts(2, 33), backend);
    const bad = normalTensor(3, TEXT, SHAPE.projectionDim);
    values(bad)[2 * SHAPE.projectionDim] = Number.NaN;
    const batch = (...rest: [unknown, unknown]) =>
      ImageAnalysis.pruneBatch([first, second], ...(rest as [null, { keep: number }]));
    await expect(batch([text, bad], { keep: 5 })).rejects.toThrow(/^text\[1\]: got NaN.* row 2/);
    await expect(batch(bad, { keep: 5 })).rejects.toThrow(/^text: got NaN.* row 2/);
    const task = normal(50, 33);
    task[4] = Number.NaN;
    await expect(batch([text, null], [{ keep: 5 }, { keep: 5, task }])).rejects.toThrow(/^task\[1\]: got NaN.* row 4/);
    await expect(batch([text], { keep: 5 })).rejects.toThrow(/^text: got 1 of them, wanted 2, one for each analysis/);
    await expect(batch(text, [{ keep: 5 }])).rejects.toThrow(/^options: got 1 of them, wanted 2/);
    await expect(batch(text, [{ keep: 5 }, { kept: 5 }])).rejects.toThrow(
      /^options\[1\]: got the unknown option 'kept'/,
    );
    await expect(batch([text, null], { keep: 5 })).rejects.toThrow(
      /^text\[1\]: got null, wanted the embeddings of a text/,
    );
  });
});

describe('an analysis from parts', () => {
  it('is pruned with others of its device only, and while all live', async () => {
    using here = ImageAnalysis.fromSync(parts(), { device: 'reference' });
    const there = ImageAnalysis.fromSync(parts(), { device: 'cpu' });
    const batch = (...analyses: unknown[]) => ImageAnalysis.pruneBatch(analyses as ImageAnalysis[], text, { keep: 5 });
    await expect(batch(here, there)).rejects.toThrow(/^analyses\[1\]: got one of cpu, wanted analyses of one device/);
    there.dispose();
    await expect(batch(here, there)).rejects.toMatchObject({
      code: 'ERR_DISPOSED',
      message: expect.stringMatching(/^analyses\[1\]/),
    });
    await expect(batch(here, parts())).rejects.toThrow(/^analyses\[1\]: got Object, wanted an ImageAnalysis/);
    await expect(ImageAnalysis.pruneBatch(here as never, text, { keep: 5 })).rejects.toThrow(
      /^analyses: got ImageAnalysis, wanted a list/,
    );
  });

  const cpu: DeviceOptions = { device: 'cpu', threads: 2 };

  it('reads the features of a HostBuffer in place, and keeps them', async () => {
    const { features, ...rest } = parts();
    const buffer = HostBuffer.forTensor('float32', features.dims, { pinned: false });
    const held = buffer.tensor('float32', features.dims);
    values(held).set(values(features));
    using image = await ImageAnalysis.from({ ...rest, features: held }, cpu);
    expect(image.featuresAddress).toBe(buffer.address);
    const before = await image.prune(text, { keep: 9 });
    buffer.dispose();
    expect((await image.prune(text, { keep: 9 })).tokens.data).toEqual(before.tokens.data);
  });

  it('keeps a copy of other memory', async () => {
    for (const make of [ImageAnalysis.from, ImageAnalysis.fromSync]) {
      const given = parts();
      using image = await make(given, cpu);
      const before = await image.prune(text, { keep: 9 });
      values(given.features).fill(0);
      given.saliency.fill(0);
      expect((await image.prune(text, { keep: 9 })).tokens.data).toEqual(before.tokens.data);
    }
  });

  it('owns the device that it opened, and no other', async () => {
    const backend = openBackend(cpu);
    ImageAnalysis.fromSync(parts(), backend).dispose();
    expect(backend.sync.unitRows({ x: normalTensor(1, 2, 3) }).dims).toEqual([2, 3]);
    const image = await ImageAnalysis.from(parts(), backend);
    backend.dispose();
    await expect(image.prune(text, { keep: 1 })).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    expect(() => ImageAnalysis.fromSync(parts(), backend)).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
    const own = await ImageAnalysis.from(parts(), cpu);
    const pruned = own.prune(text, { keep: 5 });
    own.dispose();
    expect((await pruned).indices.length).toBe(5);
    await expect(own.prune(text, { keep: 1 })).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
  });

  it.each([
    [{ patchEmbeddings: undefined }, /^patchEmbeddings: got undefined, wanted a tensor/],
    [{ global: new Float32Array(3) }, /^global: got 3 elements, wanted 40 elements/],
    [{ saliency: new Float32Array(3) }, /^saliency: got 3 elements, wanted 60 elements/],
    [{ features: normalTensor(1, 3, 4) }, /^features.dims: got \[3, 4\], wanted \[60, columns\]/],
    [
      { embedding: 1 },
      /^parts: got the unknown option 'embedding', wanted one of patchEmbeddings, global, saliency, features/,
    ],
  ])('refuses %o', async (wrong, message) => {
    const given = { ...parts(), ...wrong } as ReturnType<typeof parts>;
    await expect(ImageAnalysis.from(given, cpu)).rejects.toThrow(message);
    expect(() => ImageAnalysis.fromSync(given, { device: 'reference' })).toThrow(message);
  });

  it('refuses unknown options of the device', () =>
    expect(() => ImageAnalysis.fromSync(parts(), { devise: 'cpu' } as DeviceOptions)).toThrow(
      /^where: got the unknown option 'devise'/,
    ));

  it.each([null, 'cpu'])('refuses %o in place of a device', async (where) => {
    const message = new RegExp(`^where: got ${where === null ? 'null' : "'cpu'"}, wanted an object of options`);
    await expect(ImageAnalysis.from(parts(), where as never)).rejects.toThrow(message);
    expect(() => ImageAnalysis.fromSync(parts(), where as never)).toThrow(message);
  });

  it('asks for a text unless taskShare is 0', () => {
    using image = ImageAnalysis.fromSync(parts(), cpu);
    expect(() => image.pruneSync(null, { keep: 3 })).toThrow(/^text: got null, wanted .* taskShare: 0/);
    expect(() => image.pruneSync(null, { keep: 3, taskShare: 0, matrices: true })).toThrow(
      /^matrices: got true without a text/,
    );
  });
});
