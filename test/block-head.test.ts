/** The last block of an encoder without class token: what it computes, where it writes, and what it refuses. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  BlockHead,
  type BlockInput,
  formatBlock,
  HostBuffer,
  loadBlock,
  openBackend,
  saveBlock,
} from '../src/index.js';
import { attention } from '../src/kernels/attention.js';
import { ENCODINGS } from '../src/kernels/kernels.js';
import { linear } from '../src/kernels/linear.js';
import { rmsNorm } from '../src/kernels/rms-norm.js';
import { selfAttention } from '../src/kernels/self-attention.js';
import { formatSafeTensors, parseSafeTensors } from '../src/safetensors.js';
import { float32, floatToHalf, halfToFloat } from '../src/tensor.js';
import { devicesUnderTest, normal, normalTensor, randomBlock, relativeError, values } from './support.js';

const [N, WIDTH, HEADS] = [37, 48, 3];
const DH = WIDTH / HEADS;
const weights = randomBlock(1, { width: WIDTH, heads: HEADS, norm: 'rms' });
const siglip = randomBlock(2, { width: WIDTH, heads: HEADS, norm: 'layer', mlpWidth: 68 });
const hidden = normalTensor(3, N, WIDTH, 2);
const angles = normal(4, N * DH, 3);
const rotary = { cos: float32(angles.map(Math.cos), [N, DH]), sin: float32(angles.map(Math.sin), [N, DH]) };
const unit = Int32Array.from({ length: N }, (_, i) => (i * 5) % 9);

/** The first rows of a tensor. */
const top = (x: typeof hidden, rows: number) => float32(values(x).slice(0, rows * x.dims[1]), [rows, x.dims[1]]);
const withoutTimings = ({
  rows,
  saliency,
  unitSaliency,
  siglip: read,
  attention: A,
  selfAttention: own,
}: Awaited<ReturnType<BlockHead['analyze']>>) => ({
  rows,
  saliency,
  unitSaliency,
  attention: A && values(A).slice(),
  selfAttention: own && values(own).slice(),
  siglip: read && { ...read, embeddings: values(read.embeddings) },
});

/** Memory for rows of attention. */
const room = (rows = N) => new Float32Array(rows * WIDTH);

describe.each(devicesUnderTest())('a block head on %s', (_, device) => {
  const backend = openBackend(device);
  let [plain, pooling] = [] as unknown as [BlockHead, BlockHead];
  beforeAll(async () => {
    plain = await BlockHead.load(weights, backend);
    pooling = await BlockHead.load(siglip, backend);
  });
  afterAll(() => {
    plain.dispose();
    pooling.dispose();
    backend.dispose();
  });

  it('is the chain of its kernels', async () => {
    const L = rmsNorm({ data: values(hidden), rows: N, cols: WIDTH }, weights.norm1.weight, 1e-6);
    const dense = (x: typeof L, { weight, bias }: typeof weights.q) =>
      linear(x, { data: weight, rows: WIDTH, cols: WIDTH }, bias);
    const [q, k, v] = [dense(L, weights.q), dense(L, weights.k), dense(L, weights.v)];
    const want = dense(attention(q, q, v, HEADS), weights.out);
    const tables = { cos: values(rotary.cos), sin: values(rotary.sin) };
    const wantOwn = dense(selfAttention(q, k, v, HEADS, tables).context, weights.out);
    using block = await plain.analyze(hidden, { ...rotary, unit, selfAttention: room() });
    expect(block.attention?.dims).toEqual([N, WIDTH]);
    expect(block.selfAttention?.dims).toEqual([N, WIDTH]);
    expect(relativeError(values(block.selfAttention!), wantOwn.data)).toBeLessThan(1e-5);
    expect(relativeError(values(block.attention!), want.data)).toBeLessThan(1e-5);
    const tensor = (x: typeof q) => float32(Float32Array.from(x.data), [N, WIDTH]);
    const scores = backend.sync.saliency({ q: tensor(q), k: tensor(k), heads: HEADS, classToken: false, rotary });
    expect(relativeError(block.saliency, scores)).toBeLessThan(1e-5);
    expect(relativeError(block.unitSaliency!, backend.sync.pool({ scores, unit }))).toBeLessThan(1e-5);
    expect(block.siglip).toBeNull();
  });

  it('does not see padding, whatever is in it', async () => {
    const padded = float32(values(hidden).slice(), [N, WIDTH]);
    values(padded).fill(Number.NaN, 20 * WIDTH);
    const sin = float32(values(rotary.sin).slice(), [N, DH]);
    values(sin).fill(Number.NaN, 20 * DH);
    const marked = unit.slice().fill(-1, 20);
    using got = await plain.analyze(padded, { cos: rotary.cos, sin, unit: marked, valid: 20, selfAttention: room(20) });
    using want = await plain.analyze(top(hidden, 20), {
      cos: top(rotary.cos, 20),
      sin: top(rotary.sin, 20),
      unit: unit.slice(0, 20),
      selfAttention: room(20),
    });
    expect(withoutTimings(got)).toEqual(withoutTimings(want));
    expect(got.rows).toBe(20);
  });

  it('gives each image of a batch what it gives that image alone, to the bit', async () => {
    const images: BlockInput[] = [
      { hidden, ...rotary, unit, selfAttention: room() },
      { hidden: normalTensor(6, 1, WIDTH), selfAttention: null },
      { hidden: normalTensor(7, 50, WIDTH), valid: 41, attention: null, selfAttention: room(41) },
      { hidden, unit: BigInt64Array.from(unit, BigInt) },
    ];
    for (const head of [plain, pooling]) {
      const all = await head.analyzeBatch(images, { encoding: 'kk' });
      for (const [b, { hidden: x, ...rest }] of images.entries()) {
        const selfAttention = rest.selfAttention && room(all[b].rows);
        using alone = await head.analyze(x, { ...rest, selfAttention, encoding: 'kk' });
        expect(withoutTimings(all[b])).toEqual(withoutTimings(alone));
      }
      expect(all[2].attention).toBeNull();
    }
    expect(await plain.analyzeBatch([])).toEqual([]);
  });

  it('computes on the calling thread what it computes beside it', async () => {
    using beside = await pooling.analyze(hidden, { unit, encoding: 'vv' });
    using here = pooling.analyzeSync(hidden, { unit, encoding: 'vv' });
    expect(withoutTimings(here)).toEqual(withoutTimings(beside));
  });

  it('changes nothing of the rest by its own attention, whatever else is wanted', async () => {
    for (const head of [plain, pooling])
      for (const encoding of ENCODINGS) {
        using without = await head.analyze(hidden, { ...rotary, unit, encoding });
        expect(without.selfAttention).toBeNull();
        using both = await head.analyze(hidden, { ...rotary, unit, encoding, selfAttention: room() });
        expect({ ...withoutTimings(both), selfAttention: null }).toEqual(withoutTimings(without));
        using alone = await head.analyze(hidden, { ...rotary, encoding, attention: null, selfAttention: room() });
        expect(values(alone.selfAttention!)).toEqual(values(both.selfAttention!));
        expect(alone.attention).toBeNull();
      }
  });

  it('computes its own attention without rotation, and of float16', async () => {
    const bits = Uint16Array.from(values(hidden), floatToHalf);
    const rounded = float32(Float32Array.from(bits, halfToFloat), [N, WIDTH]);
    using half = await pooling.analyze(
      { type: 'float16', data: bits, dims: [1, N, WIDTH] },
      { selfAttention: room(), encoding: 'qk' },
    );
    using whole = await pooling.analyze(rounded, { selfAttention: room(), encoding: 'qk' });
    expect(withoutTimings(half)).toEqual(withoutTimings(whole));
    // Without rotation it is the attention of q and k.
    expect(relativeError(values(whole.selfAttention!), values(whole.attention!))).toBeLessThan(1e-5);
  });

  it('writes its own attention where it is told', async () => {
    using own = await plain.analyze(hidden, { ...rotary, selfAttention: room() });
    const want = values(own.selfAttention!);
    using buffer = HostBuffer.forTensor('float32', [3, N, WIDTH]);
    const size = N * WIDTH;
    buffer.float32().fill(7);
    const [attention, place] = [buffer.float32(0, size), buffer.float32(8 * size, size)];
    using there = await plain.analyze(hidden, { ...rotary, attention, selfAttention: place });
    expect(there.selfAttention?.data).toBe(place);
    expect(place).toEqual(want);
    expect(attention).toEqual(values(own.attention!));
    expect(buffer.float32(4 * size, size).every((x) => x === 7)).toBe(true);
    const memory = room();
    using here = plain.analyzeSync(hidden, { ...rotary, selfAttention: memory });
    expect(here.selfAttention?.data).toBe(memory);
    expect(memory).toEqual(want);
  });

  it('writes the attention where it is told', async () => {
    using own = await plain.analyze(hidden);
    using buffer = HostBuffer.forTensor('float32', [2, N, WIDTH]);
    buffer.float32().fill(7);
    const place = buffer.float32(N * WIDTH * 4);
    using there = await plain.analyze(hidden, { attention: place });
    expect(there.attention?.data).toBe(place);
    expect(place).toEqual(values(own.attention!));
    expect(buffer.float32(0, N * WIDTH).every((x) => x === 7)).toBe(true);
    const memory = new Float32Array(N * WIDTH);
    using here = plain.analyzeSync(hidden, { attention: memory });
    expect(here.attention?.data).toBe(memory);
    expect(memory).toEqual(values(own.attention!));
    const later = new Float32Array(N * WIDTH);
    using copied = await plain.analyze(hidden, { attention: later });
    expect(copied.attention?.data).toBe(later);
    expect(later).toEqual(values(own.attention!));
  });

  it('reads hidden states of a HostBuffer, and of float16', async () => {
    const bits = Uint16Array.from(values(hidden), floatToHalf);
    const rounded = float32(Float32Array.from(bits, halfToFloat), [N, WIDTH]);
    using want = await plain.analyze(rounded);
    using half = await plain.analyze({ type: 'float16', data: bits, dims: [1, N, WIDTH] });
    expect(withoutTimings(half)).toEqual(withoutTimings(want));
    using buffer = HostBuffer.forTensor('float32', [N, WIDTH]);
    buffer.float32().set(values(rounded));
    using held = await plain.analyze(buffer.tensor('float32', [N, WIDTH]));
    expect(withoutTimings(held)).toEqual(withoutTimings(want));
  });

  it('computes SigLIP read-out with the attention left out', async () => {
    using whole = await pooling.analyze(hidden);
    using without = await pooling.analyze(hidden, { attention: null });
    expect(without.attention).toBeNull();
    expect(values(without.siglip!.embeddings)).toEqual(values(whole.siglip!.embeddings));
    expect(without.siglip!.global).toEqual(whole.siglip!.global);
    expect(without.siglip!.probeSaliency).toEqual(whole.siglip!.probeSaliency);
  });

  it('names the row and the image that are not finite', async () => {
    const bad = float32(values(hidden).slice(), [N, WIDTH]);
    values(bad)[11 * WIDTH + 3] = Number.NaN;
    const message = (name: string) => expect.stringMatching(new RegExp(`^${name}: got NaN.* in row 11`));
    const code = 'ERR_NOT_FINITE';
    await expect(plain.analyze(bad)).rejects.toMatchObject({ code, message: message('hidden') });
    const images = [{ hidden }, { hidden: bad }];
    await expect(plain.analyzeBatch(images)).rejects.toMatchObject({
      code,
      message: message('images\\[1\\]\\.hidden'),
    });
    await expect(plain.analyzeBatch([{ hidden: bad }])).rejects.toMatchObject({
      message: message('images\\[0\\]\\.hidden'),
    });
    expect(() => plain.analyzeSync(bad)).toThrow(/^hidden: got NaN/);
    using good = await plain.analyze(bad, { valid: 11 });
    expect(good.rows).toBe(11);
  });

  it('refuses further calls once disposed, and leaves the device to its owner', async () => {
    const head = await BlockHead.load(weights, backend);
    head.dispose();
    head.dispose();
    await expect(head.analyze(hidden)).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    expect(backend.sync.unitRows({ x: hidden }).dims).toEqual([N, WIDTH]);
    const block = await plain.analyze(hidden);
    block.dispose();
    expect(() => block.attention).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
    expect(block.saliency).toHaveLength(N);
  });
});

describe('a block head', () => {
  const device = { device: 'reference' } as const;
  const load = () => BlockHead.load(weights, device);

  it('says what it is', async () => {
    using head = await BlockHead.load(siglip, device);
    expect(head.block).toEqual({ width: WIDTH, heads: HEADS, norm: 'layer', siglip: true });
    expect([head.device, head.precision]).toEqual(['reference', 'fp32']);
    expect(head.backend.device).toBe('reference');
  });

  it.each<[string, object, string, RegExp]>([
    ['no rows', { valid: 0 }, 'ERR_VALUE', /^valid: got 0, wanted an integer from 1 to 37/],
    ['more rows than there are', { valid: 38 }, 'ERR_VALUE', /^valid: got 38, wanted/],
    ['cos without sin', { cos: rotary.cos }, 'ERR_VALUE', /^sin: got nothing beside cos, wanted both tables, or none/],
    ['sin without cos', { sin: rotary.sin }, 'ERR_VALUE', /^cos: got nothing beside sin/],
    [
      'tables of other rows',
      { ...rotary, sin: top(rotary.sin, 5) },
      'ERR_SHAPE',
      /^sin\.dims: got \[5, 16\], wanted \[37, 16\]/,
    ],
    [
      'a table that is not finite',
      {
        ...rotary,
        cos: float32(
          angles.map((x, i) => (i === 40 ? Number.NaN : x)),
          [N, DH],
        ),
      },
      'ERR_NOT_FINITE',
      /^cos: .* row 2/,
    ],
    [
      'a table of float16',
      { ...rotary, cos: { data: new Uint16Array(N * DH), dims: [N, DH] } },
      'ERR_DTYPE',
      /^cos: got float16/,
    ],
    [
      'a unit that is negative',
      { unit: unit.map((u) => u - 1) },
      'ERR_VALUE',
      /^unit\[0\]: got -1, wanted a unit from 0 to 36/,
    ],
    ['a unit out of range', { unit: unit.map((u) => u + 36) }, 'ERR_VALUE', /^unit\[1\]: got 41/],
    [
      'a unit without a patch',
      { unit: unit.map((u) => (u === 3 ? 4 : u)) },
      'ERR_VALUE',
      /^unit: got no patch for unit 3/,
    ],
    [
      'a unit that only padding has',
      { unit: unit.map((u, i) => (i < 30 ? 0 : u)), valid: 32 },
      'ERR_VALUE',
      /^unit: got no patch/,
    ],
    ['units of other rows', { unit: unit.slice(1) }, 'ERR_SHAPE', /^unit: got 36 elements/],
    ['a destination of another size', { attention: new Float32Array(5) }, 'ERR_SHAPE', /^attention: got 5 elements/],
    [
      'a destination of float64',
      { attention: new Float64Array(N * WIDTH) },
      'ERR_DTYPE',
      /^attention: got Float64Array/,
    ],
    [
      'a destination of its own attention of another size',
      { selfAttention: new Float32Array(5) },
      'ERR_SHAPE',
      /^selfAttention: got 5 elements/,
    ],
    [
      'a destination of its own attention that is none',
      { selfAttention: true },
      'ERR_DTYPE',
      /^selfAttention: got true, wanted a Float32Array, or null/,
    ],
    ['an unknown encoding', { encoding: 'kq' }, 'ERR_VALUE', /^encoding: got 'kq', wanted 'qq' \| 'kk'/],
    ['an unknown option', { units: unit }, 'ERR_VALUE', /^options: got the unknown option 'units', wanted one of/],
  ])('refuses %s', async (_, options, code, message) => {
    using head = await load();
    await expect(head.analyze(hidden, options)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
  });

  it('refuses a destination over the hidden states, or over another', async () => {
    using head = await load();
    using buffer = HostBuffer.forTensor('float32', [3, N, WIDTH]);
    const size = N * WIDTH;
    buffer.float32(0, size).set(values(hidden));
    const x = buffer.tensor('float32', [N, WIDTH]);
    const message = expect.stringMatching(
      /attention: got memory that the call reads or writes, wanted memory of its own/,
    );
    await expect(head.analyze(x, { attention: buffer.float32(4 * WIDTH, size) })).rejects.toMatchObject({ message });
    const second = buffer.float32(4 * size, size);
    const over = buffer.float32(4 * (size + 5), size);
    await expect(head.analyze(x, { selfAttention: buffer.float32(4 * WIDTH, size) })).rejects.toThrow(
      /^selfAttention: got memory that the call reads or writes/,
    );
    await expect(head.analyze(x, { attention: second, selfAttention: over })).rejects.toThrow(
      /^selfAttention: got memory/,
    );
    await expect(
      head.analyzeBatch([
        { hidden: x, selfAttention: second },
        { hidden, attention: over },
      ]),
    ).rejects.toThrow(/^images\[1\]\.attention: got memory/);
    await expect(
      head.analyzeBatch([
        { hidden: x, attention: second },
        { hidden, attention: second },
      ]),
    ).rejects.toMatchObject({
      message: expect.stringMatching(/^images\[1\]\.attention/),
    });
    // Another image's tables are read behind it.
    const table = { data: second.fill(1).subarray(0, N * DH), dims: [N, DH] };
    await expect(
      head.analyzeBatch([
        { hidden, attention: second },
        { hidden, cos: table, sin: table },
      ]),
    ).rejects.toMatchObject({ message: expect.stringMatching(/^images\[0\]\.attention: got memory that the call/) });
    using fits = await head.analyze(x, { attention: second });
    expect(fits.rows).toBe(N);
  });

  it('refuses hidden states of another width, and those that are gone', async () => {
    using head = await load();
    await expect(head.analyze(normalTensor(1, 4, 20))).rejects.toMatchObject({
      code: 'ERR_SHAPE',
      message: expect.stringMatching(/^hidden\.dims: got \[4, 20\], wanted \[rows, 48\]/),
    });
    await expect(head.analyzeBatch([{ hidden }, { hidden: normalTensor(1, 4, 20) }])).rejects.toThrow(
      /^images\[1\]\.hidden\.dims/,
    );
    await expect(head.analyzeBatch([{ hidden, keep: 4 } as never])).rejects.toThrow(
      /^images\[0\]: got the unknown option 'keep'/,
    );
    await expect(head.analyzeBatch(hidden as never)).rejects.toThrow(/^images: got Tensor, wanted a list/);
    const gone = float32(values(hidden).slice(), [N, WIDTH]);
    structuredClone(0, { transfer: [values(gone).buffer as ArrayBuffer] });
    await expect(head.analyze(gone)).rejects.toMatchObject({ code: 'ERR_DETACHED' });
  });

  it('refuses rotation for heads of an odd width', async () => {
    using head = await BlockHead.load(randomBlock(5, { width: 30, heads: 2, norm: 'rms' }), device);
    const table = normalTensor(1, 4, 15);
    await expect(head.analyze(normalTensor(2, 4, 30), { cos: table, sin: table })).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(/^cos: got tables for heads of 15 columns, wanted heads of an even width/),
    });
  });
});

describe('block files', () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'desap-block-'));
  });
  afterAll(() => rm(folder, { recursive: true }));

  it.each([weights, siglip, randomBlock(7, { width: 32, heads: 2, norm: 'layer', bias: false })])(
    'hold what was written (%#)',
    async (block) => {
      const path = join(folder, 'block.safetensors');
      await saveBlock(block, path);
      expect(await loadBlock(path)).toEqual(block);
      expect(await loadBlock(formatBlock(block))).toEqual(block);
      using head = await BlockHead.load(path, { device: 'reference' });
      expect(head.block.width).toBe(block.width);
    },
  );

  it('has read its bytes when the loading returns', async () => {
    const bytes = formatBlock(siglip);
    const loading = loadBlock(bytes);
    bytes.fill(0);
    expect(await loading).toEqual(siglip);
  });

  it('take q, k and v packed in one', async () => {
    const { tensors, metadata } = parseSafeTensors(formatBlock(weights));
    const layers = [weights.q, weights.k, weights.v];
    const packed = {
      ...Object.fromEntries(
        ['ln1.weight', 'out.weight', 'out.bias'].map((name) => {
          const { bytes, shape } = tensors.get(name)!;
          return [name, { data: new Float32Array(bytes.slice().buffer), shape }];
        }),
      ),
      'qkv.weight': { data: Float32Array.from(layers.flatMap(({ weight }) => [...weight])), shape: [3 * WIDTH, WIDTH] },
      'qkv.bias': { data: Float32Array.from(layers.flatMap(({ bias }) => [...bias!])), shape: [3 * WIDTH] },
    };
    expect(await loadBlock(formatSafeTensors(packed, metadata))).toEqual(weights);
  });

  const changed = (config: object, drop?: string) => {
    const { tensors, metadata } = parseSafeTensors(formatBlock(siglip));
    const kept = [...tensors]
      .filter(([name]) => name !== drop)
      .map(([name, { bytes, shape }]) => [name, { data: new Float32Array(bytes.slice().buffer), shape }]);
    const json = JSON.stringify({ ...JSON.parse(metadata['desap.head']), ...config });
    return formatSafeTensors(Object.fromEntries(kept), { 'desap.head': json });
  };
  it.each<[string, Uint8Array, string, RegExp]>([
    ['of another kind', changed({ kind: 'head' }), 'ERR_FILE', /^block: config\.kind: got 'head', wanted 'block'/],
    ['with a class token', changed({ cls: true }), 'ERR_FILE', /^block: config\.cls: got true, wanted false/],
    ['without heads', changed({ heads: undefined }), 'ERR_VALUE', /^block\.heads: got NaN, wanted a positive integer/],
    [
      'of heads that do not divide',
      changed({ heads: 5 }),
      'ERR_VALUE',
      /^block\.heads: got 5, wanted a divisor of the width 48/,
    ],
    [
      'of an unknown norm',
      changed({ norm: 'batch' }),
      'ERR_VALUE',
      /^block\.norm: got 'batch', wanted 'layer' \| 'rms'/,
    ],
    ['of an rms norm with a bias', changed({ norm: 'rms' }), 'ERR_VALUE', /^block\.norm1\.bias: got one, wanted null/],
    [
      'without a tensor',
      changed({}, 'head_out.bias'),
      'ERR_FILE',
      /^block: got no tensor 'head_out\.bias', wanted a block file/,
    ],
    ['without a key', changed({}, 'k.weight'), 'ERR_FILE', /^block: got no tensor 'k\.weight'/],
    [
      'without configuration',
      formatSafeTensors({}),
      'ERR_FILE',
      /^block: got a safetensors file without the metadata key/,
    ],
  ])('are refused %s', async (_, bytes, code, message) => {
    await expect(loadBlock(bytes)).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });

  it.each<[string, object, string, RegExp]>([
    [
      'a weight of another size',
      { q: { ...weights.q, weight: new Float32Array(5) } },
      'ERR_SHAPE',
      /^block\.q\.weight: got 5 elements, wanted 2304/,
    ],
    [
      'a weight that is not finite',
      { out: { ...weights.out, bias: new Float32Array(WIDTH).fill(Number.NaN) } },
      'ERR_NOT_FINITE',
      /^block\.out\.bias: got NaN at element 0/,
    ],
    [
      'no head, and no null',
      { siglip: undefined },
      'ERR_VALUE',
      /^block\.siglip: got undefined, wanted SigLIP's pooling head, or null/,
    ],
    ['no layer', { v: null }, 'ERR_VALUE', /^block\.v: got null, wanted \{ weight, bias \}/],
    ['an epsilon of zero', { epsilon: 0 }, 'ERR_VALUE', /^block\.epsilon: got 0/],
  ])('weights with %s are refused', async (_, change, code, message) => {
    const given = { ...weights, ...change } as typeof weights;
    await expect(BlockHead.load(given, { device: 'reference' })).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
    expect(() => formatBlock(given)).toThrow(message);
  });

  it.each([null, 5, true])('%o is no block', async (source) => {
    await expect(BlockHead.load(source as never)).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(/^source: got/),
    });
    await expect(loadBlock(source as never)).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(/^source: got/),
    });
  });
});
