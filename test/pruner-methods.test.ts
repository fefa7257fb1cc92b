/** Methods in place of DeSAP's own, asked of a pruner: what they read of hidden states, taps and projected features, and every refusal. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { goldenMethod } from '../src/cli/golden-method.js';
import { type HeadWeights, HostBuffer, type OneGoOptions, Pruner, saveHead, type TapInput } from '../src/index.js';
import { METHOD_NAMES, type RivalName, tapsOf } from '../src/methods/index.js';
import { readSafeTensors, type SafeTensors, toFloat32 } from '../src/safetensors.js';
import { float32, floatToHalf, halfToFloat, Tensor } from '../src/tensor.js';
import { normal, normalTensor, randomHead, relativeError, values } from './support.js';

const [D, E, F, SIDE] = [48, 20, 30, 7];
const P = SIDE * SIDE;
const head = randomHead(1, { width: D, heads: 3, projectionDim: E });
const hidden = normalTensor(2, P + 1, D);
const text = normalTensor(3, 7, E);
const projected = normalTensor(4, P, F);
const tap = (seed: number): TapInput => {
  const { ln1, q, k, v } = randomHead(seed, { width: D, heads: 3, projectionDim: E });
  return { hidden: normalTensor(seed, P + 1, D), weights: { ln1, q, k, v } };
};
const taps = { first: tap(11), local: tap(12), penultimate: tap(13) };
const everything = { taps, projected };
const RIVALS = METHOD_NAMES.filter((name): name is RivalName => name !== 'desap');

let folder: string;
let path: string;
let pruner: Pruner;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-pruner-methods-'));
  path = join(folder, 'head.safetensors');
  await saveHead(head, path);
  pruner = await Pruner.load(path, { device: 'cpu' });
});
afterAll(async () => {
  pruner.dispose();
  await rm(folder, { recursive: true });
});

describe('golden cases', () => {
  const FOLDER = join(import.meta.dirname, 'golden-baselines');
  /** All but those of tiles, and the one that has two end rows. */
  const CASES: readonly string[] = [
    ...['random', 'random-merged', 'uniform', 'uniform-wide', 'prumerge', 'prumerge-aggregate', 'prumerge-adaptive'],
    ...['fastervlm', 'fastervlm-nocls', 'hired', 'visionzip', 'visionzip-mean', 'visionzip-few', 'holov'],
    ...['holov-overflow', 'vscan', 'vscan-few', 'flowcut', 'flowcut-blocks', 'tome', 'tome-odd', 'trim'],
    ...['trim-adaptive', 'dart', 'dart-image-pivots', 'divprune', 'divprune-all'],
    ...['cdpruner', 'cdpruner-blend', 'cdpruner-rank', 'cdpruner-decoupled'],
  ];

  it.each(CASES.flatMap((name) => [[name, 'reference'] as const, [name, 'cpu'] as const]))(
    '%s on %s',
    async (name, device) => {
      const file = await readSafeTensors(join(FOLDER, `${name}.safetensors`));
      const { head, hidden, text, options } = caseOf(file);
      using own = await Pruner.load(() => head, { device });
      const { tokens, indices, source, assignment, counts, choice } = await own.prune(hidden, text, options);
      const golden = goldenMethod(file, name);
      const { kept, count, ...chosen } = golden.choices;
      const { scores: _, isProjected: __, ...said } = choice!;
      const computed: Record<string, ArrayLike<number>> = { source, assignment, ...said };
      expect([...indices]).toEqual(kept);
      expect([...counts]).toEqual(count);
      for (const [what, expected] of Object.entries(chosen)) expect(Array.from(computed[what]), what).toEqual(expected);
      const { runScore, ...scores } = choice!.scores;
      const numbers: Record<string, ArrayLike<number>> = { tokens: values(tokens), run_score: runScore, ...scores };
      for (const [what, expected] of Object.entries(golden.values))
        expect(relativeError(numbers[what], expected), what).toBeLessThan(1e-4);
    },
  );

  /** A case as a caller has it; weights that the method does not read are zeros. */
  function caseOf(file: SafeTensors) {
    const { method, heads, keep, grid, cls = true, eos, ...others } = JSON.parse(file.metadata.config);
    const stored = (name: string) => {
      const one = file.tensors.get(name);
      return one && { data: toFloat32(one, name), dims: one.shape };
    };
    const hidden = stored('input.hidden')!;
    const text = stored('input.text');
    const [width, projectionDim] = [hidden.dims[1], text?.dims[1] ?? 4];
    const data = (name: string, size: number) => stored(name)?.data ?? new Float32Array(size);
    const layer = (name: string, size = width * width) => ({
      weight: data(`${name}.weight`, size),
      bias: data(`${name}.bias`, width),
    });
    const [q, k, v, out] = ['q', 'k', 'v', 'out'].map((part) => layer(`weight.${part}`));
    const head: HeadWeights = {
      ...{ width, heads, projectionDim, classToken: cls, epsilon: 1e-5, q, k, v, out },
      ...{ ln1: layer('weight.ln1', width), postNorm: layer('weight.post_ln', width) },
      visualProjection: data('weight.visual_projection.weight', projectionDim * width),
    };
    const taps = Object.fromEntries(
      ['first', 'local', 'penultimate']
        .filter((name) => stored(`input.${name}.hidden`))
        .map((name) => {
          const [q, k, v] = ['q', 'k', 'v'].map((part) => layer(`weight.${name}.${part}`));
          return [
            name,
            { hidden: stored(`input.${name}.hidden`)!, weights: { ln1: layer(`weight.${name}.ln1`, width), q, k, v } },
          ];
        }),
    );
    const camel = ([key, value]: [string, unknown]) => [
      key === 'random_seed' ? 'seed' : key.replace(/_(.)/g, (_, letter) => letter.toUpperCase()),
      value,
    ];
    const textEmbeddings = stored('input.text_embeddings');
    const methodOptions = {
      ...Object.fromEntries(Object.entries(others).map(camel)),
      ...(textEmbeddings && { textEmbeddings }),
    };
    const projected = stored('input.features');
    const options: OneGoOptions = {
      ...{ method, methodOptions, keep, taps, projected },
      grid: { rows: grid[0], columns: grid[1] },
    };
    return { head, hidden, text: text ? { embeddings: text, endOfText: eos } : null, options };
  }
});

describe.each(RIVALS)('%s', (method) => {
  it('keeps what it is asked for, and says how it chose', async () => {
    const { tokens, indices, source, counts, assignment, choice, timings } = await pruner.prune(hidden, text, {
      ...everything,
      ...{ method, keep: 9 },
    });
    expect([indices.length, source.length, counts.length, assignment.length]).toEqual([9, 9, 9, P]);
    expect(tokens.dims).toEqual([9, method === 'vscan' ? F : D]);
    expect(choice!.isProjected).toBe(method === 'vscan');
    expect([...choice!.order].sort((a, b) => a - b)).toEqual([...indices.keys()]);
    if (method === 'divprune' || method === 'cdpruner')
      expect(Int32Array.from(choice!.picked!).sort()).toEqual(indices);
    else expect(choice!.picked).toBeUndefined();
    expect(timings.select).toBeGreaterThan(0);
  });

  it("gives the same tokens in the published code's order", async () => {
    const options: OneGoOptions = { ...everything, method, keep: 9 };
    const raster = await pruner.prune(hidden, text, options);
    const inOrder = await pruner.prune(hidden, text, { ...options, layout: 'public' });
    const { order } = raster.choice!;
    expect(inOrder.indices).toEqual(order.map((k) => raster.indices[k]));
    expect([...inOrder.source]).toEqual(Array.from(order, (k) => raster.source[k]));
    expect([...inOrder.counts]).toEqual(Array.from(order, (k) => raster.counts[k]));
    const patchOf = ({ indices, assignment }: typeof raster) => assignment.map((k) => (k < 0 ? k : indices[k]));
    expect(patchOf(inOrder)).toEqual(patchOf(raster));
    const width = raster.tokens.dims[1];
    const row = (of: typeof raster, k: number) => values(of.tokens).subarray(k * width, (k + 1) * width);
    order.forEach((k, position) => {
      expect(row(inOrder, position)).toEqual(row(raster, k));
    });
    expect([...inOrder.choice!.order]).toEqual([...order.keys()]);
    expect([...order.keys()].join() !== order.join()).toBe(['visionzip', 'prumerge', 'holov'].includes(method));
  });

  it('names what it reads and is not given', async () => {
    const reads = tapsOf(method).filter((name) => name !== 'last' && (method !== 'hired' || name !== 'first'));
    const bare = pruner.prune(hidden, text, { method, keep: 9 });
    if (reads.length > 0)
      await expect(bare).rejects.toThrow(
        `method: got one that reads the tap '${reads[0]}', wanted the option taps: { ${reads[0]}: { hidden, weights } } beside it`,
      );
    else if (['divprune', 'dart', 'cdpruner'].includes(method))
      await expect(bare).rejects.toThrow(
        'method: got one that reads the features of all patches, wanted the option projected, [P, F], beside it',
      );
    else expect((await bare).indices).toHaveLength(9);
    if (method === 'vscan')
      await expect(pruner.prune(hidden, null, { method, keep: 9, taps })).rejects.toThrow(/reads the features of all/);
    if (method === 'cdpruner' || method === 'trim')
      await expect(pruner.prune(hidden, null, { method, keep: 9, projected })).rejects.toThrow(
        /^text: got null, wanted the embeddings of a text, which this method reads/,
      );
  });
});

it('chooses as DeSAP does where a method is the same: the last block by its class token', async () => {
  const own = await pruner.prune(hidden, null, { keep: 9, taskShare: 0, merge: false });
  const same = await pruner.prune(hidden, null, { keep: 9, method: 'fastervlm', methodOptions: { tap: 'last' } });
  expect(same.indices).toEqual(own.indices);
  expect(same.tokens.data).toEqual(own.tokens.data);
  expect(own.choice).toBeUndefined();
});

it("reads DeSAP's task map with relevance: decoupled", async () => {
  const { choice } = await pruner.prune(hidden, text, {
    method: 'trim',
    methodOptions: { relevance: 'decoupled' },
    keep: 9,
  });
  const { maps } = await pruner.prune(hidden, text, { keep: 9, alignment: 'mean', maps: true });
  expect([...choice!.scores.relevance]).toEqual([...maps!.task!]);
});

describe('the weights of the head', () => {
  const asked: OneGoOptions = { method: 'prumerge', keep: 9 };

  it('are read again by the first method that needs them, once', async () => {
    let calls = 0;
    const make = async () => {
      calls++;
      return head;
    };
    using own = await Pruner.load(make, { device: 'cpu' });
    expect(calls).toBe(1);
    await own.prune(hidden, null, { method: 'random', keep: 9 });
    expect(calls).toBe(1);
    const [a, b] = await Promise.all([
      own.prune(hidden, null, asked),
      own.prune(hidden, text, { ...asked, method: 'trim' }),
    ]);
    expect(calls).toBe(2);
    expect(a.tokens.data).toEqual((await pruner.prune(hidden, null, asked)).tokens.data);
    expect(b.indices).toEqual((await pruner.prune(hidden, text, { ...asked, method: 'trim' })).indices);
  });

  it('are asked for again after a failure', async () => {
    const own = join(folder, 'own.safetensors');
    await saveHead(head, own);
    using loaded = await Pruner.load(own, { device: 'cpu' });
    await writeFile(own, 'no head');
    await expect(loaded.prune(hidden, null, asked)).rejects.toMatchObject({ code: 'ERR_FILE' });
    await saveHead(randomHead(1, { width: D, heads: 4, projectionDim: E }), own);
    await expect(loaded.prune(hidden, null, asked)).rejects.toMatchObject({
      code: 'ERR_HEAD_MISMATCH',
      message: expect.stringMatching(/^source: got a head of width 48, 4 heads, .*, wanted width 48, 3 heads/),
    });
    await saveHead(head, own);
    expect((await loaded.prune(hidden, null, asked)).indices).toHaveLength(9);
  });

  it('are not held for a head that was given in memory', async () => {
    using own = await Pruner.load(head, { device: 'cpu' });
    await expect(own.prune(hidden, null, asked)).rejects.toThrow(
      "method: got one that reads the head's weights, wanted a pruner that is loaded from the path of a head file, or from a function",
    );
    expect((await own.prune(hidden, null, { ...asked, method: 'tome', taps })).indices).toHaveLength(9);
  });

  it.each([
    ['nothing', () => undefined, /^source: got undefined, wanted a head/],
    ['another thing', () => ({ width: 3 }), /^head\.(width|heads)/],
  ])('are refused where a function gives %s', async (_, source, message) => {
    await expect(Pruner.load(source as never, { device: 'cpu' })).rejects.toThrow(message);
  });
});

describe('several images', () => {
  const other = normalTensor(20, P + 1, D);

  it('are pruned by a method that reads nothing else', async () => {
    for (const method of ['random', 'uniform', 'prumerge', 'trim'] as const) {
      const batch = await pruner.pruneBatch([hidden, other], [text, text], { method, keep: 9 });
      for (const [i, image] of [hidden, other].entries()) {
        const alone = await pruner.prune(image, text, { method, keep: 9 });
        expect(batch[i].tokens.data).toEqual(alone.tokens.data);
        expect(batch[i].choice).toEqual(alone.choice);
      }
    }
  });

  it('have no taps and features in common', async () => {
    const batch = (options: OneGoOptions) => pruner.pruneBatch([hidden, other], text, options);
    await expect(batch({ method: 'tome', keep: 9, taps })).rejects.toThrow(
      /^taps: got one for several images, wanted none \(prune each image with its own\)/,
    );
    await expect(batch({ method: 'divprune', keep: 9, projected })).rejects.toThrow(/^projected: got one for several/);
    const nan = float32(values(other).with(3 * D, Number.NaN), [P + 1, D]);
    await expect(pruner.pruneBatch([hidden, nan], null, { method: 'random', keep: 9 })).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: expect.stringMatching(/^hidden\[1\]: got NaN.* in row 3/),
    });
  });
});

describe('memory', () => {
  it('is read when the call is made', async () => {
    const options = (): OneGoOptions => ({
      method: 'vscan',
      keep: 9,
      taps: { local: tap(12), penultimate: tap(13) },
      projected: normalTensor(4, P, F),
    });
    const want = await pruner.prune(hidden, null, options());
    const [mine, given] = [float32(values(hidden).slice(), [P + 1, D]), options()];
    const pruning = pruner.prune(mine, null, given);
    for (const one of [mine, given.projected!, given.taps!.local!.hidden, given.taps!.penultimate!.hidden])
      (one.data as Float32Array).fill(0);
    expect((await pruning).tokens.data).toEqual(want.tokens.data);
  });

  it('of a HostBuffer may be disposed of meanwhile', async () => {
    const want = await pruner.prune(hidden, null, { method: 'prumerge', keep: 9 });
    const buffer = HostBuffer.forTensor('float32', [P + 1, D]);
    const states = buffer.tensor('float32', [P + 1, D]);
    values(states).set(values(hidden));
    const pruning = pruner.prune(states, null, { method: 'prumerge', keep: 9 });
    buffer.dispose();
    expect((await pruning).tokens.data).toEqual(want.tokens.data);
  });

  it('of a pruner is freed after the call', async () => {
    const own = await Pruner.load(path, { device: 'cpu' });
    const pruning = own.prune(hidden, text, {
      method: 'cdpruner',
      methodOptions: { relevance: 'decoupled' },
      projected,
      keep: 9,
    });
    own.dispose();
    expect((await pruning).indices).toHaveLength(9);
    await expect(own.prune(hidden, null, { method: 'random', keep: 9 })).rejects.toMatchObject({
      code: 'ERR_DISPOSED',
    });
    await expect(own.analyze(hidden)).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    expect(() => own.backend.sync.topK({ scores: Float32Array.of(1), k: 1 })).toThrow(/dispose/);
  });

  it('of float16 gives tokens of float16', async () => {
    const bits = Uint16Array.from(values(hidden), floatToHalf);
    const rounded = float32(Float32Array.from(bits, halfToFloat), [P + 1, D]);
    const want = await pruner.prune(rounded, null, { method: 'prumerge', keep: 9 });
    const { tokens, indices } = await pruner.prune(new Tensor('float16', bits, [1, P + 1, D]), null, {
      method: 'prumerge',
      keep: 9,
      layout: 'public',
    });
    expect(tokens.type).toBe('float16');
    expect(indices).toEqual(want.choice!.order.map((k) => want.indices[k]));
    const { buffer, byteOffset, length } = tokens.data as unknown as Uint16Array;
    const row = (k: number) => [...values(want.tokens).subarray(k * D, (k + 1) * D)].map(floatToHalf);
    expect([...new Uint16Array(buffer, byteOffset, length)]).toEqual([...want.choice!.order].flatMap(row));
  });
});

describe('refusals', () => {
  const nan = (tensor: Tensor, at: number) => float32(values(tensor).with(at, Number.NaN), tensor.dims);
  const broken = (change: object) => ({ penultimate: { ...taps.penultimate, ...change } }) as OneGoOptions['taps'];
  const weights = (change: object) => broken({ weights: { ...taps.penultimate.weights, ...change } });

  it.each<[string, OneGoOptions, RegExp, { image?: Tensor; question?: unknown }?]>([
    ['an unknown method', { method: 'fastv' as never }, /^method: got 'fastv', wanted 'desap' \| 'random'/],
    [
      'an option that it does not have',
      { method: 'tome', methodOptions: { runs: 1 } },
      /^methodOptions: got the unknown option 'runs'/,
    ],
    [
      'a share of the task',
      { method: 'random', taskShare: 0.5 },
      /^taskShare: got 0.5 beside method: 'random', wanted none/,
    ],
    ['an encoding', { method: 'random', encoding: 'qq' }, /^encoding: got 'qq' beside method/],
    ['features that are merged', { method: 'divprune', features: projected }, /^features: got .* beside method/],
    ['maps', { method: 'random', maps: true }, /^maps: got true beside method/],
    [
      'a budget of an adaptive method',
      { method: 'trim', methodOptions: { adaptive: true } },
      /^keep: got 9 beside method/,
    ],
    [
      'options of no method',
      { methodOptions: {} },
      /^methodOptions: got options of no method, wanted the option method/,
    ],
    ['taps of no method', { taps }, /^taps: got Object of no method, wanted the option method beside it/],
    ['features of no method', { projected, method: 'desap' }, /^projected: got .* of no method/],
    ['a grid of no method', { grid: { rows: 7, columns: 7 } }, /^grid: got Object of no method/],
    ['a layout of no method', { layout: 'public' }, /^layout: got 'public' of no method/],
    [
      'a layout that is none',
      { method: 'random', layout: 'rows' as never },
      /^layout: got 'rows', wanted 'raster' \| 'public'/,
    ],
    ['too many tokens', { method: 'random', keep: P + 1 }, /^keep: got 50, wanted a count from 1 to 49/],
    ['no amount', { method: 'random', keep: undefined }, /^keep: got undefined/],
    ['a share beyond 1', { method: 'random', keep: undefined, keepRatio: 2 }, /^keepRatio: got 2/],
    [
      'an image that is not finite',
      { method: 'random' },
      /^hidden: got NaN.* in row 2/,
      { image: nan(hidden, 2 * D + 5) },
    ],
    [
      'an image of another width',
      { method: 'random' },
      /^hidden\.dims: got \[3, 5\]/,
      { image: normalTensor(1, 3, 5) },
    ],
    ['a question that is not finite', { method: 'trim' }, /^text: got NaN.* in row 1/, { question: nan(text, E) }],
    [
      'a question of another width',
      { method: 'trim' },
      /^text\.dims: got \[2, 3\], wanted \[rows, 20\]/,
      { question: normalTensor(1, 2, 3) },
    ],
    [
      'an end that is none',
      { method: 'trim' },
      /^endOfText: got 7, wanted an integer from 0 to 6/,
      { question: { embeddings: text, endOfText: 7 } },
    ],
    [
      'projected rows of another count',
      { method: 'divprune', projected: normalTensor(1, P + 1, F) },
      /^projected\.dims: got \[50, 30\], wanted \[49, columns\]/,
    ],
    [
      'projected rows that are not finite',
      { method: 'divprune', projected: nan(projected, 4 * F) },
      /^projected: got NaN.* in row 4/,
    ],
    [
      'a grid of another count',
      { method: 'uniform', grid: { rows: 5, columns: 10 } },
      /^grid: got 5 x 10, wanted rows and columns of 49 patches/,
    ],
    ['a grid that is none', { method: 'uniform', grid: 7 as never }, /^grid: got 7, wanted \{ rows, columns \}/],
    ['a grid of no rows', { method: 'uniform', grid: { rows: 0, columns: 49 } }, /^grid\.rows: got 0/],
    [
      'patches without a grid',
      { method: 'uniform' },
      /^grid: got none for 50 patches, which are no square/,
      { image: normalTensor(1, 51, D) },
    ],
    [
      'the last block as a tap',
      { method: 'prumerge', taps: { last: tap(3) } as never },
      /^taps: got the unknown option 'last', wanted one of first/,
    ],
    [
      'a tap that is none',
      { method: 'tome', taps: { penultimate: 3 as never } },
      /^taps\.penultimate: got 3, wanted \{ hidden, weights \}/,
    ],
    [
      'a tap without weights',
      { method: 'tome', taps: broken({ weights: undefined }) },
      /^taps\.penultimate\.weights: got undefined/,
    ],
    [
      'a tap with another part',
      { method: 'tome', taps: broken({ rows: 3 }) },
      /^taps\.penultimate: got the unknown option 'rows'/,
    ],
    [
      'a tap of another size',
      { method: 'tome', taps: broken({ hidden: normalTensor(1, P, D) }) },
      /^taps\.penultimate\.hidden\.dims: got \[49, 48\], wanted \[50, 48\]/,
    ],
    [
      'a tap that is not finite',
      { method: 'tome', taps: broken({ hidden: nan(hidden, 5 * D) }) },
      /^taps\.penultimate\.hidden: got NaN.* in row 5/,
    ],
    [
      'a tap without keys',
      { method: 'tome', taps: weights({ k: undefined }) },
      /^taps\.penultimate\.weights\.k: got undefined, wanted \{ weight, bias \}/,
    ],
    [
      'keys of another size',
      { method: 'tome', taps: weights({ k: { weight: normal(1, 9), bias: normal(1, D) } }) },
      /^taps\.penultimate\.weights\.k\.weight: got 9 elements, wanted 2304/,
    ],
    [
      'keys that are not finite',
      { method: 'tome', taps: weights({ k: { weight: normal(1, D * D), bias: normal(1, D).fill(Number.NaN) } }) },
      /^taps\.penultimate\.weights\.k\.bias: got NaN at element 0/,
    ],
    [
      'heads that do not divide',
      { method: 'tome', taps: weights({ heads: 5 }) },
      /^taps\.penultimate\.weights\.heads: got 5, wanted a divisor of the width 48/,
    ],
    ['no epsilon', { method: 'tome', taps: weights({ epsilon: 0 }) }, /^taps\.penultimate\.weights\.epsilon: got 0/],
    [
      'a tap without values',
      { method: 'flowcut', taps: weights({ v: undefined }) },
      /^method: got the tap 'penultimate' without values/,
    ],
  ])('%s', async (_, options, message, { image = hidden, question = text } = {}) => {
    await expect(pruner.prune(image, question as Tensor, { keep: 9, ...options })).rejects.toMatchObject({
      name: 'DesapError',
      message: expect.stringMatching(message),
    });
    expect((await pruner.prune(hidden, text, { keep: 9 })).indices).toHaveLength(9);
  });

  it('a call that does not wait', () => {
    const message = /^method: got 'random', wanted 'desap': others are asked by prune and pruneBatch, without Sync/;
    expect(() => pruner.pruneSync(hidden, null, { method: 'random', keep: 9 })).toThrow(message);
    expect(() => pruner.pruneBatchSync([hidden], text, { method: 'random', keep: 9 })).toThrow(message);
  });

  it('an analysis, which has no hidden states', async () => {
    using image = await pruner.analyze(hidden);
    await expect(image.prune(null, { method: 'random', keep: 9 } as never)).rejects.toThrow(/unknown option 'method'/);
  });
});
