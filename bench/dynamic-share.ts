/**
 * Whether a rule that reads the task map itself can say how much of K the question should choose (`taskShare`). Three rules
 * without training, each with one exponent, are fitted on the first half of the example model's questions and reported on the
 * other half, beside fixed shares. Run: npx tsx bench/dynamic-share.ts
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { PruneOptions } from '../src/index.js';
import { eachQuestion, KEEPS, mean, type Paired, paired, RESULTS, row, signed } from './questions.js';

/** Forms of pruning; the last is the preset `best`. */
const FORMS: Readonly<Record<string, Pick<PruneOptions, 'alignment' | 'complement'>>> = {
  "alignment: 'fcma'": { alignment: 'fcma' },
  "alignment: 'mean'": { alignment: 'mean' },
  "preset: 'best'": { alignment: 'mean', complement: 'diversity' },
};
/** Shares are measured in steps of 1 / STEPS. */
const STEPS = 8;
const STEPS_ALL = Array.from({ length: STEPS + 1 }, (_, step) => step);
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
interface Measured {
  readonly map: Float32Array;
  readonly right: Readonly<Record<number, readonly boolean[]>>;
}

function measure(form: (typeof FORMS)[string]): Promise<Measured[]> {
  return eachQuestion(async ({ question, image, analysis, vision, isRight }) => {
    const text = await vision.encodeQuestion(question);
    const how = form.complement === 'diversity' ? { ...form, distances: await image.all() } : form;
    const { maps } = await analysis.prune(text, { ...how, keep: 1, maps: true });
    const right: Record<number, boolean[]> = {};
    for (const keep of KEEPS) {
      // Neighbouring shares often keep the same patches.
      const known = new Map<string, boolean>();
      right[keep] = [];
      for (const step of STEPS_ALL) {
        const kept = await analysis.prune(text, { ...how, keep, taskShare: step / STEPS });
        const key = kept.indices.join();
        known.set(key, known.get(key) ?? (await isRight(kept)));
        right[keep].push(known.get(key) as boolean);
      }
    }
    return { map: maps?.task as Float32Array, right };
  });
}

/** The step that a rule, or a fixed share, takes for a question. */
type Choice = (measured: Measured, keep: number) => number;

const always =
  (step: number): Choice =>
  () =>
    step;
const HALF = always(STEPS / 2);
const byRule =
  (sureness: Sureness, exponent: number): Choice =>
  ({ map }, keep) =>
    Math.round(Math.max(0, sureness(map, keep)) ** exponent * STEPS);

/** Percent right of each question, over some K: all K of a question are one draw. */
const percents = (questions: readonly Measured[], keeps: readonly number[], choose: Choice) =>
  questions.map((one) => 100 * mean(keeps.map((keep) => Number(one.right[keep][choose(one, keep)]))));

/** The candidate that is right most often over all K; the first of equals. */
function best<T>(questions: readonly Measured[], candidates: readonly T[], choice: (one: T) => Choice): T {
  const score = (one: T) => mean(percents(questions, KEEPS, choice(one)));
  return candidates.reduce((most, one) => (score(one) > score(most) ? one : most));
}

interface Row {
  readonly name: string;
  /** By K, to a share of 0.5, with the mean share that was taken. */
  readonly cells: Readonly<Record<number, Paired & { readonly share: number }>>;
  /** Over all K, to a share of 0.5, and to the fixed share that was best on the first half. */
  readonly all: Paired;
  readonly besideBest: Paired;
}

function report(measured: readonly Measured[]): Row[] {
  const half = measured.length / 2;
  const [fit, held] = [measured.slice(0, half), measured.slice(half)];
  const fixed = always(best(fit, STEPS_ALL, always));
  const named: [string, Choice][] = [
    ...[0, 2, 4, 6, 8].map((step): [string, Choice] => [`fixed ${step / STEPS}`, always(step)]),
    ['the fixed share that was best on the first half', fixed],
    ...Object.entries(RULES).map(([name, sureness]): [string, Choice] => {
      const exponent = best(fit, EXPONENTS, (one) => byRule(sureness, one));
      return [`${name} ^ ${exponent}`, byRule(sureness, exponent)];
    }),
  ];
  const beside = (keeps: readonly number[], choose: Choice, other: Choice) =>
    paired(percents(held, keeps, choose), percents(held, keeps, other));
  return named.map(([name, choose]) => ({
    name,
    cells: Object.fromEntries(
      KEEPS.map((keep) => {
        const share = mean(held.map((one) => choose(one, keep) / STEPS));
        return [keep, { ...beside([keep], choose, HALF), share }];
      }),
    ),
    all: beside(KEEPS, choose, HALF),
    besideBest: beside(KEEPS, choose, fixed),
  }));
}

function markdown(reports: Readonly<Record<string, readonly Row[]>>): string {
  const columns = ['share of the question', ...KEEPS.map((keep) => `${keep} of 144`)];
  const head = [...columns, 'all K, to 0.5', 'all K, to the best fixed share'];
  const sections = Object.entries(reports).flatMap(([form, rows]) => [
    `## ${form}`,
    '',
    row(...head),
    row(...head.map(() => '---')),
    ...rows.map(({ name, cells, all, besideBest }) => {
      const shown = KEEPS.map((keep) => {
        const { percent, share } = cells[keep];
        return `${percent.toFixed(1)} (${signed(cells[keep])}; share ${share.toFixed(2)})`;
      });
      return row(name, ...shown, signed(all), signed(besideBest));
    }),
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
for (const [name, form] of Object.entries(FORMS)) reports[name] = report(await measure(form));
const text = markdown(reports);
await writeFile(join(RESULTS, 'dynamic-share.json'), `${JSON.stringify(reports, null, 1)}\n`);
await writeFile(join(RESULTS, 'dynamic-share.md'), text);
process.stdout.write(text);
