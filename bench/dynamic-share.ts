/**
 * Whether a rule that reads the task map itself can say how much of K the question should choose (`taskShare`). Three rules
 * without training, each with one exponent, are fitted on the first half of the example model's questions and reported on the
 * other half, beside fixed shares. Run: npx tsx bench/dynamic-share.ts
 */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Llava } from '../src/cli/llava/llava.js';
import type { Alignment } from '../src/index.js';
import type { LlavaVision } from '../src/vision/llava.js';
import type { LlavaImage } from '../src/vision/llava-image.js';

const MODELS = fileURLToPath(new URL('../models', import.meta.url));
const RESULTS = fileURLToPath(new URL('./results', import.meta.url));

const KEEPS = [48, 32, 16, 8];
const ALIGNMENTS: readonly Alignment[] = ['fcma', 'mean'];
/** Shares are measured in steps of 1 / STEPS. */
const STEPS = 8;
const FIXED = STEPS / 2;
const EXPONENTS = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4];

/** How sure a task map is, from 0 to 1, given K. */
type Sureness = (map: Float32Array, keep: number) => number;

/**
 * The share of the question is `sureness ^ exponent`. With p the map less its smallest score, divided by its sum, and t its scores in
 * descending order:
 */
const RULES: Readonly<Record<string, Sureness>> = {
  /** 1 - H(p) / ln P. */
  entropy: (map) => {
    const entropy = shares(map).reduce((sum, p) => (p > 0 ? sum - p * Math.log(p) : sum), 0);
    return 1 - entropy / Math.log(map.length);
  },
  /** (t_K - t_K+1) / (t_1 - t_P). */
  'gap at the cut': (map, keep) => {
    const t = Float32Array.from(map).sort().reverse();
    const range = t[0] - t[t.length - 1];
    return range > 0 ? (t[keep - 1] - t[keep]) / range : 0;
  },
  /** The sum of the K largest p. */
  'mass in the top K': (map, keep) =>
    shares(map)
      .sort()
      .subarray(-keep)
      .reduce((sum, p) => sum + p, 0),
};

function shares(map: Float32Array): Float64Array {
  const least = Math.min(...map);
  const sum = map.reduce((total, score) => total + score - least, 0);
  return Float64Array.from(map, (score) => (sum > 0 ? (score - least) / sum : 1 / map.length));
}

/** One question: its task map, and for each K whether it was answered right with each share. */
interface Asked {
  readonly map: Float32Array;
  readonly right: Readonly<Record<number, readonly boolean[]>>;
}

async function ask(alignment: Alignment, onQuestion: () => void): Promise<Asked[]> {
  const lines = (await readFile(join(MODELS, 'eval', 'questions.jsonl'), 'utf8')).trim().split('\n');
  const questions = lines.map((line) => JSON.parse(line) as Record<'image' | 'question' | 'answer', string>);
  const llava = await Llava.open(join(MODELS, 'tiny-llava'), { clip: join(MODELS, 'tiny-clip') });
  const vision = llava.vision as LlavaVision;
  const asked: Asked[] = [];
  for (const { image: file, question, answer } of questions) {
    using seen = await llava.see(join(MODELS, 'eval', file));
    const analysis = await (seen.image as LlavaImage).analysis();
    const text = await vision.encodeQuestion(question);
    const { maps } = await analysis.prune(text, { keep: 1, alignment, maps: true });
    const right: Record<number, boolean[]> = {};
    for (const keep of KEEPS) {
      const answers = new Map<string, boolean>();
      right[keep] = [];
      for (let step = 0; step <= STEPS; step++) {
        const kept = await analysis.prune(text, { keep, alignment, taskShare: step / STEPS });
        const key = kept.indices.join();
        if (!answers.has(key)) {
          const features = await vision.project(kept.tokens);
          answers.set(key, (await llava.complete({ features, kept }, question, {})).text === answer);
        }
        right[keep].push(answers.get(key) as boolean);
      }
    }
    asked.push({ map: maps?.task as Float32Array, right });
    onQuestion();
  }
  await llava.dispose();
  return asked;
}

/** The step that a rule, or a fixed share, takes for a question. */
type Choice = (asked: Asked, keep: number) => number;

const always =
  (step: number): Choice =>
  () =>
    step;
const byRule =
  (sureness: Sureness, exponent: number): Choice =>
  ({ map }, keep) =>
    Math.round(Math.max(0, sureness(map, keep)) ** exponent * STEPS);

/** Percent of questions that a choice is right about; each K is an own row of the table, or all together one. */
const rightOf = (asked: Asked, keeps: readonly number[], choose: Choice) =>
  (100 * keeps.filter((keep) => asked.right[keep][choose(asked, keep)]).length) / keeps.length;

const mean = (values: readonly number[]) => values.reduce((sum, one) => sum + one, 0) / values.length;

/** What one choice did, and its difference to another on the same questions, in points with its standard error. */
interface Cell {
  readonly percent: number;
  readonly difference: number;
  readonly error: number;
  /** The mean share that was taken. */
  readonly share: number;
}

/** All K of a question are one draw. */
function cell(questions: readonly Asked[], keeps: readonly number[], choose: Choice, beside: Choice): Cell {
  const each = questions.map((asked) => rightOf(asked, keeps, choose) - rightOf(asked, keeps, beside));
  const difference = mean(each);
  const variance = each.reduce((sum, one) => sum + (one - difference) ** 2, 0) / (each.length - 1);
  return {
    percent: mean(questions.map((asked) => rightOf(asked, keeps, choose))),
    difference,
    error: Math.sqrt(variance / each.length),
    share: mean(questions.flatMap((asked) => keeps.map((keep) => choose(asked, keep) / STEPS))),
  };
}

/** The candidate that is right most often over all K; the first of equals. */
function best<T>(questions: readonly Asked[], candidates: readonly T[], choice: (one: T) => Choice): T {
  const score = (one: T) => mean(questions.map((asked) => rightOf(asked, KEEPS, choice(one))));
  return candidates.reduce((most, one) => (score(one) > score(most) ? one : most));
}

interface Row {
  readonly name: string;
  /** By K, to a share of 0.5. */
  readonly cells: Readonly<Record<number, Cell>>;
  /** Over all K, to a share of 0.5, and to the fixed share that was best on the first half. */
  readonly all: Cell;
  readonly besideBest: Cell;
}

function report(asked: readonly Asked[]): Row[] {
  const half = asked.length / 2;
  const [fit, held] = [asked.slice(0, half), asked.slice(half)];
  const steps = Array.from({ length: STEPS + 1 }, (_, step) => step);
  const fixed = best(fit, steps, always);
  const named: [string, Choice][] = [
    ...[0, 2, 4, 6, 8].map((step): [string, Choice] => [`fixed ${step / STEPS}`, always(step)]),
    ['the fixed share that was best on the first half', always(fixed)],
    ...Object.entries(RULES).map(([name, sureness]): [string, Choice] => {
      const exponent = best(fit, EXPONENTS, (one) => byRule(sureness, one));
      return [`${name} ^ ${exponent}`, byRule(sureness, exponent)];
    }),
  ];
  return named.map(([name, choose]) => ({
    name,
    cells: Object.fromEntries(KEEPS.map((keep) => [keep, cell(held, [keep], choose, always(FIXED))])),
    all: cell(held, KEEPS, choose, always(FIXED)),
    besideBest: cell(held, KEEPS, choose, always(fixed)),
  }));
}

const signed = (value: number) => `${value < 0 ? '' : '+'}${value.toFixed(2)}`;
const paired = ({ difference, error }: Cell) => `${signed(difference)} ± ${error.toFixed(2)}`;

function markdown(reports: Readonly<Record<string, readonly Row[]>>): string {
  const line = (...cells: string[]) => `| ${cells.join(' | ')} |`;
  const sections = Object.entries(reports).flatMap(([alignment, rows]) => [
    `## alignment: '${alignment}'`,
    '',
    line(
      'share of the question',
      ...KEEPS.map((keep) => `${keep} of 144`),
      'all K, to 0.5',
      'all K, to the best fixed',
    ),
    line('---', ...KEEPS.map(() => '---'), '---', '---'),
    ...rows.map(({ name, cells, all, besideBest }) =>
      line(
        name,
        ...KEEPS.map((keep) => {
          const { percent, share } = cells[keep];
          return `${percent.toFixed(1)} (${paired(cells[keep])}; share ${share.toFixed(2)})`;
        }),
        paired(all),
        paired(besideBest),
      ),
    ),
    '',
  ]);
  return [
    '# Share of the question by its own map',
    '',
    'Percent of the second 200 questions; in brackets the paired difference to a fixed share of 0.5 with its standard error, and the mean',
    `share that was taken. Exponents and the best fixed share were chosen on the first 200, over all K. Shares in steps of 1/${STEPS}.`,
    '',
    ...sections,
  ].join('\n');
}

const reports: Record<string, Row[]> = {};
for (const [i, alignment] of ALIGNMENTS.entries()) {
  let done = 0;
  const asked = await ask(alignment, () => {
    done++;
    if (process.stderr.isTTY) process.stderr.write(`\r${i + 1}/${ALIGNMENTS.length}: ${done} questions`);
  });
  reports[alignment] = report(asked);
}
const text = markdown(reports);
await mkdir(RESULTS, { recursive: true });
await writeFile(join(RESULTS, 'dynamic-share.json'), `${JSON.stringify(reports, null, 1)}\n`);
await writeFile(join(RESULTS, 'dynamic-share.md'), text);
process.stdout.write(text);
