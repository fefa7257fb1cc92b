import { join, resolve } from 'node:path';
import { Command } from 'commander';
import { DesapError } from '../errors.js';
import { isFile, readText } from '../files.js';
import { makeFolder, writeWhole } from '../output-file.js';
import { type Answer, Llava } from './llava/llava.js';
import { chosenModel, keepCount, MODELS, type ModelFlags, print, printJson, withDevice } from './options.js';
import { progress } from './progress.js';
import { draw } from './prune.js';
import { median, table } from './table.js';

interface Flags extends ModelFlags {
  keep: number;
  output: string;
  json?: boolean;
}

interface Scene {
  image: string;
  questions: { question: string; answer: string; type: string }[];
}

interface Row {
  image: string;
  question: string;
  expected: string;
  answers: Readonly<Record<Path, Answer>>;
}

/** Ways to an answer: all visual tokens, and a preset of pruning each. */
const PATHS = ['all', 'paper', 'best'] as const;
type Path = (typeof PATHS)[number];

/** Timed runs for each question and path; the first of a process warms caches up. */
const RUNS = 5;
/** The image and question that are drawn. */
const DRAWN = { scene: 2, question: 0 };

export function demoCommand(): Command {
  return withDevice(new Command('demo'))
    .description(
      'Ask the example model about a few images: with all visual tokens, and with a ninth of them by each preset.',
    )
    .option('--keep <count>', 'visual tokens to keep, of 144', keepCount, 16)
    .option('-o, --output <folder>', 'where the drawing goes', 'out')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExamples:\n  $ desap demo\n  $ desap demo --keep 8 --output /tmp/kept')
    .action(async (flags: Flags) => {
      const { keep } = flags;
      const { folder, options } = await chosenModel(flags);
      const scenes = await readScenes(join(MODELS, 'eval', 'demo.jsonl'));
      const llava = await Llava.open(folder, options);
      try {
        const rows = await askAll(llava, scenes, keep);
        const drawing = await drawOne(llava, scenes[DRAWN.scene], keep, flags.output);
        report(rows, llava, drawing, flags.json ?? false);
      } finally {
        await llava.dispose();
      }
    });
}

async function readScenes(path: string): Promise<Scene[]> {
  if (!(await isFile(path)))
    throw new DesapError(
      'ERR_FILE',
      `${path}: got no such file, wanted the demo images, which come with a clone of the repository`,
    );
  const text = await readText(path);
  return text.split('\n').flatMap((line) => (line.trim() ? [JSON.parse(line) as Scene] : []));
}

async function askAll(llava: Llava, scenes: readonly Scene[], keep: number): Promise<Row[]> {
  const rows: Row[] = [];
  const bar = progress('demo', scenes.length);
  try {
    for (const scene of scenes) {
      using image = await llava.see(join(MODELS, 'eval', scene.image));
      for (const { question, answer } of scene.questions) {
        const answers = {
          all: await timed(() => image.answer(question, { keep: 'all' })),
          paper: await timed(() => image.answer(question, { keep, preset: 'paper', positions: 'original' })),
          best: await timed(() => image.answer(question, { keep, preset: 'best', positions: 'original' })),
        };
        rows.push({ image: scene.image, question, expected: answer, answers });
      }
      bar.step();
    }
  } finally {
    bar.stop();
  }
  return rows;
}

/** The answer, with the median of the prefill times. */
async function timed(ask: () => Promise<Answer>): Promise<Answer> {
  const answers: Answer[] = [];
  for (let run = 0; run < RUNS; run++) answers.push(await ask());
  const prefill = median(answers.map(({ timings }) => timings.prefill));
  return { ...answers[RUNS - 1], timings: { ...answers[RUNS - 1].timings, prefill } };
}

async function drawOne(llava: Llava, scene: Scene, keep: number, folder: string): Promise<string> {
  const { question } = scene.questions[DRAWN.question];
  using seen = await llava.see(join(MODELS, 'eval', scene.image));
  const { pruned, text } = await seen.answer(question, { keep, preset: 'paper', maps: true });
  const path = resolve(folder, 'kept.png');
  await makeFolder(resolve(folder));
  if (pruned)
    await writeWhole(path, await draw(await seen.strips(), pruned, { question, answer: text, complement: 'saliency' }));
  return path;
}

function report(rows: readonly Row[], llava: Llava, drawing: string, json: boolean): void {
  const of = (path: Path) => rows.map(({ answers }) => answers[path]);
  const summary = (path: Path) => ({
    correct: rows.filter(({ answers, expected }) => answers[path].text === expected).length,
    tokens: of(path)[0].tokens,
    prefill: median(of(path).map(({ timings }) => timings.prefill)),
    prune: median(of(path).map(({ timings }) => timings.prune)),
  });
  const [all, paper, best] = PATHS.map(summary);
  const { device, deviceDescription } = llava.vision;
  if (json) {
    const plain = rows.map(({ answers, ...row }) => ({
      ...row,
      ...Object.fromEntries(PATHS.map((path) => [path, answers[path].text])),
    }));
    printJson({ device, all, paper, best, rows: plain, drawing });
    return;
  }
  const mark = ({ text }: Answer, expected: string) => `${text}${text === expected ? '' : ' *'}`;
  const cells = rows.map(({ image, question, expected, answers }) => [
    image.replace(/^demo\//, ''),
    question,
    expected,
    ...PATHS.map((path) => mark(answers[path], expected)),
    answers.all.timings.prefill.toFixed(2),
    answers.best.timings.prefill.toFixed(2),
  ]);
  const tokens = [`all ${all.tokens}`, `paper ${paper.tokens}`, `best ${best.tokens}`];
  print(table(['image', 'question', 'correct', ...tokens, 'prefill ms', `with ${best.tokens}`], cells, [6, 7]));
  print();
  print(
    `correct: ${all.correct} of ${rows.length} with ${all.tokens} visual tokens, ${paper.correct} with ${paper.tokens} as in the paper, ` +
      `${best.correct} with ${best.tokens} by the preset best (* wrong)`,
  );
  print(
    `prefill, median of ${RUNS} runs and ${rows.length} questions: ${all.prefill.toFixed(2)} ms with ${all.tokens}, ` +
      `${best.prefill.toFixed(2)} ms with ${best.tokens}; pruning itself ${paper.prune.toFixed(2)} ms (paper) and ` +
      `${best.prune.toFixed(2)} ms (best) on: ${deviceDescription}`,
  );
  print(`drawing: ${drawing}`);
}
