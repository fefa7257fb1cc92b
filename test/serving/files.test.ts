/** Tensor files, byte by byte: as PyTorch and NumPy read them, and as vLLM took them. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { toImageEmbeds, toPromptEmbeds } from '../../src/serving/index.js';
import { embeds, FOLDER, parts, request, WIDTH } from './fixtures.js';
import { CASES, fileOf } from './torch-cases.js';
import { readTensorFile } from './torch-reader.js';

const { accepted } = JSON.parse(readFileSync(join(import.meta.dirname, 'torch-accepted.json'), 'utf8')) as {
  accepted: Record<string, string>;
};

describe('a file that PyTorch or NumPy read to the bit', () => {
  it('is in the list, each', () => {
    expect(CASES.map(({ name }) => name).sort()).toEqual(Object.keys(accepted).sort());
  });

  it.each(CASES.map((one) => [one.name, one] as const))('%s', (name, one) => {
    expect(createHash('sha256').update(fileOf(one)).digest('hex')).toBe(accepted[name]);
  });
});

it.each(['bf16', 'fp16', 'fp32'])('the strict reader reads what torch.save writes, %s', (dtype) => {
  const read = readTensorFile(readFileSync(join(FOLDER, `torch-save-${dtype}.pt`)));
  expect([read.dtype, read.dims]).toEqual([dtype, [3, 5]]);
  read.values.forEach((value, i) => {
    const exact = (((i * 7919) % 65521) - 32760) / 1024;
    expect(Math.abs(value - exact)).toBeLessThanOrEqual(
      Math.abs(exact) * { bf16: 2 ** -8, fp16: 2 ** -11, fp32: 0 }[dtype]!,
    );
  });
});

/** Rows of a request in float32. */
const rowsOf = (text: string) => {
  const { values, dims } = readTensorFile(Buffer.from(text, 'base64'));
  return { data: values, dims };
};
const LLAVA = { modelType: 'llava', hiddenSize: WIDTH } as const;

describe('a request that vLLM answered as Hugging Face', () => {
  const rows = rowsOf(embeds('llava-k16-torch-fp32'));

  it.each([
    ['llava-k16-torch-fp32', { dtype: 'fp32' }],
    ['llava-k16-torch-bf16', {}],
    ['llava-k16-torch-fp16', { dtype: 'fp16', format: 'torch' }],
    ['llava-k16-npy-fp32', { dtype: 'fp32', format: 'npy' }],
    ['llava-k16-npy-fp16', { dtype: 'fp16', format: 'npy' }],
  ] as const)('%s', (name, options) => {
    expect([toImageEmbeds(rows, { ...LLAVA, ...options })]).toEqual(parts(name));
  });

  it('of one row', () => {
    const one = rowsOf(embeds('llava-k1-fp32'));
    expect([toImageEmbeds({ ...one, dims: [1, 1, WIDTH] }, { ...LLAVA, dtype: 'fp32' })]).toEqual(
      parts('llava-k1-fp32'),
    );
  });

  it('of two images', () => {
    const name = 'llava-two-images-equal-k';
    const images = [0, 1].map((i) => rowsOf(embeds(name, i)));
    expect(toImageEmbeds(images, { ...LLAVA, dtype: 'fp32', rows: 9 })).toEqual(parts(name));
  });

  it('of a whole prompt', () => {
    const { prompt_embeds } = request('llava-prompt-embeds-k16');
    const given = rowsOf(prompt_embeds as string);
    expect(toPromptEmbeds(given, { ...LLAVA, dtype: 'fp32' })).toEqual({ prompt_embeds });
  });

  it('of a whole grid', () => {
    const name = 'qwen2_5-all-64-grid-json';
    const image = { features: rowsOf(embeds(name)), grid: [1, 16, 16] as const };
    expect([toImageEmbeds(image, { modelType: 'qwen2_5_vl', hiddenSize: WIDTH, dtype: 'fp32' })]).toEqual(parts(name));
  });
});

it('float16 features are sent as they are', () => {
  const bits = Uint16Array.of(0x3c01, 0x8001, 0x7bff, 0x0000);
  const { image_embeds } = toImageEmbeds(
    { data: bits, dims: [2, 2] },
    { modelType: 'llava', hiddenSize: 2, dtype: 'fp16' },
  );
  const file = Buffer.from(image_embeds as string, 'base64');
  expect(file.includes(Buffer.from(bits.buffer))).toBe(true);
});
