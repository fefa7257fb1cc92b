/** `longText: 'filter'` of the text towers, and of the models that ask by them. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { beforeAll, describe, expect, it } from 'vitest';
import { expose } from '../../src/onnx/edit.js';
import { openGraph } from '../../src/onnx/index.js';
import { ancestors } from '../../src/onnx/search/graph.js';
import { readText, type TextStructure, textGraph } from '../../src/onnx/text.js';
import { TEXT_NORMED, TextAttention } from '../../src/onnx/text-attention.js';
import type { Tensor } from '../../src/tensor.js';
import { ClipText, type EncodedText } from '../../src/vision/clip-text.js';
import { ImageProcessor, openVisionModel, type TextFilter } from '../../src/vision/index.js';
import { SiglipText } from '../../src/vision/siglip-text.js';
import { Editable } from '../onnx/editable.js';
import { dynamic8, fusedLinears, quickGelu, skipBias } from '../onnx/forms.js';
import { halfPrecision, multiHeadAttention, packedAttention, skipNorms, type Variant } from '../onnx/variants.js';
import { ROOT, relativeError } from '../support.js';

const TINY = { model: join(ROOT, 'models/tiny-clip/onnx/text_model.onnx'), tokenizer: join(ROOT, 'models/tiny-clip') };
const EXPORTS = join(ROOT, 'test/fixtures/exports');
/** A tower of 77 tokens with CLIP's byte-level tokens. */
const WIDE = { model: join(EXPORTS, 'models/whole_same_width.onnx'), tokenizer: join(EXPORTS, 'tok77') };
const LONG = 'is there a big red star near the small blue house in the top-left corner ?';
const QUIET = { logSeverityLevel: 3 } as const;

const rows = ({ embeddings }: Pick<EncodedText, 'embeddings'>) => embeddings.data as Float32Array;
const rowsAt = (encoded: EncodedText, places: readonly number[]) => {
  const width = encoded.embeddings.dims[1];
  return Float32Array.from(places.flatMap((at) => [...rows(encoded).subarray(at * width, (at + 1) * width)]));
};

/** One text by a tower that filters, and by one that does not. */
async function both(tower: typeof TINY, text: string, filter: TextFilter): Promise<[EncodedText, EncodedText]> {
  await using whole = await ClipText.open({ ...tower, session: QUIET });
  await using filtering = await ClipText.open({ ...tower, longText: 'filter', filter, session: QUIET });
  return [await filtering.encode(text), await whole.encode(text)];
}

const IMPORTANCE: readonly Required<TextFilter>['importance'][] = ['attention', 'cosine'];

describe.each(IMPORTANCE)('CLIP, by %s', (importance) => {
  it('leaves a text of as many tokens as may stay as it is', async () => {
    const [got, wanted] = await both(TINY, LONG, { importance, maxTokens: 18 });
    expect(wanted.embeddings.dims).toEqual([18, 96]);
    expect(got).toEqual(wanted);
    expect(got).not.toHaveProperty('filtered');
  });

  it('drops a token of a text with one more', async () => {
    const [got, wanted] = await both(TINY, LONG, { importance, maxTokens: 17 });
    expect(got.embeddings.dims[0]).toBeLessThanOrEqual(17);
    expect(got.filtered?.dropped).toBeGreaterThanOrEqual(1);
    expect(got.filtered?.dropped).toBe(wanted.ids.length - got.ids.length);
  });

  it('keeps start and end, and rows and end of the whole text bit for bit', async () => {
    const [got, wanted] = await both(TINY, LONG, { importance, maxTokens: 8 });
    const kept = [...(got.filtered?.kept ?? [])];
    expect(kept).toEqual([...kept].sort((a, b) => a - b));
    expect(kept).toHaveLength(6);
    expect(got.filtered?.scores).toHaveLength(16);
    const places = [0, ...kept.map((j) => j + 1), 17];
    expect(got.ids).toEqual(places.map((at) => wanted.ids[at]));
    expect(got.endOfText).toBe(7);
    expect(rows(got)).toEqual(rowsAt(wanted, places));
  });

  it('keeps for more tokens what it keeps for fewer, and says the same again', async () => {
    let before: number[] = [];
    for (const maxTokens of [3, 4, 6, 9, 17]) {
      const [[got], [again]] = [
        await both(TINY, LONG, { importance, maxTokens }),
        await both(TINY, LONG, { importance, maxTokens }),
      ];
      expect(got).toEqual(again);
      const kept = [...(got.filtered?.kept ?? [])];
      expect(kept).toEqual(expect.arrayContaining(before));
      before = kept;
    }
  });

  it('keeps of three windows the best words of all, and the end of the whole text', async () => {
    const text = Array.from({ length: 40 }, (_, i) => ['a bright', 'red', 'star,', 'blue', 'houses'][(i * i) % 5]).join(
      ' ',
    );
    const [got, wanted] = await both(WIDE, text, { importance, maxTokens: 30 });
    const content = wanted.ids.length;
    expect(content).toBeGreaterThan(150);
    expect(content).toBeLessThanOrEqual(225);
    const kept = [...(got.filtered?.kept ?? [])];
    expect(kept.length).toBeLessThanOrEqual(28);
    expect(kept.length).toBeGreaterThan(20);
    expect(got.endOfText).toEqual(wanted.endOfText);
    expect(rows(got)).toEqual(rowsAt(wanted, kept));
    expect(got.ids).toEqual(kept.map((j) => wanted.ids[j]));
    // Levelled windows have a mean of 1.
    const first = [...(got.filtered?.scores.subarray(0, 75) ?? [])];
    expect(first.reduce((sum, value) => sum + value, 0) / 75).toBeCloseTo(1, 12);
  });
});

describe('CLIP', () => {
  it('keeps words of several pieces whole, and cuts one that is too long', async () => {
    await using text = await ClipText.open({ ...WIDE, longText: 'filter', filter: { maxTokens: 12 }, session: QUIET });
    const { filtered, ids } = await text.encode('a cat, a dog - and a bottom shelf');
    const marked = JSON.parse(readFileSync(join(WIDE.tokenizer, 'tokenizer.json'), 'utf8')).model.vocab;
    const pieces = new Map(Object.entries(marked as Record<string, number>).map(([piece, id]) => [id, piece]));
    const kept = ids.slice(1, -1).map((id) => pieces.get(id) ?? '');
    // Each word ends, and begins behind another's end.
    expect(kept.join('').split('</w>').at(-1)).toBe('');
    for (const word of kept.join('').split('</w>').slice(0, -1))
      expect(['a', 'cat', 'dog', 'and', 'bottom', 'shelf']).toContain(word);
    expect(filtered?.dropped).toBeGreaterThan(2);
    const one = await text.encode('extraordinarilylongword');
    expect([...(one.filtered?.kept ?? [])]).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  });

  it('drops punctuation, unless it is wanted or all there is', async () => {
    const filter = { maxTokens: 6, frequency: (id: number) => (id === 33 ? 0 : 0.9) };
    expect((await both(TINY, LONG, filter))[0].ids).not.toContain(33);
    expect((await both(TINY, LONG, { ...filter, keepPunctuation: true }))[0].ids).toContain(33);
    const [only] = await both(TINY, '? ? ? ? ? ? ?', { maxTokens: 4 });
    expect(only.ids).toEqual([1, 33, 33, 2]);
  });

  it('drops what is common, while there are other words', async () => {
    const red = 44;
    const [got] = await both(TINY, LONG, { maxTokens: 16, frequency: (id) => Number(id === red) });
    expect(got.ids).not.toContain(red);
    const [all] = await both(TINY, LONG, { maxTokens: 6, frequency: () => 1 });
    expect([...(all.filtered?.kept ?? [])]).toEqual([0, 1, 2, 3]);
    for (const bad of [Number.NaN, -0.1, 2])
      await expect(both(TINY, LONG, { maxTokens: 6, frequency: () => bad })).rejects.toMatchObject({
        code: 'ERR_VALUE',
        message: expect.stringMatching(/^filter\.frequency: got .* for the id 7, wanted a number from 0 to 1/),
      });
  });

  it('refuses what its context does not allow', async () => {
    for (const maxTokens of [2, 1.5, 33])
      await expect(both(TINY, LONG, { maxTokens })).rejects.toMatchObject({
        code: 'ERR_VALUE',
        message: expect.stringMatching(
          /^filter\.maxTokens: got [\d.]+, wanted an integer (from 3 to 32|of at least 3)$/,
        ),
      });
  });
});

describe('the attention of the end', () => {
  let structure: TextStructure;
  let attention: TextAttention;
  beforeAll(async () => {
    structure = readText(TINY.model);
    attention = await TextAttention.read(ort, structure);
  });

  /** The values of a text in some form of the tower. */
  async function normed(of: TextStructure, read: TextAttention, ids: readonly number[], total = ids.length) {
    const session = await openGraph(ort, textGraph(of, read.values), QUIET);
    const feed = BigInt64Array.from({ length: total }, (_, i) => BigInt(ids[i] ?? 2));
    const outputs = await session.run({ input_ids: new ort.Tensor('int64', feed, [1, total]) });
    await session.release();
    const { data, dims } = outputs[TEXT_NORMED] as Tensor;
    const cols = dims[dims.length - 1];
    return { data: (data as Float32Array).slice(0, ids.length * cols), rows: ids.length, cols };
  }

  const IDS = [1, 7, 8, 5, 24, 44, 41, 34, 6, 23, 46, 52, 33, 2];

  it("is the last row of the graph's own softmax", async () => {
    const { graph, readOut } = structure;
    const softmax = ancestors(graph, readOut.norm.output)
      .filter(({ op }) => op === 'Softmax')
      .sort((a, b) => graph.depth(b.outputs[0]) - graph.depth(a.outputs[0]))[0].outputs[0];
    const session = await openGraph(ort, expose(graph.model, [softmax]), QUIET);
    const feed = new ort.Tensor('int64', BigInt64Array.from(IDS, BigInt), [1, IDS.length]);
    const { [softmax]: all } = await session.run({ input_ids: feed });
    await session.release();
    const T = IDS.length;
    const heads = all.data.length / (T * T);
    const wanted = Array.from({ length: T }, (_, i) => {
      let sum = 0;
      for (let h = 0; h < heads; h++) sum += (all.data as Float32Array)[(h * T + T - 1) * T + i];
      return sum / heads;
    });
    const got = attention.row(await normed(structure, attention, IDS));
    expect(got.reduce((sum, value) => sum + value, 0)).toBeCloseTo(1, 6);
    expect(relativeError(got, wanted)).toBeLessThan(1e-5);
    expect(heads).toBeGreaterThan(1);
  });

  it('does not change with padding', async () => {
    const alone = attention.row(await normed(structure, attention, IDS));
    const padded = attention.row(await normed(structure, attention, IDS, 32));
    expect(relativeError(padded, alone)).toBeLessThan(1e-6);
  });

  const cases: [string, Variant[], number][] = [
    ['float16', [halfPrecision], 2e-2],
    ['8-bit weights', [dynamic8], 0.2],
    ['Attention, fused norms and products', [quickGelu, packedAttention, fusedLinears, skipNorms], 1e-4],
    ['MultiHeadAttention, biases in fused norms', [quickGelu, multiHeadAttention, skipNorms, skipBias], 1e-4],
  ];
  it.each(cases)('is read in another form: %s', async (_, changes, tolerance) => {
    const graph = await Editable.from(readFileSync(TINY.model));
    for (const change of changes) change(graph);
    graph.prune();
    const how = { longText: 'filter', filter: { maxTokens: 8 }, session: QUIET } as const;
    await using plain = await ClipText.open({ ...TINY, ...how });
    await using other = await ClipText.open({ ...TINY, ...how, model: graph.bytes() });
    const [got, wanted] = [await other.encode(LONG), await plain.encode(LONG)];
    const scores = (of: EncodedText) => of.filtered?.scores ?? [];
    expect(relativeError(scores(got), scores(wanted))).toBeLessThan(tolerance);
  });

  it.each([
    ['text_ts14', 'tok20'],
    ['text_dynamo18', 'tok20'],
    ['text_ts14_positions', 'tok20'],
    ['openclip_text_dynamo18', 'tok77'],
  ])('is read from what an exporter wrote: %s', async (name, tokenizer) => {
    const tower = { model: join(EXPORTS, 'models', `${name}.onnx`), tokenizer: join(EXPORTS, tokenizer) };
    const [got, wanted] = await both(tower, 'the red cat and the blue dog', { maxTokens: 6 });
    expect(got.ids.length).toBeLessThanOrEqual(6);
    expect(got.filtered?.scores).toHaveLength(wanted.ids.length - 2);
  });

  it('is refused where it is not the one that was read, with what needs none', async () => {
    const graph = await Editable.from(readFileSync(TINY.model));
    // A bias of the scores by the ids themselves, which no weight says.
    for (const softmax of graph.nodes.filter(({ op }) => op === 'Softmax').slice(-1)) {
      const at = graph.nodes.indexOf(softmax);
      const ids = graph.add('Cast', ['input_ids'], { to: { i: 1 } }, { at });
      const own = graph.add('Mul', [ids, graph.floats([0.3], [])], {}, { at: at + 1 });
      softmax.inputs[0] = graph.add('Add', [softmax.inputs[0], own], {}, { at: at + 2 });
    }
    const tower = { ...TINY, model: graph.bytes(), longText: 'filter', session: QUIET } as const;
    await expect(ClipText.open(tower)).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: expect.stringMatching(/the attention of its last block.*filter: \{ importance: 'cosine' \} needs none/),
    });
    await using text = await ClipText.open({ ...tower, filter: { importance: 'cosine', maxTokens: 6 } });
    expect((await text.encode(LONG)).embeddings.dims[0]).toBeLessThanOrEqual(6);
  });
});

describe('SigLIP', () => {
  const FOLDER = join(ROOT, 'test/fixtures/siglip');
  const TEXT = 'what colour is the big red dog of the cat on the ball';

  it('keeps the words that are most like the text', async () => {
    await using words = await SiglipText.open(FOLDER, { text: 'words' });
    await using text = await SiglipText.open(FOLDER, { text: 'words', longText: 'filter', filter: { maxTokens: 3 } });
    const [got, all] = [await text.encode(TEXT), await words.encode(TEXT)];
    const kept = [...(got.filtered?.kept ?? [])];
    expect(all.embeddings.dims[0]).toBe(7);
    expect(kept).toHaveLength(3);
    expect(rows(got as EncodedText)).toEqual(rowsAt(all as EncodedText, kept));
    expect(got.endOfText).toEqual(all.endOfText);
    const scores = [...(got.filtered?.scores ?? [])];
    const least = Math.min(...kept.map((j) => scores[j]));
    expect(scores.filter((score) => score > least).length).toBeLessThan(3);
    const short = await text.encode('the red dog');
    expect(short).toEqual(await words.encode('the red dog'));
  });

  it('refuses what single words have none of', async () => {
    await expect(SiglipText.open(FOLDER, { longText: 'filter' })).rejects.toThrow(
      /^text: got 'pooled', wanted 'words' beside longText: 'filter'$/,
    );
    const filter = { importance: 'attention' } as const;
    await expect(SiglipText.open(FOLDER, { text: 'words', longText: 'filter', filter })).rejects.toThrow(
      /^filter\.importance: got 'attention', wanted 'cosine'$/,
    );
  });
});

describe('vision models', () => {
  const LLAVA = join(ROOT, 'models/tiny-llava');
  const QWEN = join(ROOT, 'test/fixtures/families/qwen2_vl');
  const clip = TINY.tokenizer;

  it('with a CLIP tower ask by what is left', async () => {
    const filter = { maxTokens: 6 };
    await using vision = await openVisionModel(LLAVA, { clip, longText: 'filter', filter });
    const pixels = await (await ImageProcessor.open(LLAVA)).process(join(ROOT, 'models/eval/demo/02.png'));
    const [image] = await vision.encode({ pixelValues: pixels });
    const [text] = await both(TINY, LONG, filter);
    const [asked, wanted] = [await image.prune(LONG, { keep: 16 }), await image.prune(text, { keep: 16 })];
    expect(asked.indices).toEqual(wanted.indices);
    expect(await vision.encodeQuestion(LONG)).toEqual(text);
    image.dispose();
  });

  it('with a language model’s space keep the words that are most like the question', async () => {
    const question = 'what is the red dog of the big cat on the ball';
    await using plain = await openVisionModel(QWEN);
    await using vision = await openVisionModel(QWEN, { longText: 'filter', filter: { maxTokens: 5 } });
    const all = (await plain.encodeQuestion(question)) as EncodedText;
    const got = (await vision.encodeQuestion(question)) as EncodedText;
    const kept = [...(got.filtered?.kept ?? [])];
    expect(all.embeddings.dims[0]).toBeGreaterThan(5);
    expect(kept.length).toBeGreaterThan(0);
    expect(kept.length).toBeLessThanOrEqual(5);
    expect(rows(got)).toEqual(rowsAt(all, kept));
    expect(got.endOfText).toBeInstanceOf(Float32Array);
    expect(await vision.encodeQuestion('what?')).toEqual(await plain.encodeQuestion('what?'));
  });

  it.each<[string, string, object, RegExp]>([
    ['a filter without longText', LLAVA, { clip, filter: {} }, /^filter: got a filter beside longText: 'segment'/],
    ['too few tokens', LLAVA, { clip, longText: 'filter', filter: { maxTokens: 2 } }, /^filter\.maxTokens: got 2/],
    [
      'a cut where nothing is too long',
      QWEN,
      { longText: 'truncate' },
      /^longText: got 'truncate', wanted 'segment' \| 'filter'$/,
    ],
    [
      'attention where there is none',
      QWEN,
      { longText: 'filter', filter: { importance: 'attention' } },
      /^filter\.importance: got 'attention', wanted 'cosine'$/,
    ],
    [
      "the language model's option beside SigLIP's space",
      QWEN,
      { task: 'siglip', siglip: join(ROOT, 'test/fixtures/siglip'), longText: 'filter' },
      /^longText: got an option beside task: 'siglip', wanted siglip: \{ longText, filter \}$/,
    ],
  ])('refuse %s', async (_, model, options, message) => {
    await expect(openVisionModel(model, options)).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(message),
    });
  });

  it('refuse embeddings without words where words are chosen', async () => {
    const embedQuestion = async () => ({ embeddings: { data: new Float32Array(8 * 32).fill(1), dims: [8, 32] } });
    await using vision = await openVisionModel(QWEN, { longText: 'filter', embedQuestion });
    await expect(vision.encodeQuestion('what?')).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(/^embedQuestion: got embeddings alone, wanted ids and words beside them/),
    });
  });
});
