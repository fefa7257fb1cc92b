/**
 * npx tsx bench/precision.ts: what each precision costs on the example model: kept patches and answers of the first 100
 * questions, against an implementation in PyTorch (models/expected.json), and the error of the two maps against the float64
 * reference. GPUs and bfloat16 products of the CPU where there are some, otherwise emulated (npm run build:simt makes the
 * emulations). Writes bench/results/precision.{json,md}.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { Llava } from '../src/cli/llava/llava.js';
import type { DeviceOptions } from '../src/index.js';
import { items, keep } from '../test/expected-items.js';
import { provideBfloat16, provideCuda, relativeError } from '../test/support.js';
import { machine } from './harness.js';

export const GPU_PRECISIONS = ['fp32', 'fp16', 'bf16'] as const;

export interface Agreement {
  readonly questions: number;
  /** Questions whose kept patches are the expected ones. */
  readonly same: number;
  /** Share of the expected patches that are kept, over all questions. */
  readonly overlap: number;
  /** Questions whose answer is the expected one. */
  readonly answers: number;
}

/** Largest difference from the reference over all questions, of the largest magnitude in a question's map. */
export interface MapErrors {
  readonly task: number;
  readonly saliency: number;
}

type Maps = readonly { readonly task: Float32Array; readonly saliency: Float32Array }[];

/** Runs the example model's expected questions on a device. */
export async function runExpectedItems(options: DeviceOptions): Promise<{ agreement: Agreement; maps: Maps }> {
  const llava = await Llava.open('models/tiny-llava', { clip: 'models/tiny-clip', ...options });
  const maps: Maps[number][] = [];
  let [same, common, answers] = [0, 0, 0];
  try {
    for (const { image, question, kept, pruned } of items) {
      using seen = await llava.see(join('models/eval', image));
      const answer = await seen.answer(question, { keep, maps: true });
      const shared = [...(answer.pruned?.indices ?? [])].filter((index) => kept.includes(index)).length;
      common += shared;
      same += Number(shared === keep);
      answers += Number(answer.text === pruned);
      const found = answer.pruned?.maps;
      if (found?.task) maps.push({ task: found.task, saliency: found.saliency });
    }
  } finally {
    await llava.dispose();
  }
  return { agreement: { questions: items.length, same, overlap: common / (keep * items.length), answers }, maps };
}

export function mapErrors(maps: Maps, exact: Maps): MapErrors {
  const largest = (map: keyof Maps[number]) =>
    Math.max(...exact.map((expected, i) => relativeError(maps[i][map], expected[map])));
  return { task: largest('task'), saliency: largest('saliency') };
}

async function main(): Promise<void> {
  const [gpu, { name: cpu, isa }] = [provideCuda(), provideBfloat16()];
  const { maps: exact } = await runExpectedItems({ device: 'reference' });
  const contestants: [string, DeviceOptions][] = [
    ['cpu, fp32', { device: 'cpu', precision: 'fp32' }],
    [`${cpu}, bf16`, { device: 'cpu', precision: 'bf16', isa }],
    ...GPU_PRECISIONS.map((precision): [string, DeviceOptions] => [
      `${gpu}, ${precision}`,
      { device: 'cuda', precision },
    ]),
  ];
  const rows: [string, Agreement, MapErrors][] = [];
  for (const [name, options] of contestants) {
    const { agreement, maps } = await runExpectedItems(options);
    rows.push([name, agreement, mapErrors(maps, exact)]);
  }
  const about = machine();
  const text = [
    '# Precisions on the example model',
    '',
    `The first ${items.length} questions, ${keep} of 144 patches kept. ${about.processor}${about.gpus.map((name) => `; ${name}`).join('')}. ${about.date}.`,
    'Emulated: computed on the CPU as the instructions are defined, sums rounded to nearest. Errors are the largest of all questions, relative to',
    "the largest value of the question's map.",
    '',
    '| device, precision | questions with the expected patches | patches in common | questions with the expected answer | error of the task map | of the saliency map |',
    '|---|---|---|---|---|---|',
    ...rows.map(
      ([name, { same, overlap, answers }, { task, saliency }]) =>
        `| ${name} | ${same} | ${(100 * overlap).toFixed(1)} % | ${answers} | ${task.toExponential(1)} | ${saliency.toExponential(1)} |`,
    ),
    '',
  ].join('\n');
  const folder = join(dirname(fileURLToPath(import.meta.url)), 'results');
  await mkdir(folder, { recursive: true });
  const results = rows.map(([name, agreement, errors]) => ({ name, ...agreement, errors }));
  await writeFile(join(folder, 'precision.json'), `${JSON.stringify({ machine: about, keep, results }, null, 1)}\n`);
  await writeFile(join(folder, 'precision.md'), text);
  process.stdout.write(text);
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) await main();
