/**
 * What it costs in answers to drop rows inside the tower (option `tower`): both example models, every rule, block and count, with all
 * rows that stay and with 16 chosen of them, each paired with the same number of tokens without it. Run: npm run bench:tower. Answers go
 * to out/tower-<model>.jsonl, where a run that was stopped goes on; the table goes to bench/results. `--limit 20` asks the first ones only, `--model tiny-llava` asks one model and writes no table;
 * `--part 1/3` besides asks the second third.
 */
import { appendFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { readQuestions } from '../src/cli/eval/questions.js';
import { score } from '../src/cli/eval/scoring.js';
import { Llava } from '../src/cli/llava/llava.js';
import { modelKind } from '../src/cli/models.js';
import type { TextEmbeddings } from '../src/index.js';
import { openVisionModel } from '../src/vision/open.js';
import { ROW_RULES, type TowerOptions } from '../src/vision/tower-options.js';
import type { EncodedImage, VisionModel, VisionPruneOptions } from '../src/vision/vision-model.js';
import { MODELS, type Paired, paired, RESULTS, row, signed } from './questions.js';

const OUT = fileURLToPath(new URL('../out', import.meta.url));
const UNITS = 144;
const COUNTS = [72, 48, 36, 24];
const BLOCKS = [1, 2];
const FEW = 16;
const RUNS = [
  { model: 'tiny-llava', questions: 'eval' },
  { model: 'tiny-llava-next', questions: 'eval-next' },
];
/** How tokens are chosen behind the tower. */
const FORMS: Readonly<Record<string, VisionPruneOptions>> = {
  paper: { preset: 'paper' },
  best: { preset: 'best' },
  'best, not merged': { preset: 'best', merge: false },
};
const FORM_NAMES = Object.keys(FORMS);

/** Each way of dropping; null: none. */
const CUTS: readonly (TowerOptions | null)[] = [
  null,
  ...ROW_RULES.flatMap((by) => BLOCKS.flatMap((at) => COUNTS.map((keep): TowerOptions => ({ at, keep, by })))),
];

/** What was asked, by name: whether the answer was right. */
type Answers = Readonly<Record<string, boolean>>;

const nameOf = (cut: TowerOptions | null, keep: number, form: string) =>
  `${cut === null ? 'none' : `${cut.by} ${cut.at} ${cut.keep}`} / ${keep} / ${form}`;
const ALL = nameOf(null, UNITS, '');

/** How many tokens each way is asked for, and how. A cut with all of its rows is the same in every form. */
function asked(cut: TowerOptions | null): { keep: number; form: string }[] {
  const few = FORM_NAMES.map((form) => ({ keep: FEW, form }));
  if (cut !== null) return [{ keep: cut.keep, form: '' }, ...few];
  return [...COUNTS.flatMap((keep) => FORM_NAMES.map((form) => ({ keep, form }))), ...few];
}

/** Asks the questions that were not asked yet. */
async function answersOf(
  model: string,
  questions: string,
  { limit, part = '0/1' }: { limit: string; part?: string },
): Promise<Answers[]> {
  const file = join(MODELS, questions, 'questions.jsonl');
  const [own, parts] = part.split('/').map(Number);
  const every = (await readQuestions(file, {})).slice(0, Number(limit));
  const all = every.slice((own * every.length) / parts, ((own + 1) * every.length) / parts);
  const journal = join(OUT, `tower-${model}.jsonl`);
  await mkdir(OUT, { recursive: true });
  const lines = (await readFile(journal, 'utf8').catch(() => '')).split('\n').slice(0, -1);
  const done = new Map(lines.map((line) => JSON.parse(line) as [line: number, answers: Answers]));
  const folder = join(MODELS, model);
  const images = await (await modelKind(folder)).images(folder);
  const clip = join(MODELS, 'tiny-clip');
  const llava = await Llava.open(folder, { clip, images });
  const cuts: { cut: TowerOptions | null; vision: VisionModel }[] = [];
  for (const cut of CUTS)
    cuts.push({ cut, vision: cut === null ? llava.vision : await openVisionModel(folder, { clip, tower: cut }) });
  // Questions about one image stand together: it is encoded once.
  let shown: { readonly image: string; readonly seen: Map<VisionModel, EncodedImage> } = { image: '', seen: new Map() };
  const see = async (image: string, vision: VisionModel): Promise<EncodedImage> => {
    if (shown.image !== image) {
      for (const one of shown.seen.values()) one.dispose();
      shown = { image, seen: new Map() };
    }
    const known = shown.seen.get(vision);
    if (known) return known;
    const [seen] = await vision.encode((await images.read(image)).inputs);
    shown.seen.set(vision, seen);
    return seen;
  };
  for (const question of all) {
    const { line, image, told } = question;
    const right: Record<string, boolean> = { ...done.get(line) };
    const text = await llava.vision.encodeQuestion(told);
    const isRight = async (features: Parameters<Llava['complete']>[0]) =>
      score((await llava.complete(features, told, { positions: 'original' })).text, question) === 1;
    const before = Object.keys(right).length;
    if (!(ALL in right)) right[ALL] = await isRight({ features: await (await see(image, llava.vision)).all() });
    for (const { cut, vision } of cuts)
      for (const { keep, form } of asked(cut)) {
        const name = nameOf(cut, keep, form);
        if (name in right) continue;
        right[name] = await isRight(await prunedFor(await see(image, vision), text, { keep, ...FORMS[form] }));
      }
    if (Object.keys(right).length === before) continue;
    done.set(line, right);
    await appendFile(journal, `${JSON.stringify([line, right])}\n`);
    if (process.stderr.isTTY) process.stderr.write(`\r${model}: ${done.size}/${all.length}`);
  }
  for (const { vision } of cuts.slice(1)) await vision.dispose();
  await llava.dispose();
  return all.map(({ line }) => done.get(line) as Answers);
}

async function prunedFor(image: EncodedImage, text: TextEmbeddings, how: VisionPruneOptions) {
  const kept = await image.prune(text, how);
  return { features: kept.features, kept };
}

interface Cell {
  readonly model: string;
  /** null: nothing dropped. */
  readonly tower: TowerOptions | null;
  /** Tokens of each tile that the language model sees. */
  readonly keep: number;
  /** How they are chosen; empty where all that are there are taken. */
  readonly form: string;
  /** Paired with all tokens. */
  readonly toAll: Paired;
  /** Paired with as many tokens, chosen in the same form (`best` where all rows are taken) without dropping any. */
  readonly toSame: Paired | null;
}

function cellsOf(model: string, answers: readonly Answers[]): Cell[] {
  const percents = (name: string) => answers.map((right) => 100 * Number(right[name]));
  return [
    { model, tower: null, keep: UNITS, form: '', toAll: paired(percents(ALL), percents(ALL)), toSame: null },
    ...CUTS.flatMap((tower) =>
      asked(tower).map(({ keep, form }): Cell => {
        const own = percents(nameOf(tower, keep, form));
        const same = tower && percents(nameOf(null, keep, form || 'best'));
        return { model, tower, keep, form, toAll: paired(own, percents(ALL)), toSame: same && paired(own, same) };
      }),
    ),
  ];
}

function markdown(cells: readonly Cell[], questions: number): string {
  const [{ toAll: all }] = cells;
  const baseline = (keep: number, form: string) =>
    cells.find((cell) => cell.tower === null && cell.keep === keep && cell.form === form)!.toAll;
  const percent = ({ percent }: Paired) => percent.toFixed(2);
  const head = [
    'rule',
    'block',
    'rows',
    `all rows, to all tokens`,
    'to as many by best',
    ...FORM_NAMES.map((form) => `${FEW} by ${form}, to the same of all rows`),
  ];
  const none = COUNTS.concat(FEW).map((keep) =>
    row(
      String(keep),
      ...FORM_NAMES.map((form) => `${percent(baseline(keep, form))} (${signed(baseline(keep, form))})`),
    ),
  );
  const rows = CUTS.filter((cut) => cut !== null).map((cut) => {
    const own = cells.filter(({ tower }) => tower === cut);
    const [whole, ...few] = own;
    return row(
      ...[cut.by as string, String(cut.at), String(cut.keep)],
      `${percent(whole.toAll)} (${signed(whole.toAll)})`,
      signed(whole.toSame as Paired),
      ...few.map(({ toAll, toSame }) => `${percent(toAll)} (${signed(toSame as Paired)})`),
    );
  });
  return [
    `## ${cells[0].model}`,
    '',
    `${questions} questions; all ${UNITS} tokens of each tile: ${percent(all)} %. Nothing dropped, in brackets the difference to all tokens:`,
    '',
    row('tokens of each tile', ...FORM_NAMES),
    row('---', ...FORM_NAMES.map(() => '---')),
    ...none,
    '',
    row(...head),
    row(...head.map(() => '---')),
    ...rows,
    '',
  ].join('\n');
}

const { model: only, ...which } = parseArgs({
  options: { limit: { type: 'string', default: '400' }, model: { type: 'string' }, part: { type: 'string' } },
}).values;
const cells: Cell[] = [];
const sections: string[] = [];
for (const { model, questions } of RUNS) {
  if (only !== undefined && only !== model) continue;
  const answers = await answersOf(model, questions, which);
  const own = cellsOf(model, answers);
  cells.push(...own);
  sections.push(markdown(own, answers.length));
}
const text = [
  '# Rows dropped inside the tower: answers',
  '',
  'Percent right, and paired differences with their standard errors; original positions. Rows are dropped in front of block 1 or 2 (counted',
  'from 0) of three; the class row stays. A tiny model on synthetic scenes is no evidence about photographs.',
  '',
  ...sections,
].join('\n');
const csv = [
  'model,rule,block,rows,tokens,form,percent,to_all,to_all_error,to_same,to_same_error',
  ...cells.map(({ model, tower, keep, form, toAll, toSame }) =>
    [
      ...[model, tower?.by ?? '', tower?.at ?? '', tower?.keep ?? '', keep, `"${form}"`],
      ...[toAll.percent, toAll.difference, toAll.error, toSame?.difference ?? '', toSame?.error ?? ''],
    ].join(','),
  ),
];
if (only === undefined) {
  await writeFile(join(RESULTS, 'tower-answers.json'), `${JSON.stringify(cells, null, 1)}\n`);
  await writeFile(join(RESULTS, 'tower-answers.csv'), `${csv.join('\n')}\n`);
  await writeFile(join(RESULTS, 'tower-answers.md'), text);
}
process.stdout.write(text);
