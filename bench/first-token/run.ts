/**
 * npm run bench:first-token [-- --quick] [--rounds=3] [--models=SmolVLM,..] [--clock=processor]: how long the first token takes from an image on, part by part,
 * at the true shapes of seven models with random weights: with all visual tokens, pruned behind the tower, and with each lever. Every
 * encoder has a process of its own. A full run (3 GB in a temporary folder, 12 GB of memory, ten minutes) writes bench/results/first-token.{json,md};
 * `--quick` tries everything out at a small size; it, some models, and the processor's time in place of the clock's write nothing.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { machine, number, type Spread } from '../harness.js';
import { inProcess } from '../own-process.js';
import { CLOCKS, type ClockName } from './clock.js';
import { measure, type Round } from './measure.js';
import { cutOf, MODELS, type Model, small } from './models.js';
import { type Images, ROWS_KEPT } from './own-tower.js';
import { timeRowChoice } from './row-choice.js';
import { COLUMNS, promptOf, type Row, rowsOf, TITLES, waysOf } from './ways.js';

const QUICK = process.argv.includes('--quick');
const CHILD = '--child';
const ROUNDS = Number(option('rounds') ?? (QUICK ? 1 : 3));
const NAMES = option('models')?.split(',');
const CLOCK: ClockName = option('clock') === 'processor' ? 'processor' : 'wall';

function option(name: string): string | undefined {
  return new RegExp(`--${name}=(\\S+)`).exec(process.argv.join(' '))?.[1];
}

/** What a process is to do. */
interface Task {
  readonly model: Model;
  readonly rounds: number;
  readonly clock: ClockName;
}

const seconds = ({ median, low, high }: Spread) =>
  median === 0 ? '' : `${number(median / 1000)} (${number(low / 1000)} - ${number(high / 1000)})`;
const times = ({ median, low, high }: Spread) => `${median.toFixed(2)} (${low.toFixed(2)} - ${high.toFixed(2)})`;

function table(rows: readonly Row[]): string {
  return [
    `| model | | tokens of the prompt | ${COLUMNS.map((part) => `${part}, s`).join(' | ')} | sooner by |`,
    `|${'---|'.repeat(COLUMNS.length + 4)}`,
    ...rows.map(({ model, way, prompt, parts, sooner }) => {
      const cells = COLUMNS.map((part) => seconds(parts[part]));
      return `| ${way === 'all' ? model : ''} | ${TITLES[way]} | ${prompt} | ${cells.join(' | ')} | ${way === 'all' ? '' : times(sooner)} |`;
    }),
  ].join('\n');
}

async function main(): Promise<void> {
  const start = performance.now();
  const rows: Row[] = [];
  for (const whole of MODELS.filter(({ name }) => !NAMES || NAMES.includes(name))) {
    process.stderr.write(`${whole.name} ...\n`);
    const model = QUICK ? small(whole) : whole;
    const task: Task = { model, rounds: ROUNDS, clock: CLOCK };
    const rounds = await inProcess<Round[]>(import.meta.url, [CHILD, JSON.stringify(task)], model.name);
    const own = rowsOf(model, rounds);
    process.stderr.write(`${table(own)}\n`);
    rows.push(...own);
  }
  const choice = await timeRowChoice(QUICK, CLOCKS[CLOCK]);
  const host = machine();
  const scaled = MODELS.filter(({ blocks, encoder }) => encoder.blocks < blocks);
  const text = [
    '# From an image to the first token',
    '',
    `${host.processor}, ${host.cores} cores; ${host.cpu}; Node ${host.node}; ${host.date}; load average at the end ${host.loadAverage}; ${Math.round((performance.now() - start) / 60_000)} minutes.`,
    `True shapes, float32, random weights; encoders, connectors and decoders in onnxruntime-node. Medians of ${ROUNDS} rounds (10th to 90th percentile), all ways in`,
    'turn within a round; ratios from the same rounds. With all tokens: the file as it is, all tiles in one run, its last block and connector',
    'within the tower. The other rows: `openVisionModel`, `encode`, a first `prune` for a question of 30 rows that are given. Selection is what',
    'a second question takes; analysis is what is left of the first one beside sessions and selection, the choice of rows in the tower among',
    `it. Rows dropped: option \`tower\`, behind a sixth of the blocks (${[...new Set(MODELS.map(({ blocks }) => `${cutOf(blocks)} of ${blocks}`))].join(', ')}), ${100 * ROWS_KEPT} % of each tile's rows stay; the kept`,
    'tokens are one of nine of all.',
    '',
    'Not measured but multiplied: prefill is one layer of each kind times the layers, and one product for the logits. Half of the tiles (and the',
    'whole view) take that share of the time of all, and of the tokens, and in LLaVA-NeXT what the rule `block` looks at in every tile. ' +
      `${scaled.map(({ name, encoder, blocks }) => `${name} runs ${encoder.blocks} of ${blocks} blocks`).join(', ')}: a block's time is worked`,
    "out of runs that end behind another number of them. Every block of Qwen2.5-VL sees the whole image here; SmolVLM-256M runs the 500M's",
    'connector. Not in it: image files, tokenizer, embedding of the prompt, text tower.',
    '',
    table(rows),
    '',
    '## The choice of rows beside a block',
    '',
    `\`farthestPoints\` of a tile's ${choice.rows} hidden states of width ${choice.width}, ${choice.picks} of them: ${number(choice.choice.median)} ms (${number(choice.choice.low)} - ${number(choice.choice.high)}). A block of the tower on one such tile,`,
    `in onnxruntime-node: ${number(choice.block.median)} ms (${number(choice.block.low)} - ${number(choice.block.high)}). So it takes ${choice.ofBlock.median.toFixed(2)} (${choice.ofBlock.low.toFixed(2)} - ${choice.ofBlock.high.toFixed(2)}) of a block.`,
    '',
  ].join('\n');
  console.log(text);

  if (QUICK || NAMES || CLOCK === 'processor') return;
  const results = join(dirname(fileURLToPath(import.meta.url)), '..', 'results');
  await mkdir(results, { recursive: true });
  const data = { machine: host, rounds: ROUNDS, models: MODELS, rows, choice };
  await writeFile(join(results, 'first-token.json'), `${JSON.stringify(data, null, 1)}\n`);
  await writeFile(join(results, 'first-token.md'), text);
}

const [mode, task] = process.argv.slice(2);
if (mode === CHILD) {
  const { model, rounds, clock }: Task = JSON.parse(task);
  const lengths = (images: Images) => waysOf(model).map((way) => promptOf(way, model, images));
  process.send!(await measure(model, { rounds, now: CLOCKS[clock] }, lengths));
} else await main();
