import { mkdtemp, readdir, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { formatHead, loadHead, Pruner, saveHead } from '../src/index.js';
import { formatSafeTensors, parseSafeTensors, readSafeTensors, toFloat32 } from '../src/safetensors.js';
import { randomHead } from './support.js';

const head = randomHead(1, { width: 12, heads: 3, projectionDim: 8 });

/** A container with a header of our own making. */
function container(header: unknown, data = 16): Uint8Array {
  const json = new TextEncoder().encode(typeof header === 'string' ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + json.length + data);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  return bytes;
}

describe('safetensors', () => {
  it('reads back what it wrote', () => {
    const bytes = formatSafeTensors(
      { a: { data: Float32Array.of(1, 2, 3), shape: [3] }, b: { data: Float32Array.of(4), shape: [1, 1] } },
      { k: 'v' },
    );
    const { tensors, metadata } = parseSafeTensors(bytes);
    expect(metadata).toEqual({ k: 'v' });
    expect(tensors.get('b')!.shape).toEqual([1, 1]);
    expect([...toFloat32(tensors.get('a')!)]).toEqual([1, 2, 3]);
  });

  it('reads half, bfloat and double precision', () => {
    const tensor = (dtype: string, array: Uint16Array | Float64Array) => ({
      dtype,
      shape: [array.length],
      bytes: new Uint8Array(array.buffer),
    });
    expect([...toFloat32(tensor('F16', Uint16Array.of(0x3c00, 0xc100, 0x0001)))]).toEqual([1, -2.5, 2 ** -24]);
    expect([...toFloat32(tensor('BF16', Uint16Array.of(0x3f80, 0xc020)))]).toEqual([1, -2.5]);
    expect([...toFloat32(tensor('F64', Float64Array.of(0.5, -3)))]).toEqual([0.5, -3]);
    expect(() => toFloat32({ dtype: 'I64', shape: [1], bytes: new Uint8Array(8) }, 'x')).toThrow(
      /^x: got I64, wanted F32/,
    );
  });

  it('reads what the safetensors library writes, and refuses other types where they are used', async () => {
    const { tensors } = await readSafeTensors('test/fixtures/safetensors/other-types.safetensors');
    for (const name of ['f32', 'f16', 'bf16', 'f64'])
      expect([...toFloat32(tensors.get(name)!, name)]).toEqual([1.5, -2, 0.25]);
    expect([...toFloat32(tensors.get('scalar')!)]).toEqual([7]);
    expect([...toFloat32(tensors.get('empty')!)]).toEqual([]);
    const others = [...tensors.keys()].filter((name) => !/^(f\d|bf16|scalar|empty)/.test(name));
    expect(others).toHaveLength(9);
    for (const name of others)
      expect(() => toFloat32(tensors.get(name)!, name)).toThrow(expect.objectContaining({ code: 'ERR_DTYPE' }));
  });

  it.each<[string, Uint8Array, RegExp]>([
    ['nothing', new Uint8Array(0), /got 0 bytes/],
    ['five bytes', new Uint8Array(5), /got 5 bytes/],
    ['a header beyond the file', container('{}').subarray(0, 9), /claims 2 bytes, the file has 1/],
    ['an enormous header', new Uint8Array(16).fill(0xff), /wanted at most/],
    ['no JSON', container('{"a":'), /not JSON/],
    ['bytes that are not UTF-8', container('{"\u0000').map((b, i) => (i === 9 ? 0xff : b)), /not JSON/],
    ['an array', container([]), /not a JSON object/],
    ['no type', container({ a: { shape: [1], data_offsets: [0, 1] } }), /tensor a has no type/],
    [
      'an unknown type beyond the file',
      container({ a: { dtype: 'F8', shape: [1], data_offsets: [0, 17] } }),
      /holds 16/,
    ],
    [
      'an unknown type with a bad shape',
      container({ a: { dtype: 'F8', shape: [0.5], data_offsets: [0, 1] } }),
      /bad shape/,
    ],
    ['a negative extent', container({ a: { dtype: 'F32', shape: [-1], data_offsets: [0, 4] } }), /bad shape/],
    ['offsets out of order', container({ a: { dtype: 'F32', shape: [1], data_offsets: [8, 4] } }), /lies at 8..4/],
    [
      'offsets beyond the file',
      container({ a: { dtype: 'F32', shape: [8], data_offsets: [0, 32] } }),
      /the file holds 16/,
    ],
    ['a shape that lies', container({ a: { dtype: 'F32', shape: [2], data_offsets: [0, 4] } }), /is 8 bytes/],
    [
      'an overflowing shape',
      container({ a: { dtype: 'F32', shape: [2 ** 40, 2 ** 40], data_offsets: [0, 4] } }),
      /bytes, and lies/,
    ],
    ['a tensor that is null', container({ a: null }), /tensor a has no type/],
  ])('refuses %s', (_, bytes, message) => {
    expect(() => parseSafeTensors(bytes, 'x')).toThrow(
      expect.objectContaining({ code: 'ERR_FILE', message: expect.stringMatching(message) }),
    );
  });
});

describe('heads', () => {
  it('survive a file', async () => {
    const path = join(await mkdtemp(join(tmpdir(), 'desap-')), 'x.head.safetensors');
    await saveHead(head, path);
    expect(await loadHead(path)).toEqual(head);
    expect(await loadHead(await readFile(path))).toEqual(head);
    using pruner = await Pruner.load(path, { device: 'cpu' });
    expect(pruner.head).toEqual({ width: 12, heads: 3, projectionDim: 8, classToken: true });
  });

  it('are written whole or not at all', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'desap-'));
    await writeFile(join(folder, 'taken'), '');
    await expect(saveHead(head, join(folder, 'taken', 'x.safetensors'))).rejects.toMatchObject({ code: 'ERR_FILE' });
    await expect(saveHead({ ...head, heads: 5 }, join(folder, 'y'))).rejects.toMatchObject({ code: 'ERR_VALUE' });
    expect(await readdir(folder)).toEqual(['taken']);
  });

  it('are refused when the file is missing, truncated or of something else', async () => {
    await expect(Pruner.load('/nowhere/x.safetensors')).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(/^\/nowhere/),
    });
    const bytes = formatHead(head);
    await expect(Pruner.load(bytes.subarray(0, bytes.length - 4))).rejects.toMatchObject({ code: 'ERR_FILE' });
    await expect(Pruner.load(formatSafeTensors({}))).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(/desap extract/),
    });
    const noTensors = formatSafeTensors({}, { 'desap.head': '{"heads":1}' });
    await expect(Pruner.load(noTensors)).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(/no tensor 'ln1.weight'/),
    });
    const badJson = formatSafeTensors({}, { 'desap.head': '{' });
    await expect(Pruner.load(badJson)).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(/not JSON/),
    });
  });

  it.each([
    ['heads that do not divide', { heads: 5 }, 'ERR_VALUE', /heads: got 5, wanted a divisor/],
    ['an epsilon of zero', { epsilon: 0 }, 'ERR_VALUE', /epsilon: got 0/],
    [
      'a short weight',
      { q: { weight: new Float32Array(3), bias: new Float32Array(12) } },
      'ERR_SHAPE',
      /q.weight: got 3 elements, wanted 144/,
    ],
    [
      'NaN',
      { visualProjection: head.visualProjection.map((w, i) => (i === 50 ? Number.NaN : w)) },
      'ERR_NOT_FINITE',
      /visualProjection: got NaN at element 50/,
    ],
    [
      'Inf',
      { ln1: { weight: head.ln1.weight, bias: new Float32Array(12).fill(Number.POSITIVE_INFINITY) } },
      'ERR_NOT_FINITE',
      /ln1.bias: got Infinity/,
    ],
    [
      'another array type',
      { postNorm: { weight: new Float64Array(12), bias: new Float32Array(12) } },
      'ERR_DTYPE',
      /postNorm.weight: got Float64Array/,
    ],
  ])('are refused with %s', async (_, change, code, message) => {
    await expect(Pruner.load({ ...head, ...change } as typeof head)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
  });
});
