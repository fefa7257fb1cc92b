import { execFile } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { describe, expect, it } from 'vitest';
import type { FloatMatrix } from '../src/tensor.js';
import * as small from './fixtures/native.mjs';
import { relativeError } from './support.js';

setFlagsFromString('--expose-gc');
const gc = runInNewContext('gc') as () => void;

const context = small.openContext();
const head = await context.createHead(small.smallHead());
const matrix = (data: Float32Array | Uint16Array, rows = 17, cols = 32): FloatMatrix => ({
  data,
  half: false,
  rows,
  cols,
});
const [analysis] = await head.analyze([small.waves(17, 32)], small.analyzeRequest, true);
const question = small.pruneRequest(small.waves(5, 16), 4);
const parts = {
  patchEmbeddings: small.waves(16, 16),
  global: null,
  saliency: small.wave(16),
  features: small.waves(16, 8),
};
const oneGo = { encoding: 'qq' } as const;
const block = await context.createBlock(small.smallBlock());
const attend = (changes: object = {}) =>
  block.analyze([{ ...small.sequence(small.waves(17, 32)), ...changes }], 'qq', true);
const tables = { cos: small.wave(17 * 16), sin: small.wave(17 * 16, 1) };

/** A context that is busy for a while, so that what is submitted next has to wait. */
function busyContext(threads = 2) {
  const busy = small.openContext(threads);
  const work = busy.run('attention', small.longJob(), false) as Promise<Float32Array>;
  return { busy, work };
}

describe('an asynchronous call has taken what it needs when it returns', () => {
  const source = small.wave(17 * 32);
  const want = context.run('unitRows', { x: matrix(source) }, true) as Float32Array;

  it.each<[string, () => { memory: Float32Array; spoil: () => void }]>([
    [
      'overwritten',
      () => {
        const memory = source.slice();
        return { memory, spoil: () => memory.fill(Number.NaN) };
      },
    ],
    [
      'transferred',
      () => {
        const memory = source.slice();
        return { memory, spoil: () => structuredClone(memory.buffer, { transfer: [memory.buffer] }) };
      },
    ],
    [
      'resized',
      () => {
        const options = { maxByteLength: 1 << 20 };
        const buffer = new (
          ArrayBuffer as unknown as new (
            n: number,
            o: object,
          ) => ArrayBuffer & { resize(n: number): void }
        )(544 * 4, options);
        const memory = new Float32Array(buffer);
        memory.set(source);
        return { memory, spoil: () => buffer.resize(0) };
      },
    ],
    [
      'shared with other threads and overwritten',
      () => {
        const memory = new Float32Array(new SharedArrayBuffer(544 * 4));
        memory.set(source);
        return { memory, spoil: () => memory.fill(0) };
      },
    ],
    [
      'disposed of',
      () => {
        const buffer = new small.addon.HostBuffer(544 * 4);
        const memory = new Float32Array(buffer.arrayBuffer);
        memory.set(source);
        return { memory, spoil: () => buffer.dispose() };
      },
    ],
  ])('memory can be %s', async (_, make) => {
    const { busy, work } = busyContext();
    const { memory, spoil } = make();
    const result = busy.run('unitRows', { x: matrix(memory) }, false);
    spoil();
    expect(await result).toEqual(want);
    await work;
    busy.dispose();
  });

  it('the weights of a head are among it', async () => {
    const { busy, work } = busyContext(1);
    const weights = small.smallHead();
    const order: string[] = [];
    const creating = busy.createHead(weights).finally(() => order.push('head'));
    work.finally(() => order.push('work'));
    weights.q.weight.fill(0);
    structuredClone(null, { transfer: [weights.visualProjection.buffer as ArrayBuffer] });
    order.push('spoilt');
    const [image] = await (await creating).analyze([small.waves(17, 32)], small.analyzeRequest, true);
    expect(order).toEqual(['spoilt', 'work', 'head']);
    expect(image.patchEmbeddings()).toEqual(analysis.patchEmbeddings());
    expect(image.saliency()).toEqual(analysis.saliency());
    busy.dispose();
  });

  it('a synchronous call reads shared memory and any offset', () => {
    const memory = new Float32Array(new SharedArrayBuffer(600 * 4), 20, 544);
    memory.set(source);
    expect(context.run('unitRows', { x: matrix(memory) }, true)).toEqual(want);
  });
});

describe('the event loop', () => {
  it('turns while a call computes', async () => {
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    const { busy, work } = busyContext();
    const since = performance.now();
    await work;
    const elapsed = performance.now() - since;
    clearInterval(timer);
    busy.dispose();
    expect(elapsed).toBeGreaterThan(20);
    expect(ticks).toBeGreaterThan(0); // a call that blocked would end before any timer's turn
  });

  it('is given results in the order of the calls, where one runs at a time', async () => {
    const order: number[] = [];
    const { busy, work } = busyContext(1);
    const calls = Array.from({ length: 20 }, async (_, i) => {
      await busy.run('topK', { scores: Float32Array.of(3, 1, 2), k: 2, excluded: null }, false);
      order.push(i);
    });
    await Promise.all([work, ...calls]);
    busy.dispose();
    expect(order).toEqual(Array.from({ length: 20 }, (_, i) => i));
  });

  it('a synchronous call goes before the calls that wait', async () => {
    const busy = small.openContext();
    let ended = 0;
    const calls = Array.from({ length: 5 }, async () => {
      await busy.run('attention', small.longJob(), false);
      ended++;
    });
    await sleep(5);
    busy.run('topK', { scores: Float32Array.of(3, 1, 2), k: 2, excluded: null }, true);
    await sleep(0);
    expect(ended).toBeLessThan(3);
    await Promise.all(calls);
    busy.dispose();
  });
});

describe('dispose', () => {
  const disposed = expect.objectContaining({ code: 'ERR_DISPOSED' });

  it('of everything, in any order, with work in flight', async () => {
    const want = await analysis.prune(question, true);
    const orders = [
      [0, 1, 2, 3],
      [3, 2, 1, 0],
      [2, 0, 3, 1],
    ];
    for (const order of orders) {
      const { busy, work } = busyContext();
      const mine = await busy.createHead(small.smallHead());
      const buffer = new small.addon.HostBuffer(544 * 4);
      const memory = new Float32Array(buffer.arrayBuffer);
      memory.set(small.wave(544));
      const [image] = await mine.analyze([matrix(memory)], small.analyzeRequest, false);
      const heavy = busy.run('attention', small.longJob(), false);
      const pruning = image.prune(question, false);
      const analyses = mine.analyze([matrix(memory), matrix(memory)], small.analyzeRequest, false);
      const prunings = mine.prune([matrix(memory), matrix(memory)], oneGo, [question, question], false);
      const creating = busy.createHead(small.smallHead());
      const things = [busy, mine, image, buffer];
      for (const which of order) things[which].dispose();
      for (const thing of things) thing.dispose();
      expect({ ...(await pruning), timings: want.timings }).toEqual(want);
      for (const pruned of await prunings) expect({ ...pruned, timings: want.timings }).toEqual(want);
      const [first, second] = await analyses;
      expect(first.patchEmbeddings()).toEqual(analysis.patchEmbeddings());
      expect(second.saliency()).toEqual(analysis.saliency());
      const late = await creating;
      await Promise.all([work, heavy]);
      expect(() => busy.run('unitRows', { x: small.waves(1, 4) }, true)).toThrow(disposed);
      expect(() => busy.createHead(small.smallHead())).toThrow(disposed);
      expect(() => mine.analyze([matrix(small.wave(544))], small.analyzeRequest, false)).toThrow(disposed);
      expect(() => late.analyze([matrix(small.wave(544))], small.analyzeRequest, false)).toThrow(disposed);
      expect(() => image.prune(question, false)).toThrow(disposed);
      expect(() => image.patchEmbeddings()).toThrow(disposed);
      // The maps of an analysis outlive its device; computing needs the device.
      expect(() => first.prune(question, true)).toThrow(disposed);
      first.dispose();
    }
  });

  it('is not needed: forgotten objects with work in flight are collected after it', async () => {
    const results = await (async () => {
      const forgotten = small.openContext();
      const mine = await forgotten.createHead(small.smallHead());
      const [image] = mine.analyze([small.waves(17, 32)], small.analyzeRequest, true) as never[];
      return [
        forgotten.run('attention', small.longJob(), false),
        (image as typeof analysis).prune(question, false),
      ] as const;
    })();
    for (let i = 0; i < 5; i++) {
      gc();
      await sleep(5);
    }
    expect((await results[1]).indices).toEqual((await analysis.prune(question, true)).indices);
    await results[0];
  });

  it('frees the threads', async () => {
    const { readdirSync } = await import('node:fs');
    const threads = () => (process.platform === 'linux' ? readdirSync('/proc/self/task').length : 0);
    const before = threads();
    for (let i = 0; i < 20; i++) {
      const one = small.openContext(4);
      await one.run('unitRows', { x: small.waves(4, 4) }, false);
      one.dispose();
    }
    for (let i = 0; i < 50 && threads() > before; i++) await sleep(10);
    expect(threads()).toBeLessThanOrEqual(before);
  });
});

describe('a call that no check stands before', () => {
  const x = small.waves(17, 32);
  const scores = small.wave(9);
  const run = (kernel: string, args: unknown) => context.run(kernel as never, args as never, true);

  it.each<[string, () => unknown, string]>([
    ['no arguments', () => run('unitRows', undefined), 'ERR_DTYPE'],
    ['an unknown kernel', () => run('nothing', {}), 'ERR_VALUE'],
    ['no matrix', () => run('unitRows', { x: 3 }), 'ERR_DTYPE'],
    ['an array', () => run('unitRows', { x: { ...x, data: [1, 2] } }), 'ERR_DTYPE'],
    ['another type', () => run('unitRows', { x: { ...x, data: new Float64Array(544) } }), 'ERR_DTYPE'],
    ['a type that lies', () => run('unitRows', { x: { ...x, half: true } }), 'ERR_DTYPE'],
    ['no flag', () => run('unitRows', { x: { ...x, half: undefined } }), 'ERR_VALUE'],
    ['rows that lie', () => run('unitRows', { x: { ...x, rows: 18 } }), 'ERR_SHAPE'],
    ['absurd rows', () => run('unitRows', { x: { ...x, rows: 2 ** 31 - 1, cols: 2 ** 31 - 1 } }), 'ERR_SHAPE'],
    ['rows of nothing', () => run('unitRows', { x: { ...x, data: new Float32Array(0) } }), 'ERR_DETACHED'],
    ['no rows', () => run('unitRows', { x: { ...x, rows: 0 } }), 'ERR_VALUE'],
    ['negative rows', () => run('unitRows', { x: { ...x, rows: -17, cols: -32 } }), 'ERR_VALUE'],
    ['fractional rows', () => run('unitRows', { x: { ...x, rows: 8.5, cols: 64 } }), 'ERR_VALUE'],
    ['heads that do not divide', () => run('attention', { q: x, k: x, v: x, heads: 3 }), 'ERR_VALUE'],
    ['other keys', () => run('attention', { q: x, k: small.waves(16, 32), v: x, heads: 2 }), 'ERR_SHAPE'],
    [
      'a lone class token',
      () => run('saliency', { q: small.waves(1, 32), k: small.waves(1, 32), heads: 2, classToken: true }),
      'ERR_SHAPE',
    ],
    ['k too large', () => run('topK', { scores, k: 10, excluded: null }), 'ERR_VALUE'],
    ['other values', () => run('selfAttention', { q: x, k: x, v: small.waves(16, 32), heads: 2 }), 'ERR_SHAPE'],
    ['heads that do not divide a width', () => run('selfAttention', { q: x, k: x, v: x, heads: 3 }), 'ERR_VALUE'],
    ['tables for odd heads', () => run('selfAttention', { q: x, k: x, v: x, heads: 32, rotary: tables }), 'ERR_VALUE'],
    [
      'k of fewer candidates',
      () => run('topK', { scores, k: 9, excluded: Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0, 0) }),
      'ERR_VALUE',
    ],
    ['another mask', () => run('topK', { scores, k: 1, excluded: new Uint8Array(8) }), 'ERR_SHAPE'],
    ['scores that are no array', () => run('topK', { scores: 'abc', k: 0, excluded: null }), 'ERR_DTYPE'],
    ['kept beyond the end', () => run('merge', { features: x, kept: Int32Array.of(1, 17) }), 'ERR_VALUE'],
    ['kept twice', () => run('merge', { features: x, kept: Int32Array.of(1, 1) }), 'ERR_VALUE'],
    ['kept below zero', () => run('merge', { features: x, kept: Int32Array.of(-1) }), 'ERR_VALUE'],
    ['none kept', () => run('merge', { features: x, kept: new Int32Array(0) }), 'ERR_SHAPE'],
    ['seeds that are none', () => run('farthestPoints', { x, seeds: 1, count: 1 }), 'ERR_DTYPE'],
    ['a seed beyond the end', () => run('farthestPoints', { x, seeds: Int32Array.of(17), count: 1 }), 'ERR_VALUE'],
    ['a seed below zero', () => run('farthestPoints', { x, seeds: Int32Array.of(-1), count: 1 }), 'ERR_VALUE'],
    ['a seed twice', () => run('farthestPoints', { x, seeds: Int32Array.of(3, 3), count: 1 }), 'ERR_VALUE'],
    ['more picks than rows', () => run('farthestPoints', { x, seeds: Int32Array.of(3), count: 17 }), 'ERR_VALUE'],
    ['more seeds than rows', () => run('farthestPoints', { x, seeds: new Int32Array(18), count: 0 }), 'ERR_SHAPE'],
    ['a short relevance', () => run('dpp', { x, relevance: small.wave(16), blend: 1, count: 2 }), 'ERR_SHAPE'],
    ['more picks than there are', () => run('dpp', { x, relevance: small.wave(17), blend: 1, count: 18 }), 'ERR_VALUE'],
    ['kept as float', () => run('merge', { features: x, kept: Float32Array.of(1) }), 'ERR_DTYPE'],
    [
      'epsilon NaN',
      () => run('layerNorm', { x, weight: small.wave(32), bias: small.wave(32), epsilon: Number.NaN }),
      'ERR_VALUE',
    ],
    [
      'a short weight',
      () => run('layerNorm', { x, weight: small.wave(31), bias: small.wave(32), epsilon: 1e-5 }),
      'ERR_SHAPE',
    ],
    ['images that are none', () => head.analyze([1] as never, small.analyzeRequest, true), 'ERR_DTYPE'],
    ['an image of another width', () => head.analyze([small.waves(17, 31)], small.analyzeRequest, true), 'ERR_SHAPE'],
    [
      'an unknown encoding',
      () => head.analyze([x], { encoding: 'xy', intermediates: false } as never, true),
      'ERR_VALUE',
    ],
    ['requests that are none', () => head.prune([x], oneGo, [1] as never, true), 'ERR_DTYPE'],
    ['too few requests', () => head.prune([x, x], oneGo, [question], true), 'ERR_SHAPE'],
    ['requests that fit no image', () => head.prune([small.waves(4, 32)], oneGo, [question], true), 'ERR_VALUE'],
    ['no word on maps', () => analysis.prune({ ...question, maps: undefined as never }, true), 'ERR_VALUE'],
    ['taskKeep without a text', () => analysis.prune({ ...question, text: null }, true), 'ERR_VALUE'],
    [
      'matrices without a text',
      () => analysis.prune({ ...question, text: null, taskKeep: 0, matrices: true }, true),
      'ERR_VALUE',
    ],
    [
      'features of other rows than the patches',
      () => context.createAnalysis({ ...parts, features: small.waves(15, 8) }, true),
      'ERR_SHAPE',
    ],
    ['a short saliency', () => context.createAnalysis({ ...parts, saliency: small.wave(15) }, true), 'ERR_SHAPE'],
    ['a short global', () => context.createAnalysis({ ...parts, global: small.wave(15) }, true), 'ERR_SHAPE'],
    ['parts that are none', () => context.createAnalysis(1 as never, true), 'ERR_DTYPE'],
    ['neither map', () => run('select', { task: null, saliency: null, keep: 1, taskKeep: 0 }), 'ERR_VALUE'],
    [
      'maps of two lengths',
      () => run('select', { task: scores, saliency: small.wave(8), keep: 1, taskKeep: 0 }),
      'ERR_SHAPE',
    ],
    [
      'taskKeep without a task map',
      () => run('select', { task: null, saliency: scores, keep: 2, taskKeep: 1 }),
      'ERR_VALUE',
    ],
    [
      'less than taskKeep without a saliency map',
      () => run('select', { task: scores, saliency: null, keep: 2, taskKeep: 1 }),
      'ERR_VALUE',
    ],
    ['keep too large', () => analysis.prune({ ...question, keep: 17 }, true), 'ERR_VALUE'],
    ['taskKeep beyond keep', () => analysis.prune({ ...question, taskKeep: 5 }, true), 'ERR_VALUE'],
    ['no such text row', () => analysis.prune({ ...question, endOfText: 5 }, true), 'ERR_VALUE'],
    ['features of other rows', () => analysis.prune({ ...question, features: small.waves(15, 8) }, true), 'ERR_SHAPE'],
    ['a head without weights', () => context.createHead({ ...small.smallHead(), q: undefined } as never), 'ERR_DTYPE'],
    ['a head of other weights', () => context.createHead({ ...small.smallHead(), width: 34 }), 'ERR_SHAPE'],
    ['analyses that are none', () => context.pruneAll([{}] as never, [question], true), 'ERR_DTYPE'],
    [
      'what claims to be an analysis',
      () => context.pruneAll([Object.setPrototypeOf({}, Object.getPrototypeOf(analysis))], [question], true),
      'ERR_DTYPE',
    ],
    [
      'a head among analyses',
      () => context.pruneAll([analysis, head as never], [question, question], true),
      'ERR_DTYPE',
    ],
    ['fewer requests than analyses', () => context.pruneAll([analysis, analysis], [question], true), 'ERR_SHAPE'],
    ['no such complement', () => analysis.prune({ ...question, complement: 'all' as never }, true), 'ERR_VALUE'],
    [
      'distances of other rows',
      () => analysis.prune({ ...question, distances: small.waves(15, 8) }, true),
      'ERR_SHAPE',
    ],
    ['a short task map', () => analysis.prune({ ...question, task: small.wave(15) }, true), 'ERR_SHAPE'],
    ['sequences that are none', () => block.analyze([1] as never, 'qq', true), 'ERR_DTYPE'],
    ['no array of sequences', () => block.analyze(1 as never, 'qq', true), 'ERR_DTYPE'],
    ['a sequence of another width', () => attend({ hidden: small.waves(17, 31) }), 'ERR_SHAPE'],
    ['a block without encoding', () => block.analyze([], { encoding: 'qq' } as never, true), 'ERR_VALUE'],
    ['short tables', () => attend({ rotary: { ...tables, sin: small.wave(17 * 16 - 1) } }), 'ERR_SHAPE'],
    ['one table', () => attend({ rotary: { cos: tables.cos } }), 'ERR_DTYPE'],
    ['a unit too high', () => attend({ unit: new Int32Array(17).fill(2), units: 2 }), 'ERR_VALUE'],
    ['a unit below zero', () => attend({ unit: new Int32Array(17).fill(-1), units: 1 }), 'ERR_VALUE'],
    ['a unit that no patch is of', () => attend({ unit: new Int32Array(17), units: 2 }), 'ERR_VALUE'],
    ['more units than patches', () => attend({ unit: new Int32Array(17), units: 18 }), 'ERR_VALUE'],
    ['units of another type', () => attend({ unit: new Float32Array(17), units: 1 }), 'ERR_DTYPE'],
    ['a short attention', () => attend({ attention: new Float32Array(17 * 32 - 1) }), 'ERR_SHAPE'],
    [
      'an attention over the hidden states',
      () => {
        const memory = small.wave(17 * 32 + 8);
        return attend({ hidden: matrix(memory.subarray(8)), attention: memory.subarray(0, 17 * 32) });
      },
      'ERR_VALUE',
    ],
    ['a short attention of its own', () => attend({ selfAttention: new Float32Array(17 * 32 + 1) }), 'ERR_SHAPE'],
    [
      'its own attention over the hidden states',
      () => {
        const memory = small.wave(17 * 32 + 8);
        return attend({ hidden: matrix(memory.subarray(8)), selfAttention: memory.subarray(0, 17 * 32) });
      },
      'ERR_VALUE',
    ],
    [
      'one place for both attentions',
      () => {
        const one = new Float32Array(17 * 32);
        return attend({ attention: one, selfAttention: one });
      },
      'ERR_VALUE',
    ],
    [
      'one attention for two sequences',
      () => {
        const one = { ...small.sequence(small.waves(17, 32)), attention: new Float32Array(17 * 32) };
        return block.analyze([one, one], 'qq', true);
      },
      'ERR_VALUE',
    ],
    [
      'heads of odd size',
      () => run('saliency', { q: x, k: x, heads: 32, classToken: false, rotary: tables }),
      'ERR_VALUE',
    ],
    [
      'a block without weights',
      () => context.createBlock({ ...small.smallBlock(), k: undefined } as never),
      'ERR_DTYPE',
    ],
    ['a block of other weights', () => context.createBlock({ ...small.smallBlock(), width: 34 }), 'ERR_SHAPE'],
    ['an unknown norm', () => context.createBlock({ ...small.smallBlock(), norm: 'batch' as never }), 'ERR_VALUE'],
    ['an rms norm with a bias', () => context.createBlock({ ...small.smallBlock(), norm: 'rms' }), 'ERR_VALUE'],
    [
      'a pooling head of other weights',
      () => context.createBlock({ ...small.smallBlock(), siglip: { ...small.smallBlock().siglip!, mlpWidth: 41 } }),
      'ERR_SHAPE',
    ],
    ['no options', () => new small.addon.Context(undefined as never), 'ERR_DTYPE'],
    ['options of nothing', () => new small.addon.Context({} as never), 'ERR_VALUE'],
    ['no view', () => small.addon.addressOf({} as never), 'ERR_DTYPE'],
  ])('is refused: %s', (_, call, code) => {
    expect(call).toThrow(expect.objectContaining({ code }));
    expect(context.run('topK', { scores, k: 1, excluded: null }, true)).toHaveLength(1);
  });

  it('is refused when a property takes the memory of another away', () => {
    const vanishing = small.wave(544);
    const args = {
      q: matrix(vanishing),
      k: x,
      get v() {
        structuredClone(vanishing.buffer, { transfer: [vanishing.buffer as ArrayBuffer] });
        return x;
      },
      heads: 2,
    };
    expect(() => context.run('attention', args, true)).toThrow(expect.objectContaining({ code: 'ERR_DETACHED' }));
  });

  it('is refused when it is given an object of another class', () => {
    expect(() => head.analyze.call(analysis, [x], small.analyzeRequest, true)).toThrow(TypeError);
    expect(() => analysis.patchEmbeddings.call({} as never)).toThrow(TypeError);
    const Analysis = analysis.constructor as new (...args: unknown[]) => unknown;
    expect(() => new Analysis()).toThrow(TypeError);
    expect(() => new Analysis({})).toThrow(TypeError);
  });

  it('is refused when an analysis is of another device', async () => {
    const other = small.openContext();
    const theirs = await other.createAnalysis(parts, true);
    expect(() => context.pruneAll([theirs], [question], true)).toThrow(expect.objectContaining({ code: 'ERR_VALUE' }));
    other.dispose();
  });

  it('passes a property that throws on', () => {
    const broken = {
      get x(): never {
        throw new RangeError('mine');
      },
    };
    expect(() => context.run('unitRows', broken, true)).toThrow(/mine/);
  });

  it('survives a property that disposes of everything', async () => {
    const busy = small.openContext();
    const mine = await busy.createHead(small.smallHead());
    const [image] = await mine.analyze([x], small.analyzeRequest, true);
    const trap = {
      ...question,
      get text() {
        image.dispose();
        mine.dispose();
        busy.dispose();
        return question.text;
      },
    };
    expect(() => image.prune(trap, true)).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
    expect(() => mine.prune([x], oneGo, [question], true)).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
  });

  it('survives a sequence that disposes of its block', async () => {
    const busy = small.openContext();
    const mine = await busy.createBlock(small.smallBlock());
    const trap = {
      ...small.sequence(x),
      get rotary() {
        mine.dispose();
        busy.dispose();
        return null;
      },
    };
    expect(() => mine.analyze([trap], 'qq', true)).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
    expect(() => mine.analyze([], 'qq', true)).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
  });
});

describe('the attention of a block', () => {
  const [want] = (() => {
    const memory = new Float32Array(17 * 32);
    attend({ attention: memory });
    return [memory];
  })();

  it('is written into memory that nobody holds any more', async () => {
    const { busy, work } = busyContext();
    const mine = await busy.createBlock(small.smallBlock());
    const buffer = new small.addon.HostBuffer(17 * 32 * 4);
    const attention = new Float32Array(buffer.arrayBuffer);
    const blocks = mine.analyze([{ ...small.sequence(small.waves(17, 32)), attention }], 'qq', false);
    buffer.dispose();
    mine.dispose();
    expect(attention).toHaveLength(0);
    await work;
    expect((await blocks)[0].saliency).toHaveLength(17);
    busy.dispose();
  });

  it('is refused at the end where its memory went away meanwhile', async () => {
    const attention = new Float32Array(17 * 32);
    const blocks = block.analyze([{ ...small.sequence(small.waves(17, 32)), attention }], 'qq', false);
    structuredClone(attention.buffer, { transfer: [attention.buffer] });
    await expect(blocks).rejects.toMatchObject({ code: 'ERR_DETACHED' });
  });

  it('is copied at the end into ordinary memory', async () => {
    const attention = new Float32Array(17 * 32).fill(7);
    const blocks = block.analyze([{ ...small.sequence(small.waves(17, 32)), attention }], 'qq', false);
    expect(attention.every((element) => element === 7)).toBe(true);
    await blocks;
    expect(attention).toEqual(want);
  });
});

describe('several analyses in one job', () => {
  const withoutTimings = <T extends object>(result: T) => ({ ...result, timings: null });

  it('are pruned as each alone', async () => {
    const other = (await context.createAnalysis(parts, true)) as typeof analysis;
    const requests = [question, { ...question, keep: 3, taskKeep: 1, maps: true }];
    const together = await context.pruneAll([analysis, other], requests, false);
    const alone = [await analysis.prune(requests[0], true), await other.prune(requests[1], true)];
    expect(together.map(withoutTimings)).toEqual(alone.map(withoutTimings));
    expect(await context.pruneAll([], [], false)).toEqual([]);
    other.dispose();
    expect(() => context.pruneAll([analysis, other], requests, true)).toThrow(
      expect.objectContaining({ code: 'ERR_DISPOSED' }),
    );
  });

  it('name the first image at fault', async () => {
    const saliency = small.wave(16);
    saliency[3] = Number.NaN;
    const bad = { ...question, saliency };
    await expect(context.pruneAll([analysis, analysis, analysis], [question, bad, bad], false)).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      argument: 'saliency',
      row: 3,
      image: 1,
    });
    await expect(analysis.prune(bad, false)).rejects.not.toHaveProperty('image');
  });
});

describe('a process ends', () => {
  const script = fileURLToPath(new URL('./fixtures/process.mjs', import.meta.url));
  const end = (how: string) =>
    new Promise<{ code: number | null; signal: string | null; out: string; err: string; ms: number }>((resolve) => {
      const since = performance.now();
      const child = execFile(process.execPath, [script, how], { timeout: 20_000 }, (_, out, err) => {
        resolve({
          code: child.exitCode,
          signal: child.signalCode,
          out: out.trim(),
          err,
          ms: performance.now() - since,
        });
      });
    });

  it.each([
    ['by itself when it is idle', 'idle', 0],
    ['by itself after the work that it waits for', 'pending', 0],
    ['by process.exit with work in flight', 'exit', 0],
    ['by process.exit right after the calls', 'exitAtOnce', 0],
    ['after contexts were disposed of with work in flight', 'disposedInFlight', 0],
    ['by an uncaught error with work in flight', 'uncaught', 1],
  ])('%s', async (_, how, code) => {
    const { ms, err, ...got } = await end(how);
    expect(got, err).toEqual({ code, signal: null, out: 'done' });
    // It does not wait for the work. Sanitizers slow the start of the process too.
    if (how.startsWith('exit')) expect(ms).toBeLessThan(process.env.DESAP_SMALL ? 30_000 : 5000);
  });
});

it('results are the same in every environment and on every path', async () => {
  const sync = context.run('attention', small.longJob(), true) as Float32Array;
  const { busy, work } = busyContext();
  expect(relativeError(await work, sync)).toBe(0);
  busy.dispose();
});
