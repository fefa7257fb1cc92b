import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readText } from '../../src/onnx/text.js';
import { Tensor } from '../../src/tensor.js';
import { ClipText, type EncodedText } from '../../src/vision/clip-text.js';
import { Editable } from '../onnx/editable.js';
import {
  blocks4,
  dynamic8,
  embeddings4,
  exportNames,
  fusedLinears,
  fusedProducts,
  quickGelu,
  skipBias,
} from '../onnx/forms.js';
import {
  gemmProjection,
  halfEverywhere,
  halfPrecision,
  multiHeadAttention,
  nineNodeNorms,
  packedAttention,
  shuffled,
  skipNorms,
  stripNames,
  type Variant,
} from '../onnx/variants.js';
import { relativeError } from '../support.js';

const MODEL = 'models/tiny-clip/onnx/text_model.onnx';
const TOKENIZER = 'models/tiny-clip';
const QUESTION = 'what color is the ring ?';
const IDS = [1, 9, 10, 7, 6, 43, 33, 2];
const QUIET = { logSeverityLevel: 3 } as const;
const FOLDER = mkdtempSync(join(tmpdir(), 'desap-text-'));
afterAll(() => rmSync(FOLDER, { recursive: true }));

const rowsOf = ({ embeddings }: Pick<EncodedText, 'embeddings'>) => embeddings.data as Float32Array;
const unit = (row: ArrayLike<number>) => {
  const length = Math.hypot(...Array.from(row));
  return Float32Array.from(row, (value) => value / length);
};

let text: ClipText;
let whole: ort.InferenceSession;
beforeAll(async () => {
  text = await ClipText.open({ model: MODEL, tokenizer: TOKENIZER });
  whole = await ort.InferenceSession.create(MODEL);
});
afterAll(async () => {
  await text.dispose();
  await whole.release();
});

/** The embedding that the file itself gives for some ids. */
async function embedding(ids: readonly number[]): Promise<Float32Array> {
  const feed = new ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]);
  return (await whole.run({ input_ids: feed })).text_embeds.data as Float32Array;
}

describe('ClipText', () => {
  test('the structure says what goes in and how long it may be', () => {
    expect(readText(MODEL)).toMatchObject({ ids: { name: 'input_ids' }, masks: [], contextLength: 32 });
    expect(() => readText('models/tiny-clip/onnx/vision_model.onnx')).toThrow(
      /depends on token ids; found 4 attention cores, 4 layers/,
    );
    expect(() => readText('models/tiny-llava/onnx/embed_tokens.onnx')).toThrow(/found 0 attention cores/);
    expect(() => readText('models/tiny-llava/onnx/decoder_model_merged.onnx')).toThrow(/depends on token ids/);
  });

  test('a row for each token from start to end; the end row is the embedding of the file', async () => {
    const encoded = await text.encode('What COLOR is the ring?');
    expect(encoded.ids).toEqual(IDS);
    expect(encoded.embeddings).toBeInstanceOf(Tensor);
    expect(encoded.embeddings.dims).toEqual([8, 96]);
    expect(encoded.endOfText).toBe(7);
    expect(relativeError(rowsOf(encoded).subarray(-96), await embedding(IDS))).toBeLessThan(1e-6);
  });

  test('attention is causal: every row is the end row of the text so far', async () => {
    const rows = rowsOf(await text.encode(QUESTION));
    // The file picks its first end token; a longer text has the same rows up to there.
    const longer = rowsOf(await text.encode(`${QUESTION} yes no`));
    expect(relativeError(longer.subarray(0, 7 * 96), rows.subarray(0, 7 * 96))).toBeLessThan(1e-6);
  });

  test('the first end token ends the text', async () => {
    const encoded = await text.encode('what color <eos> is the ring ?');
    expect(encoded.ids).toEqual([1, 9, 10, 2]);
    expect(relativeError(rowsOf(encoded).subarray(-96), await embedding([1, 9, 10, 2]))).toBeLessThan(1e-6);
  });

  test('same answer again, and several at a time', async () => {
    const [a, b, c] = await Promise.all([text.encode(QUESTION), text.encode('a red star'), text.encode(QUESTION)]);
    expect(rowsOf(a)).toEqual(rowsOf(c));
    expect(b.ids).toHaveLength(5);
  });

  test('bad texts', async () => {
    for (const bad of ['', '  \n', null, undefined, 3, ['a'], '<eos>'])
      await expect(text.encode(bad as never)).rejects.toMatchObject({
        code: 'ERR_VALUE',
        message: expect.stringMatching(/^text: got /),
      });
  });
});

describe('texts longer than the context', () => {
  // 32 tokens with start and end: windows of 30.
  const words = Array.from({ length: 70 }, (_, i) => ['red', 'star', 'blue', 'ring', 'house'][(i * i) % 5]);
  const long = words.join(' ');

  test('segment: windows with their own start and end tokens', async () => {
    const encoded = await text.encode(long);
    expect(encoded.embeddings.dims).toEqual([70, 96]);
    expect(encoded.ids).toHaveLength(70);
    const windows = [0, 30, 60].map((from) => words.slice(from, from + 30).join(' '));
    const parts = await Promise.all(windows.map((window) => text.encode(window)));
    expect(parts.map((part) => part.embeddings.dims[0])).toEqual([32, 32, 12]);
    const content = parts.flatMap((part) => [...rowsOf(part).subarray(96, -96)]);
    expect(relativeError(rowsOf(encoded), content)).toBeLessThan(1e-6);
    const ends = parts.map((part) => unit(rowsOf(part).subarray(-96)));
    const mean = unit(ends[0].map((_, c) => ends[0][c] + ends[1][c] + ends[2][c]));
    expect(encoded.endOfText).toBeInstanceOf(Float32Array);
    expect(relativeError(encoded.endOfText as Float32Array, mean)).toBeLessThan(1e-6);
  });

  test('exactly the context is one window', async () => {
    expect((await text.encode(words.slice(0, 30).join(' '))).endOfText).toBe(31);
    expect((await text.encode(words.slice(0, 31).join(' '))).endOfText).toBeInstanceOf(Float32Array);
  });

  test('truncate and error', async () => {
    const truncating = await ClipText.open({ model: MODEL, tokenizer: TOKENIZER, longText: 'truncate' });
    const encoded = await truncating.encode(long);
    expect(encoded.embeddings.dims).toEqual([32, 96]);
    expect(encoded.endOfText).toBe(31);
    expect(encoded.ids.at(-1)).toBe(2);
    await truncating.dispose();
    const strict = await ClipText.open({ model: MODEL, tokenizer: TOKENIZER, longText: 'error' });
    await expect(strict.encode(long)).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: "text: got 72 tokens, wanted at most 32 (or longText: 'segment' | 'truncate')",
    });
    await expect(strict.encode(QUESTION)).resolves.toMatchObject({ ids: IDS });
    await strict.dispose();
  });
});

describe('the same tower in other forms', () => {
  const withMask: Variant = (graph) => {
    // An attention mask as second input, added to the scores of every layer.
    const mask = graph.add('Cast', ['attention_mask'], { to: { i: 1 } }, { at: 0 });
    const bias = graph.add(
      'Mul',
      [graph.add('Sub', [mask, graph.floats([1], [])], {}, { at: 1 }), graph.floats([1e9], [])],
      {},
      { at: 2 },
    );
    graph.inputs.push({ name: 'attention_mask', type: 7, dims: ['batch', 'length'] });
    const shaped = graph.add('Unsqueeze', [bias, graph.integers([1, 2])], {}, { at: 3 });
    for (const softmax of graph.nodes.filter(({ op }) => op === 'Softmax'))
      softmax.inputs[0] = graph.add('Add', [softmax.inputs[0], shaped], {}, { at: graph.nodes.indexOf(softmax) });
  };
  const fixedLength: Variant = (graph) => {
    graph.inputs[0] = { ...graph.inputs[0], dims: [1, 16] };
  };
  const int32Ids: Variant = (graph) => {
    const ids = graph.add('Cast', ['ids32'], { to: { i: 7 } }, { at: 0 });
    graph.redirect('input_ids', ids);
    graph.inputs = [{ name: 'ids32', type: 6, dims: ['batch', 'length'] }];
  };
  const unitOutput: Variant = (graph) => {
    const [output] = graph.outputs;
    const length = graph.add('ReduceL2', [output], { axes: { ints: [-1] }, keepdims: { i: 1 } });
    graph.outputs = [graph.add('Div', [output, length])];
  };
  const cases: [string, Variant[], number][] = [
    ['names stripped', [stripNames], 1e-6],
    ['nodes in another order', [shuffled], 1e-6],
    ['layer norms of nine nodes', [nineNodeNorms], 1e-5],
    ['projection as Gemm', [gemmProjection], 1e-5],
    ['SkipLayerNormalization without a fourth output', [skipNorms], 1e-5],
    ['torch.export names', [exportNames], 1e-6],
    ['float16', [halfPrecision], 1e-3],
    ['float16 at its end too', [halfEverywhere], 1e-3],
    ['8-bit weights', [dynamic8], 3e-2],
    ['4-bit weights', [blocks4], 0.1],
    ['4-bit weights and embeddings', [blocks4, embeddings4], 0.15],
    ['4-bit weights and float16', [blocks4, halfPrecision], 0.1],
    ['Attention, fused norms and products', [quickGelu, packedAttention, fusedLinears, skipNorms], 1e-5],
    ['MultiHeadAttention, biases in fused norms', [quickGelu, multiHeadAttention, skipNorms, skipBias], 1e-5],
    ['FusedMatMul with the scale in it', [fusedProducts, fusedLinears, skipNorms], 1e-5],
    ['with an attention mask', [withMask], 1e-5],
    ['for 16 tokens only', [fixedLength], 1e-5],
    ['32-bit ids', [int32Ids], 1e-6],
    ['an embedding of unit length', [unitOutput], 1e-5],
  ];
  test.each(cases)('%s', async (_, changes, tolerance) => {
    const graph = await Editable.from(readFileSync(MODEL));
    for (const change of changes) change(graph);
    graph.prune();
    expect(readText(graph.bytes()).contextLength).toBe(32);
    const other = await ClipText.open({
      model: graph.bytes(),
      tokenizer: join(TOKENIZER, 'tokenizer.json'),
      // A short text stays as it is; opening says whether the attention of the last block was read right.
      longText: 'filter',
      session: QUIET,
    });
    const [got, wanted] = await Promise.all([other.encode(QUESTION), text.encode(QUESTION)]);
    expect(got.ids).toEqual(wanted.ids);
    expect(relativeError(rowsOf(got), rowsOf(wanted))).toBeLessThan(tolerance);
    await other.dispose();
  });
});

describe('opening and closing', () => {
  test('the wrong model, tokenizer or option', async () => {
    const open = (options: object) => ClipText.open({ model: MODEL, tokenizer: TOKENIZER, ...options });
    await expect(open({ model: 'models/tiny-clip/onnx/vision_model.onnx' })).rejects.toMatchObject({
      code: 'ERR_GRAPH',
    });
    await expect(open({ model: 'models/none.onnx' })).rejects.toMatchObject({ code: 'ERR_FILE' });
    await expect(open({ tokenizer: 'models/none' })).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringContaining('tokenizer.json'),
    });
    writeFileSync(join(FOLDER, 'tokenizer.json'), '[]');
    await expect(open({ tokenizer: FOLDER })).rejects.toMatchObject({ code: 'ERR_FILE' });
    writeFileSync(join(FOLDER, 'tokenizer.json'), '{"model": ');
    await expect(open({ tokenizer: FOLDER })).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringContaining('JSON'),
    });
    await expect(open({ longText: 'wrap' })).rejects.toMatchObject({ code: 'ERR_VALUE' });
  });

  test('a tokenizer whose end token the model does not look for', async () => {
    const folder = join(FOLDER, 'other');
    cpSync(TOKENIZER, folder, { recursive: true, filter: (path) => !path.includes('onnx') });
    const file = join(folder, 'tokenizer.json');
    writeFileSync(file, readFileSync(file, 'utf8').replaceAll('"<eos>"', '"<ans>"'));
    await expect(ClipText.open({ model: MODEL, tokenizer: folder })).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: expect.stringContaining('may not belong together'),
    });
  });

  test('disposed', async () => {
    const other = await ClipText.open({ model: MODEL, tokenizer: TOKENIZER, ort });
    await other[Symbol.asyncDispose]();
    await other.dispose();
    await expect(other.encode(QUESTION)).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
  });
});
