/**
 * Which patches methods keep on the example model's questions: how many of the asked object's, and how many two methods have in common.
 * Run: npx tsx bench/kept-sets.ts [keep] [methods]; the methods as `desap eval` names them.
 */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Method, parseMethods } from '../src/cli/eval/methods.js';
import { llavaImages } from '../src/cli/images/llava.js';
import { METHOD_NAMES, tapsOf } from '../src/methods/index.js';
import { openVisionModel } from '../src/vision/open.js';

const MODELS = fileURLToPath(new URL('../models', import.meta.url));
const RESULTS = fileURLToPath(new URL('./results', import.meta.url));
const [DESAP, ...RIVALS] = METHOD_NAMES;
const ALL = [DESAP, 'desap:preset=best', 'desap:alignment=mean,taskShare=1', ...RIVALS].join();
const [, , keepText = '16', methodsText = ALL] = process.argv;

interface Question {
  readonly image: string;
  readonly question: string;
  readonly type: string;
  /** Patches of the asked object; none where the answer is no. */
  readonly target: readonly number[];
}

/** What the methods kept for one question: the first draw of each. */
interface Kept {
  readonly question: Question;
  readonly sets: readonly ReadonlySet<number>[];
}

const keep = Number(keepText);
const methods = parseMethods(methodsText);
const kept = await keptSets(methods);
const recall = methods.map((_, m) => recallOf(m));
const agreement = methods.map((_, a) => methods.map((_, b) => agreementOf(a, b)));
const labels = methods.map(({ label }) => label);
const text = markdown();
await mkdir(RESULTS, { recursive: true });
await writeFile(
  join(RESULTS, 'kept-sets.json'),
  `${JSON.stringify({ keep, methods: labels, recall, agreement }, null, 1)}\n`,
);
await writeFile(join(RESULTS, 'kept-sets.md'), text);
process.stdout.write(text);

async function keptSets(all: readonly Method[]): Promise<Kept[]> {
  const folder = join(MODELS, 'tiny-llava');
  const lines = (await readFile(join(MODELS, 'eval', 'questions.jsonl'), 'utf8')).trim().split('\n');
  const images = await llavaImages(folder);
  const hows = all.flatMap(({ draws }) => draws(0));
  const taps = [...new Set(hows.flatMap(({ method = 'desap', methodOptions }) => tapsOf(method, methodOptions)))];
  await using vision = await openVisionModel(folder, { clip: join(MODELS, 'tiny-clip'), taps });
  const sets: Kept[] = [];
  for (const [i, line] of lines.entries()) {
    const question: Question = JSON.parse(line);
    const [image] = await vision.encode((await images.read(join(MODELS, 'eval', question.image))).inputs);
    const own: Set<number>[] = [];
    for (const { draws } of all) {
      const [how] = draws(i + 1);
      own.push(new Set((await image.prune(question.question, { ...how, keep })).indices));
    }
    image.dispose();
    sets.push({ question, sets: own });
  }
  return sets;
}

/** Of questions about a small object: how often a patch of it is kept, and which share of its patches is. */
function recallOf(method: number): { readonly any: number; readonly share: number } {
  const small = kept.filter(({ question }) => question.target.length > 0 && question.type !== 'scene');
  const shares = small.map(
    ({ question, sets }) => question.target.filter((patch) => sets[method].has(patch)).length / question.target.length,
  );
  return { any: mean(shares.map((share) => Number(share > 0))), share: mean(shares) };
}

/** The share of kept patches that two methods have in common. */
function agreementOf(a: number, b: number): number {
  return mean(kept.map(({ sets }) => [...sets[a]].filter((patch) => sets[b].has(patch)).length / keep));
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function markdown(): string {
  const percent = (share: number) => (100 * share).toFixed(1);
  const row = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  const rule = (cells: readonly string[]) => row(cells.map(() => '---'));
  const recallHead = [
    'method',
    'a patch of a small asked object is kept',
    "share of the object's patches that is kept",
  ];
  const agreementHead = ['', ...labels.map((_, m) => `${m + 1}`)];
  return [
    `# Patches that methods keep: ${keep} of 144, example model, ${kept.length} questions`,
    '',
    'In percent. The first table is of questions about a small object.',
    '',
    row(recallHead),
    rule(recallHead),
    ...recall.map(({ any, share }, m) => row([labels[m], percent(any), percent(share)])),
    '',
    'Patches that two methods have in common:',
    '',
    row(agreementHead),
    rule(agreementHead),
    ...agreement.map((shares, m) => row([`${m + 1} ${labels[m]}`, ...shares.map(percent)])),
    '',
  ].join('\n');
}
