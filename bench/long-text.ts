/**
 * What `longText: 'filter'` costs on questions that are short already: right answers of the example model with few words of a question
 * left, beside whole questions. Run: npx tsx bench/long-text.ts
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ClipText, type TextImportance } from '../src/vision/index.js';
import { eachQuestion, KEEPS, MODELS, mean, type Paired, paired, RESULTS, row, signed } from './questions.js';

const MAX_TOKENS = [4, 6, 8];
const IMPORTANCE: readonly TextImportance[] = ['attention', 'cosine'];

const clip = join(MODELS, 'tiny-clip');
const tower = { model: join(clip, 'onnx/text_model.onnx'), tokenizer: clip };
const forms = IMPORTANCE.flatMap((importance) => MAX_TOKENS.map((maxTokens) => ({ importance, maxTokens })));
const whole = await ClipText.open(tower);
const texts = await Promise.all(forms.map((filter) => ClipText.open({ ...tower, longText: 'filter', filter })));

/** Of each question by each form, the whole one first: the tokens it has, and 100 for each K with which it was answered right. */
const measured = await eachQuestion(async ({ question, analysis, isRight }) => {
  const asked = [];
  for (const text of [whole, ...texts]) {
    const { filtered, ids, ...embeddings } = await text.encode(question);
    const right: Record<number, number> = {};
    for (const keep of KEEPS) right[keep] = 100 * Number(await isRight(await analysis.prune(embeddings, { keep })));
    asked.push({ tokens: ids.length, right });
  }
  return asked;
});
await Promise.all([whole, ...texts].map((text) => text.dispose()));

interface Row {
  readonly name: string;
  /** Mean tokens of a question. */
  readonly tokens: number;
  /** By K, to whole questions. */
  readonly cells: Readonly<Record<number, Paired>>;
}

const rows = [
  'whole questions',
  ...forms.map(({ importance, maxTokens }) => `${maxTokens} tokens by ${importance}`),
].map(
  (name, form): Row => ({
    name,
    tokens: mean(measured.map((asked) => asked[form].tokens)),
    cells: Object.fromEntries(
      KEEPS.map((keep) => {
        const right = (of: number) => measured.map((asked) => asked[of].right[keep]);
        return [keep, paired(right(form), right(0))];
      }),
    ),
  }),
);

const head = ['question', 'tokens', ...KEEPS.map((keep) => `${keep} of 144`)];
const text = [
  '# Accuracy with filtered questions',
  '',
  'Percent of 400 questions, DeSAP as printed; in brackets the paired difference to whole questions with its standard error. Tokens are those of',
  'a question on average, start and end included.',
  '',
  row(...head),
  row(...head.map(() => '---')),
  ...rows.map(({ name, tokens, cells }) =>
    row(name, tokens.toFixed(1), ...KEEPS.map((keep) => `${cells[keep].percent.toFixed(2)} (${signed(cells[keep])})`)),
  ),
  '',
].join('\n');
await writeFile(join(RESULTS, 'long-text.json'), `${JSON.stringify(rows, null, 1)}\n`);
await writeFile(join(RESULTS, 'long-text.md'), text);
process.stdout.write(text);
