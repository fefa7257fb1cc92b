/**
 * npx tsx bench/forms/run.ts <folder> [questions]: what a vision encoder in q8, int8 or fp16 does to what is kept, and to the answers, beside the
 * same encoder in float32. `python bench/forms/make.py <folder> models/tiny-llava models/tiny-llava-next` writes the example models' folders;
 * the other encoders, of random weights, are of test/fixtures. Writes bench/results/forms.{json,md}, unless it asks a part of the questions.
 */
import { cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { llavaImages } from '../../src/cli/images/llava.js';
import { llavaNextImages } from '../../src/cli/images/llava-next.js';
import { Llava, type SeenImage } from '../../src/cli/llava/llava.js';
import { openVisionModel } from '../../src/vision/open.js';
import type { PrunedFeatures, VisionInputs, VisionPruneOptions } from '../../src/vision/vision-model.js';
import { normal, tensor } from '../data.js';
import { machine } from '../harness.js';
import { temporaryFolder } from '../onnx-models.js';
import { MODELS, mean, type Paired, paired, RESULTS, row, signed } from '../questions.js';

const FAMILIES = fileURLToPath(new URL('../../test/fixtures/families', import.meta.url));
const [, , folder = 'out/forms', count = '400'] = process.argv;
const LIMIT = Number(count);
const FORMS = ['q8', 'int8', 'fp16'] as const;
/** 11 % of a tile's 144 patches. */
const KEEP = 16;

interface Question {
  readonly image: string;
  readonly question: string;
  readonly answer: string;
}

const WAYS: Readonly<Record<string, VisionPruneOptions>> = {
  'the default': { keep: KEEP },
  'preset best': { keep: KEEP, preset: 'best' },
};

/** Where the images of questions are, and how a model folder says to read them. */
interface Images {
  readonly folder: string;
  readonly reader: (model: string) => ReturnType<typeof llavaImages>;
}

/** What one form makes of one question, a way. */
interface Asked {
  /** Text of the answer from all tokens, and by way. */
  readonly all: string;
  readonly pruned: Readonly<Record<string, { readonly text: string; readonly kept: ReadonlySet<number> }>>;
}

/** A form beside float32, of the same questions. */
interface Row {
  readonly model: string;
  readonly form: string;
  readonly way: string;
  /** Percent of what float32 keeps, and of the images whose kept set is the same. */
  readonly recall: number;
  readonly same: number;
  /** Percent of the answers that are float32's; null where there is no language model. */
  readonly answers: number | null;
  /** Percent of right answers, beside those of float32. */
  readonly accuracy: Paired | null;
}

async function ask(seen: SeenImage, question: string): Promise<Asked> {
  const pruned: [string, Asked['pruned'][string]][] = [];
  for (const [way, options] of Object.entries(WAYS)) {
    const { text, pruned: own } = await seen.answer(question, options);
    pruned.push([way, { text, kept: new Set((own as PrunedFeatures).indices) }]);
  }
  return { all: (await seen.answer(question, { keep: 'all' })).text, pruned: Object.fromEntries(pruned) };
}

async function answersOf(
  model: string,
  questions: readonly Question[],
  { folder: images, reader }: Images,
): Promise<Asked[]> {
  const llava = await Llava.open(model, { clip: join(MODELS, 'tiny-clip'), images: await reader(model) });
  try {
    const asked: Asked[] = [];
    for (const { image, question } of questions) {
      using seen = await llava.see(join(images, image));
      asked.push(await ask(seen, question));
    }
    return asked;
  } finally {
    await llava.dispose();
  }
}

const percent = (flags: readonly boolean[]) => 100 * mean(flags.map(Number));

/** What the second keeps of what the first does. */
function overlap(wanted: readonly ReadonlySet<number>[], got: readonly ReadonlySet<number>[]) {
  const shares = wanted.map((set, i) => [...set].filter((index) => got[i].has(index)).length / set.size);
  return { recall: 100 * mean(shares), same: percent(shares.map((share) => share === 1)) };
}

async function exampleRows(model: string, images: Images): Promise<Row[]> {
  const lines = (await readFile(join(images.folder, 'questions.jsonl'), 'utf8')).trim().split('\n');
  const questions = lines.slice(0, LIMIT).map((line): Question => JSON.parse(line));
  const exact = await answersOf(join(MODELS, model), questions, images);
  const right = (texts: readonly string[]) => texts.map((text, i) => 100 * Number(text === questions[i].answer));
  const rows: Row[] = [];
  for (const form of FORMS) {
    process.stderr.write(`  ${form} ...\n`);
    const own = await answersOf(join(folder, model, form), questions, images);
    const beside = (way: string, of: (one: Asked) => string, kept: Pick<Row, 'recall' | 'same'>): Row => {
      const [wanted, got] = [exact.map(of), own.map(of)];
      const answers = percent(got.map((text, i) => text === wanted[i]));
      return { model, form, way, ...kept, answers, accuracy: paired(right(got), right(wanted)) };
    };
    rows.push(beside('all tokens', ({ all }) => all, { recall: 100, same: 100 }));
    for (const way of Object.keys(WAYS)) {
      const sets = (all: readonly Asked[]) => all.map(({ pruned }) => pruned[way].kept);
      rows.push(beside(way, ({ pruned }) => pruned[way].text, overlap(sets(exact), sets(own))));
    }
  }
  return rows;
}

/** Encoders of the fixtures in two forms, and images of noise for them. */
const FIXTURES: readonly {
  readonly family: string;
  readonly forms: readonly string[];
  inputs(i: number): VisionInputs;
}[] = [
  { family: 'idefics3', forms: ['q8'], inputs: (i) => ({ pixelValues: noise(i, [1, 3, 3, 32, 32]) }) },
  {
    family: 'lfm2_vl',
    forms: ['q8', 'q4'],
    inputs: (i) => ({ pixelValues: noise(i, [2, 64, 48]), spatialShapes: grids([8, 8], [8, 8]) }),
  },
  {
    family: 'qwen2_5_vl',
    forms: ['q8'],
    inputs: (i) => ({ pixelValues: noise(i, [144, 96]), imageGridThw: grids([1, 12, 12]) }),
  },
  {
    family: 'qwen2_vl',
    forms: ['q4'],
    inputs: (i) => ({ pixelValues: noise(i, [144, 96]), imageGridThw: grids([1, 12, 12]) }),
  },
  { family: 'paligemma', forms: ['q4'], inputs: (i) => ({ pixelValues: noise(i, [1, 3, 32, 32]) }) },
  { family: 'gemma3', forms: ['fp16'], inputs: (i) => ({ pixelValues: noise(i, [1, 3, 32, 32]) }) },
];
const IMAGES = 50;

function noise(seed: number, dims: readonly number[]) {
  return {
    data: normal(
      seed + 1,
      dims.reduce((product, extent) => product * extent, 1),
    ),
    dims,
  };
}

function grids(...rows: readonly (readonly number[])[]) {
  return { data: BigInt64Array.from(rows.flat(), BigInt), dims: [rows.length, rows[0].length] };
}

async function fixtureRows({ family, forms, inputs }: (typeof FIXTURES)[number]): Promise<Row[]> {
  const keptBy = async (model: string) => {
    await using vision = await openVisionModel(model);
    const sets: ReadonlySet<number>[] = [];
    for (let i = 0; i < IMAGES; i++) {
      const [image] = await vision.encode(inputs(i));
      const width = (await image.all()).dims[2];
      const question = { embeddings: tensor(1000 + i, 8, width), endOfText: 7 };
      sets.push(new Set((await image.prune(question, { keepRatio: 1 / 9 })).indices));
      await image.dispose();
    }
    return sets;
  };
  const source = join(FAMILIES, family);
  const exact = await keptBy(source);
  const rows: Row[] = [];
  for (const form of forms) {
    const other = join(temporaryFolder(), family);
    await cp(source, other, { recursive: true });
    await cp(join(FAMILIES, 'forms', `${family}.${form}.onnx`), join(other, 'onnx/vision_encoder.onnx'));
    const kept = overlap(exact, await keptBy(other));
    rows.push({ model: family, form, way: 'the default', ...kept, answers: null, accuracy: null });
  }
  return rows;
}

const rows: Row[] = [];
for (const [model, questions, reader] of [
  ['tiny-llava', 'eval', llavaImages],
  ['tiny-llava-next', 'eval-next', llavaNextImages],
] as const) {
  process.stderr.write(`${model} ...\n`);
  rows.push(...(await exampleRows(model, { folder: join(MODELS, questions), reader })));
}
for (const fixture of FIXTURES) {
  process.stderr.write(`${fixture.family} ...\n`);
  rows.push(...(await fixtureRows(fixture)));
}
const { date } = machine();
const text = [
  '# Vision encoders in smaller arithmetic',
  '',
  `${date}. The same encoder in float32 and in another form, made by ONNX Runtime's own tools (\`bench/forms/make.py\`); the head, the text tower and`,
  `the language model stay float32. The example models: ${LIMIT} questions, ${KEEP} of 144 tokens of each tile. The others are fixtures of random weights, tiny and`,
  `32 wide, which round worse than trained ones: ${IMAGES} images of noise, a ninth of the tokens. Recall: how much of what float32 keeps is kept. Answers:`,
  'how many are those of float32; right ones with the paired difference to float32 and its standard error.',
  '',
  row(
    'model',
    'encoder',
    'tokens',
    'recall, %',
    'the same set, %',
    'answers of float32, %',
    'right, %',
    'beside float32',
  ),
  row(...new Array(8).fill('---')),
  ...rows.map(({ model, form, way, recall, same, answers, accuracy }) =>
    row(
      ...[model, form, way],
      ...(way === 'all tokens' ? ['', ''] : [recall.toFixed(1), same.toFixed(1)]),
      ...(accuracy ? [(answers as number).toFixed(1), accuracy.percent.toFixed(2), signed(accuracy)] : ['', '', '']),
    ),
  ),
  '',
].join('\n');
process.stdout.write(text);
if (LIMIT === 400) {
  await mkdir(RESULTS, { recursive: true });
  await writeFile(
    join(RESULTS, 'forms.json'),
    `${JSON.stringify({ date, keep: KEEP, questions: LIMIT, rows }, null, 1)}\n`,
  );
  await writeFile(join(RESULTS, 'forms.md'), text);
}
