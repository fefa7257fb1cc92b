/** What would harm a server is refused, by a typed error that names it. */
import { describe, expect, it } from 'vitest';
import { checkUsage, type GridThw, toImageEmbeds, toPromptEmbeds } from '../../src/serving/index.js';
import { readTensorFile } from './torch-reader.js';

const LLAVA = { modelType: 'llava', hiddenSize: 4 } as const;
const rows = (count: number, width = 4, value = 1) => ({
  data: new Float32Array(count * width).fill(value),
  dims: [count, width],
});
const withValue = (value: number) => {
  const given = rows(3);
  given.data[9] = value;
  return given;
};

describe.each([
  ['toImageEmbeds', toImageEmbeds, 'features'],
  ['toPromptEmbeds', toPromptEmbeds, 'embeds'],
] as const)('%s refuses', (_, call, name) => {
  it.each<[string, unknown, object, string, RegExp]>([
    ['NaN', withValue(Number.NaN), {}, 'ERR_NOT_FINITE', /NaN.* row 2/],
    ['Inf', withValue(Number.NEGATIVE_INFINITY), {}, 'ERR_NOT_FINITE', /row 2/],
    ['what bf16 makes infinite', withValue(3.4e38), {}, 'ERR_NOT_FINITE', /3\.39\d+e\+38 in row 2, .*bf16/],
    ['what fp16 makes infinite', withValue(-65520), { dtype: 'fp16' }, 'ERR_NOT_FINITE', /-65520 in row 2, .*fp16/],
    ['NaN in float16', { data: new Uint16Array(4).fill(0x7e00), dims: [1, 4] }, {}, 'ERR_NOT_FINITE', /row 0/],
    ['no row', rows(0), {}, 'ERR_SHAPE', /dims: got \[0, 4\]/],
    ['another width', rows(2, 8), {}, 'ERR_SHAPE', /dims: got \[2, 8\], wanted \[K, 4\]/],
    ['a vector', { data: new Float32Array(4), dims: [4] }, {}, 'ERR_SHAPE', /dims: got \[4\]/],
    ['two images as one', { data: new Float32Array(16), dims: [2, 2, 4] }, {}, 'ERR_SHAPE', /dims/],
    ['int32', { data: new Int32Array(4), dims: [1, 4] }, {}, 'ERR_DTYPE', /Int32Array/],
    ['int64', { type: 'int64', data: new BigInt64Array(4), dims: [1, 4] }, {}, 'ERR_DTYPE', /int64/],
    ['bits of bf16 as integers', { type: 'uint16', data: new Uint16Array(4), dims: [1, 4] }, {}, 'ERR_DTYPE', /uint16/],
    ['another type of element', rows(1), { dtype: 'fp8' }, 'ERR_VALUE', /dtype: got 'fp8', wanted 'bf16'/],
    ['no width', rows(1), { hiddenSize: undefined }, 'ERR_VALUE', /hiddenSize: got undefined/],
    ['an unknown option', rows(1), { legacy: true }, 'ERR_VALUE', /'legacy'/],
    ['no model', rows(1), { modelType: undefined }, 'ERR_VALUE', /modelType: got undefined, wanted 'llava'/],
    ['a model that was not tried', rows(1), { modelType: 'internvl' }, 'ERR_VALUE', /'internvl'.* no other was tried/],
    ['PaliGemma', rows(1), { modelType: 'paligemma' }, 'ERR_VALUE', /modelType: got 'paligemma', wanted 'llava'/],
    ['Gemma 3', rows(1), { modelType: 'gemma3' }, 'ERR_VALUE', /modelType: got 'gemma3'/],
    [
      'more than a string holds',
      { data: new Float32Array(2 ** 27), dims: [2 ** 25, 4] },
      { dtype: 'fp32' },
      'ERR_SHAPE',
      /134217728 numbers/,
    ],
  ])('%s', (_, given, options, code, message) => {
    const made = () => call(given as never, { ...LLAVA, ...options } as never);
    expect(made).toThrow(expect.objectContaining({ code }));
    expect(made).toThrow(message);
    if (code !== 'ERR_VALUE') expect(made).toThrow(name);
  });
});

describe('toImageEmbeds refuses', () => {
  it.each<[string, unknown, object, RegExp]>([
    ['bf16 in .npy', rows(1), { format: 'npy' }, /format: got 'npy' with dtype 'bf16'/],
    ['another format', rows(1), { format: 'pickle' }, /format: got 'pickle'/],
    ['Idefics3', rows(1), { modelType: 'idefics3' }, /vLLM 0.32.0 takes no image_embeds of it/],
    ['different K in one message', [rows(9), rows(5)], {}, /images of 9, 5 rows.*allowMixedK/],
    ['a count that is not the server’s', rows(7), { rows: 8 }, /features: got 7 rows, wanted 8/],
    ['one of them in a list', [rows(8), rows(7)], { rows: 8, allowMixedK: true }, /features\[1\]: got 7 rows/],
    ['no images', [], {}, /features: got no images/],
    ['something else than rows', 'rows', {}, /features: got 'rows'/],
    ['a grid where there is none', { features: rows(4), grid: [1, 4, 4] }, {}, /features: got Object, wanted a tensor/],
  ])('%s', (_, given, options, message) => {
    expect(() => toImageEmbeds(given as never, { ...LLAVA, ...options } as never)).toThrow(message);
  });

  it('not different K where that is allowed', () => {
    const parts = toImageEmbeds([rows(9), rows(5)], { ...LLAVA, allowMixedK: true });
    expect(parts.map(({ image_embeds }) => readTensorFile(Buffer.from(image_embeds as string, 'base64')).dims)).toEqual(
      [
        [9, 4],
        [5, 4],
      ],
    );
  });
});

describe('rows that a grid places', () => {
  const QWEN = { modelType: 'qwen2_5_vl', hiddenSize: 4 } as const;
  const grid = [1, 8, 12] as const; // 4 x 6 tokens
  const sent = (image: object, options: object = QWEN) =>
    (toImageEmbeds(image as never, options as never).image_embeds as { image_grid_thw: GridThw }).image_grid_thw;

  it('are all of them, or those of a rectangle with its own grid', () => {
    expect(sent({ features: rows(24), grid })).toEqual(grid);
    expect(sent({ features: rows(24), grid, indices: Int32Array.from({ length: 24 }, (_, i) => i) })).toEqual(grid);
    expect(sent({ features: rows(6), grid, indices: Int32Array.of(8, 9, 10, 14, 15, 16) })).toEqual([1, 4, 6]);
    expect(sent({ features: rows(1), grid, indices: Int32Array.of(23) })).toEqual([1, 2, 2]);
    expect(sent({ features: rows(48), grid: [2, 8, 12] })).toEqual([2, 8, 12]);
  });

  it.each<[string, object, object, RegExp]>([
    ['others', { features: rows(23), grid }, {}, /23 rows, wanted all 24 rows of the grid \[1,8,12\]/],
    ['a rectangle without its place', { features: rows(6), grid }, {}, /6 rows/],
    ['one with a hole', { features: rows(5), grid, indices: Int32Array.of(8, 9, 14, 15, 16) }, {}, /fill no rectangle/],
    ['one around the edge', { features: rows(2), grid, indices: Int32Array.of(5, 6) }, {}, /fill no rectangle/],
    ['one that leaves it', { features: rows(2), grid, indices: Int32Array.of(23, 24) }, {}, /fill no rectangle/],
    ['one of a video', { features: rows(2), grid: [2, 8, 12], indices: Int32Array.of(0, 1) }, {}, /fill no rectangle/],
    ['other indices', { features: rows(2), grid, indices: Int32Array.of(0) }, {}, /indices: got 1 indices, wanted 2/],
    ['an odd grid', { features: rows(6), grid: [1, 3, 8] }, {}, /grid\[1\]: got 3, wanted a multiple of 2/],
    ['half a grid', { features: rows(6), grid: [4, 6] }, {}, /grid: got \[4, 6\]/],
    ['no grid', rows(24), {}, /features: got a tensor without a grid/],
    ['Qwen3-VL without deepstack', { features: rows(24), grid }, { modelType: 'qwen3_vl' }, /deepstack: got undefined/],
    [
      'deepstack of fewer rows',
      { features: rows(24), grid, deepstack: { data: new Float32Array(92), dims: [1, 23, 4] } },
      { modelType: 'qwen3_vl' },
      /deepstack.dims: got \[1, 23, 4\], wanted \[layers, 24, 4\]/,
    ],
    ['deepstack elsewhere', { features: rows(24), grid, deepstack: rows(24) }, {}, /qwen2_5_vl has no deepstack/],
  ])('are not %s', (_, image, options, message) => {
    expect(() => sent(image, { ...QWEN, ...options })).toThrow(message);
  });

  it('have their deepstack rows behind them', () => {
    const deepstack = { data: Float32Array.from({ length: 16 }, (_, i) => i), dims: [2, 1, 8] };
    const features = { data: new Float32Array(8).fill(-1), dims: [1, 8] };
    const options = { modelType: 'qwen3_vl', hiddenSize: 8, dtype: 'fp32' } as const;
    const { image_embeds } = toImageEmbeds({ features, grid: [1, 2, 2], deepstack }, options);
    const read = readTensorFile(Buffer.from((image_embeds as { image_embeds: string }).image_embeds, 'base64'));
    expect([...read.values]).toEqual([...features.data, ...deepstack.data]);
    expect(read.dims).toEqual([1, 24]);
  });
});

it.each(['qwen2_vl', 'qwen3_vl'])('a prompt of %s is refused: it would be answered wrongly', (modelType) => {
  expect(() => toPromptEmbeds(rows(2), { ...LLAVA, modelType: modelType as never })).toThrow(/three axes/);
});

describe('checkUsage', () => {
  it.each([
    [{ usage: { prompt_tokens: 591 } }, 79, /response.usage.prompt_tokens: got 591, wanted 79/],
    [{}, 79, /response.usage: got undefined, wanted prompt_tokens/],
    [null, 79, /response: got null/],
    [{ usage: { prompt_tokens: 79 } }, 0, /expected: got 0/],
  ])('refuses %j', (response, expected, message) => {
    expect(() => checkUsage(response as never, expected)).toThrow(message);
  });

  it('is silent about what was meant', () => {
    expect(checkUsage({ usage: { prompt_tokens: 79 } }, 79)).toBeUndefined();
  });
});
