/**
 * npx tsx bench/precision.ts: what each precision of a card costs on the example model: kept patches and answers of the first 100
 * questions, against an implementation in PyTorch (models/expected.json). On a card where there is one, otherwise emulated on the
 * CPU (npm run build:simt makes the emulation). Writes bench/results/precision.{json,md}.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { Llava } from '../src/runtimes/llava.js';
import { items, keep } from '../test/expected-items.js';
import { provideCuda } from '../test/support.js';
import { machine } from './harness.js';

export const PRECISIONS = ['strict', 'fast', 'bf16'] as const;
export type Precision = (typeof PRECISIONS)[number];

export interface Agreement {
  readonly questions: number;
  /** Questions whose kept patches are the expected ones. */
  readonly same: number;
  /** Share of the expected patches that are kept, over all questions. */
  readonly overlap: number;
  /** Questions whose answer is the expected one. */
  readonly answers: number;
}

/** Runs the example model's expected questions on the first card, or on the emulated one. */
export async function measurePrecision(precision: Precision): Promise<Agreement> {
  provideCuda();
  const llava = await Llava.open('models/tiny-llava', { clip: 'models/tiny-clip', device: 'cuda', precision });
  let [same, common, answers] = [0, 0, 0];
  try {
    for (const { image, question, kept, pruned } of items) {
      using seen = await llava.see(join('models/eval', image));
      const answer = await seen.answer(question, { keep });
      const shared = [...(answer.pruned?.indices ?? [])].filter((index) => kept.includes(index)).length;
      common += shared;
      same += Number(shared === keep);
      answers += Number(answer.text === pruned);
    }
  } finally {
    await llava.dispose();
  }
  return { questions: items.length, same, overlap: common / (keep * items.length), answers };
}

async function main(): Promise<void> {
  const device = provideCuda();
  const rows: [Precision, Agreement][] = [];
  for (const precision of PRECISIONS) rows.push([precision, await measurePrecision(precision)]);
  const about = machine();
  const text = [
    '# Precisions of a card on the example model',
    '',
    `The first ${items.length} questions, ${keep} of 144 patches kept. ${device === 'cuda' ? about.cards.join('; ') : 'Emulated on the CPU: no card, and sums rounded to nearest'}. ${about.date}.`,
    '',
    '| precision | questions with the expected patches | patches in common | questions with the expected answer |',
    '|---|---|---|---|',
    ...rows.map(
      ([precision, { same, overlap, answers }]) =>
        `| ${precision} | ${same} | ${(100 * overlap).toFixed(1)} % | ${answers} |`,
    ),
    '',
  ].join('\n');
  const folder = join(dirname(fileURLToPath(import.meta.url)), 'results');
  await mkdir(folder, { recursive: true });
  const results = { device, machine: about, keep, precisions: Object.fromEntries(rows) };
  await writeFile(join(folder, 'precision.json'), `${JSON.stringify(results, null, 1)}\n`);
  await writeFile(join(folder, 'precision.md'), text);
  process.stdout.write(text);
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) await main();
