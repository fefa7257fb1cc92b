import { afterAll, describe, expect, it } from 'vitest';
import {
  type DesapErrorCode,
  HostBuffer,
  loadHead,
  openBackend,
  type PruneOptions,
  Pruner,
  saveHead,
} from '../src/index.js';
import { float32, floatToHalf, Tensor, type TensorLike } from '../src/tensor.js';
import { devicesUnderTest, normalTensor, randomHead, values } from './support.js';

const head = randomHead(1, { width: 32, heads: 2, projectionDim: 16 });
const hidden = normalTensor(2, 17, 32);
const text = normalTensor(3, 5, 16);
const failure = (code: DesapErrorCode, message: RegExp) => ({
  name: 'DesapError',
  code,
  message: expect.stringMatching(message),
});

describe.each(
  await Promise.all(
    devicesUnderTest().map(async ([name, options]) => [name, await Pruner.load(head, options)] as const),
  ),
)('bad input on %s', (_, pruner) => {
  afterAll(() => pruner.dispose());
  /** After each refusal the same object has to work. */
  const usable = async () => expect((await pruner.prune(hidden, text, { keep: 3 })).indices).toHaveLength(3);

  const spoilt = (tensor: Tensor, at: number, value: number) => {
    const data = values(tensor).slice();
    data[at] = value;
    return float32(data, tensor.dims);
  };

  it.each<[string, unknown, DesapErrorCode, RegExp]>([
    ['rank 1', float32(new Float32Array(32), [32]), 'ERR_SHAPE', /^hidden.dims: got \[32\], wanted \[rows, 32\]/],
    ['a batch', float32(new Float32Array(2 * 17 * 32), [2, 17, 32]), 'ERR_SHAPE', /^hidden.dims: got \[2, 17, 32\]/],
    ['another width', normalTensor(1, 17, 31), 'ERR_SHAPE', /wanted \[rows, 32\]/],
    ['no patch', normalTensor(1, 1, 32), 'ERR_SHAPE', /at least one patch/],
    ['no row', float32(new Float32Array(0), [0, 32]), 'ERR_SHAPE', /^hidden.dims: got \[0, 32\]/],
    [
      'dims that lie',
      { data: new Float32Array(7), dims: [17, 32] },
      'ERR_SHAPE',
      /^hidden: got 7 elements.*wanted 544/,
    ],
    ['negative dims', { data: new Float32Array(544), dims: [-17, -32] }, 'ERR_SHAPE', /hidden.dims/],
    ['fractional dims', { data: new Float32Array(544), dims: [8.5, 64] }, 'ERR_SHAPE', /hidden.dims/],
    [
      'float64',
      { data: new Float64Array(544), dims: [17, 32] },
      'ERR_DTYPE',
      /^hidden: got data in Float64Array, wanted float32/,
    ],
    ['int32', new Tensor('int32', new Int32Array(544), [17, 32]), 'ERR_DTYPE', /^hidden: got int32 in Int32Array/],
    [
      'a type that lies',
      { type: 'float16', data: new Float32Array(544), dims: [17, 32] },
      'ERR_DTYPE',
      /float16 in Float32Array/,
    ],
    ['an array', [1, 2, 3], 'ERR_DTYPE', /^hidden: got \[1, 2, 3\], wanted a tensor/],
    ['nothing', undefined, 'ERR_DTYPE', /^hidden: got undefined, wanted a tensor/],
    ['NaN', spoilt(hidden, 32 * 4 + 7, Number.NaN), 'ERR_NOT_FINITE', /^hidden: got NaN.*row 4/],
    ['Inf in the last place', spoilt(hidden, 543, Number.NEGATIVE_INFINITY), 'ERR_NOT_FINITE', /row 16/],
    ['NaN in the class token', spoilt(hidden, 0, Number.NaN), 'ERR_NOT_FINITE', /row 0/],
    ['values beyond float32 squares', spoilt(hidden, 100, 1e25), 'ERR_NOT_FINITE', /row 3/],
    [
      'float16 Inf',
      { data: Uint16Array.from(values(hidden), floatToHalf).fill(0x7c00, 70, 71), dims: [17, 32] },
      'ERR_NOT_FINITE',
      /row 2/,
    ],
  ])('hidden states: %s', async (_case, bad, code, message) => {
    await expect(pruner.analyze(bad as TensorLike)).rejects.toMatchObject(failure(code, message));
    expect(() => pruner.analyzeSync(bad as TensorLike)).toThrow(message);
    await usable();
  });

  it.each<[string, unknown, DesapErrorCode, RegExp]>([
    ['empty', float32(new Float32Array(0), [0, 16]), 'ERR_SHAPE', /^text.dims: got \[0, 16\]/],
    ['another width', normalTensor(1, 5, 15), 'ERR_SHAPE', /^text.dims: got \[5, 15\], wanted \[rows, 16\]/],
    ['NaN', spoilt(text, 2 * 16, Number.NaN), 'ERR_NOT_FINITE', /^text: .*row 2/],
    [
      'end of text out of range',
      { embeddings: text, endOfText: 5 },
      'ERR_VALUE',
      /^endOfText: got 5, wanted an integer from 0 to 4/,
    ],
    ['end of text negative', { embeddings: text, endOfText: -1 }, 'ERR_VALUE', /^endOfText: got -1/],
    ['end of text a fraction', { embeddings: text, endOfText: 1.5 }, 'ERR_VALUE', /^endOfText: got 1.5/],
    [
      'end of text of another width',
      { embeddings: text, endOfText: new Float32Array(3) },
      'ERR_SHAPE',
      /^endOfText: got 3 elements, wanted 16/,
    ],
    [
      'end of text NaN',
      { embeddings: text, endOfText: new Float32Array(16).fill(Number.NaN) },
      'ERR_NOT_FINITE',
      /^endOfText: got NaN/,
    ],
    [
      'a former name',
      { tokens: text },
      'ERR_VALUE',
      /^text: got the unknown option 'tokens', wanted embeddings, its name now/,
    ],
    [
      'a misspelt name',
      { embeddings: text, endOfTxt: 1 },
      'ERR_VALUE',
      /^text: got the unknown option 'endOfTxt', wanted one of embeddings, endOfText, ids/,
    ],
    ['nothing', null, 'ERR_VALUE', /^text: got null, wanted the embeddings of a text, or taskShare: 0/],
    ['a string', 'what color is it ?', 'ERR_DTYPE', /^text: got 'what color/],
  ])('text: %s', async (_case, bad, code, message) => {
    using image = await pruner.analyze(hidden);
    await expect(image.prune(bad as TensorLike, { keep: 3 })).rejects.toMatchObject(failure(code, message));
    expect(() => image.pruneSync(bad as TensorLike, { keep: 3 })).toThrow(message);
    await usable();
  });

  it.each<[Record<string, unknown>, DesapErrorCode, RegExp]>([
    [{ keep: 0 }, 'ERR_VALUE', /^keep: got 0, wanted a count from 1 to 16, or keepRatio$/],
    [{ keep: -2 }, 'ERR_VALUE', /^keep: got -2/],
    [{ keep: Number.NaN }, 'ERR_VALUE', /^keep: got NaN/],
    [{ keep: 17 }, 'ERR_VALUE', /^keep: got 17/],
    [{ keep: 2.5 }, 'ERR_VALUE', /^keep: got 2.5/],
    [{ keep: '3' }, 'ERR_VALUE', /^keep: got '3'/],
    [{ keep: ['3', 4] }, 'ERR_VALUE', /^keep: got \['3', 4\]/],
    [{}, 'ERR_VALUE', /^keep: got undefined, wanted a count from 1 to 16, or keepRatio$/],
    [{ keep: 0.5 }, 'ERR_VALUE', /^keep: got 0.5, wanted a count from 1 to 16, or keepRatio: 0.5$/],
    [{ keepRatio: 0 }, 'ERR_VALUE', /^keepRatio: got 0, wanted a share above 0 and at most 1/],
    [{ keepRatio: 1.5 }, 'ERR_VALUE', /^keepRatio: got 1.5/],
    [{ keepRatio: '0.5' }, 'ERR_VALUE', /^keepRatio: got '0.5'/],
    [{ keep: 3, keepRatio: 0.5 }, 'ERR_VALUE', /^keepRatio: got 0.5 beside keep: 3, wanted one of the two/],
    [
      { keep: 3, taskshare: 1 },
      'ERR_VALUE',
      /^options: got the unknown option 'taskshare', wanted one of keep, keepRatio, /,
    ],
    [{ keep: 3, merge: 1 }, 'ERR_VALUE', /^merge: got 1, wanted true or false/],
    [{ keep: 3, maps: 'both' }, 'ERR_VALUE', /^maps: got 'both', wanted true or false/],
    [{ keep: 3, taskShare: 1.1 }, 'ERR_VALUE', /^taskShare: got 1.1, wanted a finite number from 0 to 1/],
    [{ keep: 3, taskShare: Number.NaN }, 'ERR_VALUE', /^taskShare/],
    [{ keep: 3, lambda: Number.POSITIVE_INFINITY }, 'ERR_VALUE', /^lambda: got Infinity/],
    [{ keep: 3, alignment: 'fmca' }, 'ERR_VALUE', /^alignment: got 'fmca', wanted 'fcma' \| 'fcma-clamped' \| 'mean'/],
    [{ keep: 3, saliency: new Float32Array(15) }, 'ERR_SHAPE', /^saliency: got 15 elements, wanted 16/],
    [{ keep: 3, saliency: new Float32Array(16).fill(Number.NaN) }, 'ERR_NOT_FINITE', /^saliency: got NaN/],
    [
      { keep: 3, features: normalTensor(1, 15, 8) },
      'ERR_SHAPE',
      /^features.dims: got \[15, 8\], wanted \[16, columns\]/,
    ],
    [
      { keep: 3, features: spoilt(normalTensor(1, 16, 8), 9 * 8, Number.NaN) },
      'ERR_NOT_FINITE',
      /^features: got NaN.*row 9/,
    ],
  ])('options: %o', async (options, code, message) => {
    using image = await pruner.analyze(hidden);
    await expect(image.prune(text, options as unknown as PruneOptions)).rejects.toMatchObject(failure(code, message));
    expect(() => image.pruneSync(text, options as unknown as PruneOptions)).toThrow(message);
    await usable();
  });

  it('unknown options of an analysis', async () => {
    await expect(pruner.analyze(hidden, { encodings: 'qq' } as never)).rejects.toMatchObject(
      failure('ERR_VALUE', /^options: got the unknown option 'encodings', wanted one of encoding, intermediates/),
    );
    expect(() => pruner.pruneSync(hidden, text, { keep: 3, intermediates: true } as never)).toThrow(
      /^options: got the unknown option 'intermediates'/,
    );
  });

  it('an option that is undefined is not given', async () => {
    using image = await pruner.analyze(hidden, { encoding: undefined, intermediates: undefined });
    const given = { keep: 3, keepRatio: undefined, taskShare: undefined, merge: undefined, misspelt: undefined };
    expect((await image.prune(text, given)).indices).toEqual((await image.prune(text, { keep: 3 })).indices);
  });

  it('takes the ids that a text tower gives with a text', async () => {
    using image = await pruner.analyze(hidden);
    const given = { embeddings: text, endOfText: 4, ids: [0, 1, 2, 3, 4] };
    expect((await image.prune(given, { keep: 3 })).indices).toEqual((await image.prune(text, { keep: 3 })).indices);
  });

  it('an unknown encoding', async () => {
    await expect(pruner.analyze(hidden, { encoding: 'kq' as never })).rejects.toMatchObject(
      failure('ERR_VALUE', /^encoding: got 'kq', wanted 'qq' \| 'kk' \| 'vv' \| 'qk'/),
    );
  });

  it('names the image of a batch', async () => {
    const bad = spoilt(hidden, 3 * 32, Number.NaN);
    await expect(pruner.analyzeBatch([hidden, bad])).rejects.toMatchObject(
      failure('ERR_NOT_FINITE', /^hidden\[1\]: got NaN.*row 3/),
    );
    await expect(pruner.analyzeBatch([hidden, normalTensor(1, 4, 8)])).rejects.toMatchObject(
      failure('ERR_SHAPE', /^hidden\[1\].dims/),
    );
    await usable();
  });

  it('names the first image at fault, of whatever kind the others are', async () => {
    const bad = spoilt(hidden, 3 * 32, Number.NaN);
    const half = (tensor: Tensor) => ({ data: Uint16Array.from(values(tensor), floatToHalf), dims: tensor.dims });
    const images = [half(hidden), bad, half(bad)];
    const texts = [null, text, null] as unknown as Tensor[];
    const options = { keep: 3, taskShare: 0 };
    const named = failure('ERR_NOT_FINITE', /^hidden\[1\]: got NaN.*row 3/);
    await expect(pruner.analyzeBatch(images)).rejects.toMatchObject(named);
    await expect(pruner.pruneBatch(images, text, { keep: 3 })).rejects.toMatchObject(named);
    await expect(pruner.pruneBatch([hidden, bad, bad], texts, options)).rejects.toMatchObject(named);
    await expect(pruner.pruneBatch([hidden, hidden, bad], texts, options)).rejects.toMatchObject(
      failure('ERR_NOT_FINITE', /^hidden\[2\]: got NaN.*row 3/),
    );
    await usable();
  });

  it('names the image and the text of a batch that is pruned', async () => {
    const bad = spoilt(hidden, 3 * 32, Number.NaN);
    const badText = spoilt(text, 2 * 16, Number.NaN);
    const options = { keep: 3 };
    for (const [images, texts, code, message] of [
      [[hidden, bad], text, 'ERR_NOT_FINITE', /^hidden\[1\]: got NaN.*row 3/],
      [[hidden, hidden], [text, badText], 'ERR_NOT_FINITE', /^text\[1\]: got NaN.*row 2/],
      [[hidden, hidden], badText, 'ERR_NOT_FINITE', /^text: got NaN.*row 2/],
      [[hidden, hidden], [text, normalTensor(3, 5, 15)], 'ERR_SHAPE', /^text\[1\].dims: got \[5, 15\]/],
      [[hidden, hidden], [text], 'ERR_SHAPE', /^text: got 1 texts, wanted 2, one per image/],
      [hidden, text, 'ERR_SHAPE', /^hidden.dims: got \[17, 32\], wanted \[B, N, 32\]/],
    ] as const) {
      await expect(pruner.pruneBatch(images, texts, options)).rejects.toMatchObject(failure(code, message));
      expect(() => pruner.pruneBatchSync(images, texts, options)).toThrow(message);
    }
    const saliency = new Float32Array(16);
    await expect(pruner.pruneBatch([hidden], text, { ...options, saliency } as never)).rejects.toMatchObject(
      failure('ERR_VALUE', /^saliency: got one for several images/),
    );
    await usable();
  });

  it('a detached buffer', async () => {
    const gone = float32(values(hidden).slice(), [17, 32]);
    structuredClone(gone.data, { transfer: [values(gone).buffer as ArrayBuffer] });
    await expect(pruner.analyze(gone)).rejects.toMatchObject(
      failure('ERR_DETACHED', /^hidden: got 0 elements.*detached/),
    );
    expect(() => pruner.analyzeSync(gone)).toThrow(/detached/);
    await usable();
  });

  it('a buffer that shrank', async () => {
    const Resizable = ArrayBuffer as unknown as new (
      size: number,
      options: object,
    ) => ArrayBuffer & { resize(size: number): void };
    const buffer = new Resizable(544 * 4, { maxByteLength: 544 * 4 });
    const data = new Float32Array(buffer);
    data.set(values(hidden));
    await expect(pruner.analyze({ data, dims: [17, 32] })).resolves.toBeDefined();
    buffer.resize(100);
    await expect(pruner.analyze({ data, dims: [17, 32] })).rejects.toMatchObject(failure('ERR_DETACHED', /resized/));
    await usable();
  });

  it('reads shared memory and views at an offset as they are', async () => {
    using plain = await pruner.analyze(hidden);
    const padded = new Float32Array(544 + 3);
    padded.set(values(hidden), 3);
    const shared = new Float32Array(new SharedArrayBuffer(544 * 4));
    shared.set(values(hidden));
    for (const data of [padded.subarray(3), shared]) {
      using image = await pruner.analyze({ data, dims: [17, 32] });
      expect(image.saliency()).toEqual(plain.saliency());
      using again = pruner.analyzeSync({ data, dims: [17, 32] });
      expect(again.saliency()).toEqual(plain.saliency());
    }
  });
});

describe('bad sources and flags', () => {
  it.each([null, undefined, 5, true])('%s for a head', async (source) => {
    const refused = failure('ERR_VALUE', new RegExp(`^source: got ${source}, wanted `));
    await expect(Pruner.load(source as never)).rejects.toMatchObject(refused);
    await expect(loadHead(source as never)).rejects.toMatchObject(refused);
  });

  it('a path for a head that is none', async () => {
    const refused = failure('ERR_VALUE', /^path: got 5, wanted where to write/);
    await expect(saveHead(head, 5 as never)).rejects.toMatchObject(refused);
  });

  it('a flag of a buffer that is none', () => {
    expect(() => HostBuffer.allocate(64, { pinned: 'no' as never })).toThrow(
      expect.objectContaining(failure('ERR_VALUE', /^pinned: got 'no', wanted true or false/)),
    );
    expect(() => HostBuffer.forTensor('float64' as never, [1])).toThrow(
      expect.objectContaining(failure('ERR_DTYPE', /^type: got 'float64', wanted 'float32' \| 'float16'/)),
    );
  });
});

describe('bad devices', () => {
  it.each<[Record<string, unknown>, DesapErrorCode, RegExp]>([
    [{ device: 'gpu' }, 'ERR_VALUE', /^device: got 'gpu', wanted 'auto' \| 'cpu'/],
    [{ device: 'cuda:99' }, 'ERR_DEVICE_UNAVAILABLE', /^cuda:99: /],
    [{ device: 5 }, 'ERR_VALUE', /^device: got 5, wanted 'auto' \| /],
    [{ device: 'cuda:x' }, 'ERR_VALUE', /^device: got 'cuda:x'/],
    [
      { device: 'reference', precision: 'half' },
      'ERR_VALUE',
      /^precision: got 'half', wanted 'fp32' \| 'fp16' \| 'bf16'/,
    ],
    [{ device: 'cpu', precision: 'strict' }, 'ERR_VALUE', /^precision: got 'strict', wanted 'fp32', its name now/],
    [{ device: 'cpu', precision: 'fast' }, 'ERR_VALUE', /^precision: got 'fast', wanted 'fp16', its name now/],
    [
      { devise: 'cpu' },
      'ERR_VALUE',
      /^options: got the unknown option 'devise', wanted one of device, precision, threads, isa/,
    ],
    [5 as never, 'ERR_VALUE', /^options: got 5, wanted an object of options/],
    [{ device: 'cpu', precision: 1 }, 'ERR_VALUE', /^precision: got 1/],
    [{ device: 'cpu', isa: 'mmx' }, 'ERR_DEVICE_UNAVAILABLE', /^isa: got 'mmx', wanted/],
    [{ device: 'cpu', threads: 0 }, 'ERR_VALUE', /^threads: got 0/],
    [{ device: 'cpu', threads: 2.5 }, 'ERR_VALUE', /^threads: got 2.5/],
    [{ device: 'cpu', threads: 1e9 }, 'ERR_VALUE', /^threads: got 1000000000/],
  ])('%o', async (options, code, message) => {
    await expect(Pruner.load(head, options)).rejects.toMatchObject(failure(code, message));
    expect(() => openBackend(options)).toThrow(message);
  });
});

describe.each(devicesUnderTest())('bad kernel arguments on %s', (_, options) => {
  const backend = openBackend(options);
  afterAll(() => backend.dispose());
  const x = normalTensor(1, 6, 12);
  const square = normalTensor(1, 12, 12);
  const bias = new Float32Array(12);
  const readOut = (parts: object) => () =>
    backend.sync.readOut({
      ...{ context: x, out: { weight: square, bias }, postNorm: { weight: bias, bias }, visualProjection: square },
      ...parts,
    });

  it.each<[string, () => unknown, DesapErrorCode, RegExp]>([
    [
      'heads that do not divide',
      () => backend.sync.attention({ q: x, k: x, v: x, heads: 5 }),
      'ERR_VALUE',
      /^heads: got 5, wanted a divisor of the width 12/,
    ],
    [
      'k of another shape',
      () => backend.sync.attention({ q: x, k: normalTensor(1, 5, 12), v: x, heads: 2 }),
      'ERR_SHAPE',
      /^k.dims: got \[5, 12\], wanted \[6, 12\]/,
    ],
    [
      'a bias of another length',
      () => backend.sync.linear({ x, weight: x, bias: new Float32Array(5) }),
      'ERR_SHAPE',
      /^bias: got 5 elements, wanted 6/,
    ],
    [
      'k beyond the scores',
      () => backend.sync.topK({ scores: new Float32Array(3), k: 4 }),
      'ERR_VALUE',
      /^k: got 4, wanted an integer from 0 to 3/,
    ],
    [
      'too few that are not excluded',
      () => backend.sync.topK({ scores: new Float32Array(3), k: 2, excluded: Uint8Array.of(1, 0, 1) }),
      'ERR_VALUE',
      /^k: got 2/,
    ],
    [
      'kept out of range',
      () => backend.sync.merge({ features: x, kept: Int32Array.of(0, 6) }),
      'ERR_VALUE',
      /^kept\[1\]: got 6, wanted an integer from 1 to 5/,
    ],
    [
      'kept out of order',
      () => backend.sync.merge({ features: x, kept: Int32Array.of(3, 3) }),
      'ERR_VALUE',
      /^kept\[1\]: got 3/,
    ],
    [
      'nothing kept',
      () => backend.sync.merge({ features: x, kept: new Int32Array(0) }),
      'ERR_SHAPE',
      /^kept: got no index/,
    ],
    [
      'an epsilon of zero',
      () => backend.sync.layerNorm({ x, weight: new Float32Array(12), bias: new Float32Array(12), epsilon: 0 }),
      'ERR_VALUE',
      /^epsilon: got 0/,
    ],
    [
      'an argument of another name',
      () =>
        backend.sync.align({ visual: x, text: x, global: new Float32Array(12), query: new Float32Array(12) } as never),
      'ERR_VALUE',
      /^args: got the unknown option 'query', wanted endOfText, its name now/,
    ],
    [
      'no arguments',
      () => backend.sync.unitRows(undefined as never),
      'ERR_VALUE',
      /^args: got undefined, wanted the arguments of unitRows/,
    ],
    [
      'a weight of another name',
      readOut({ out: { weight: square, bias, scale: bias } }),
      'ERR_VALUE',
      /^out: got the unknown option 'scale', wanted one of weight, bias/,
    ],
    [
      'a weight of another name in a norm',
      readOut({ postNorm: { weight: bias, bias, epsilon: 1e-5 } }),
      'ERR_VALUE',
      /^postNorm: got the unknown option 'epsilon', wanted one of weight, bias/,
    ],
    ['no weights', readOut({ out: null }), 'ERR_VALUE', /^out: got null, wanted \{ weight, bias \}/],
    [
      'a flag that is none',
      () => backend.sync.align({ visual: x, text: x, global: bias, matrices: 1 as never }),
      'ERR_VALUE',
      /^matrices: got 1, wanted true or false/,
    ],
    [
      'a class token that is neither there nor not',
      () => backend.sync.saliency({ q: x, k: x, heads: 2, classToken: 'yes' as never }),
      'ERR_VALUE',
      /^classToken: got 'yes', wanted true or false/,
    ],
    [
      'a result of more than this machine has',
      () => {
        const column = float32(new Float32Array(2 ** 20), [2 ** 20, 1]);
        return backend.sync.linear({ x: column, weight: column });
      },
      'ERR_OUT_OF_MEMORY',
      /./,
    ],
    [
      'a text of another width',
      () => backend.sync.align({ visual: x, text: normalTensor(1, 2, 11), global: new Float32Array(12) }),
      'ERR_SHAPE',
      /^text.dims/,
    ],
  ])('%s', (_case, call, code, message) => {
    expect(call).toThrow(expect.objectContaining(failure(code, message)));
  });
});
