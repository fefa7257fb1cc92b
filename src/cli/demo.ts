import { mkdir, readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { Command } from 'commander';
import { DesapError } from '../errors.js';
import { writeWhole } from '../files.js';
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
  full: Answer;
  pruned: Answer;
}

/** Timed runs for each question and path; the first of a process warms caches up. */
const RUNS = 5;
/** The image and question that are drawn. */
const DRAWN = { scene: 2, question: 0 };

export function demoCommand(): Command {
  return withDevice(new Command('demo'))
    .description('Ask the example model about a few images, with all visual tokens and with a ninth of them.')
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
  const text = await readFile(path, 'utf8').catch(() => {
    throw new DesapError(
      'ERR_FILE',
      `${path}: got no such file, wanted the demo images, which come with a clone of the repository`,
    );
  });
  return text.split('\n').flatMap((line) => (line.trim() ? [JSON.parse(line) as Scene] : []));
}

async function askAll(llava: Llava, scenes: readonly Scene[], keep: number): Promise<Row[]> {
  const rows: Row[] = [];
  const bar = progress('demo', scenes.length);
  try {
    for (const scene of scenes) {
      using image = await llava.see(join(MODELS, 'eval', scene.image));
      for (const { question, answer } of scene.questions)
        rows.push({
          image: scene.image,
          question,
          expected: answer,
          full: await timed(() => image.answer(question, { keep: 'all' })),
          pruned: await timed(() => image.answer(question, { keep })),
        });
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
  const { pruned, text } = await seen.answer(question, { keep, maps: true });
  const path = resolve(folder, 'kept.png');
  await mkdir(resolve(folder), { recursive: true });
  if (pruned) await writeWhole(path, await draw(await seen.strips(), pruned, { question, answer: text }));
  return path;
}

function report(rows: readonly Row[], llava: Llava, drawing: string, json: boolean): void {
  const correct = (path: 'full' | 'pruned') => rows.filter((row) => row[path].text === row.expected).length;
  const prefill = (path: 'full' | 'pruned') => median(rows.map((row) => row[path].timings.prefill));
  const prune = median(rows.map(({ pruned }) => pruned.timings.prune));
  const summary = (path: 'full' | 'pruned') => ({
    correct: correct(path),
    tokens: rows[0][path].tokens,
    prefill: prefill(path),
  });
  const { device, deviceDescription } = llava.vision;
  if (json) {
    const plain = rows.map(({ full, pruned, ...row }) => ({ ...row, full: full.text, pruned: pruned.text }));
    printJson({ device, full: summary('full'), pruned: { ...summary('pruned'), prune }, rows: plain, drawing });
    return;
  }
  const mark = ({ text }: Answer, expected: string) => `${text}${text === expected ? '' : ' *'}`;
  const [all, some] = [rows[0].full.tokens, rows[0].pruned.tokens];
  const cells = rows.map(({ image, question, expected, full, pruned }) => [
    image.replace(/^demo\//, ''),
    question,
    expected,
    mark(full, expected),
    mark(pruned, expected),
    full.timings.prefill.toFixed(2),
    pruned.timings.prefill.toFixed(2),
  ]);
  const header = ['image', 'question', 'correct', `all ${all}`, `kept ${some}`, 'prefill ms', `with ${some}`];
  print(table(header, cells, [5, 6]));
  print();
  print(
    `correct: ${correct('full')} of ${rows.length} with ${all} visual tokens, ${correct('pruned')} with ${some} (* wrong)`,
  );
  print(
    `prefill, median of ${RUNS} runs and ${rows.length} questions: ${prefill('full').toFixed(2)} ms with ${all}, ` +
      `${prefill('pruned').toFixed(2)} ms with ${some}; pruning itself ${prune.toFixed(2)} ms on: ${deviceDescription}`,
  );
  print(`drawing: ${drawing}`);
}
