/**
 * npm run bench:first-token [-- --quick] [--rounds=3] [--models=SmolVLM,..] [--clock=processor]: how long the first token takes from an image on, part by part,
 * at the true shapes of seven models with random weights: with all visual tokens, pruned behind the tower, and with each lever. Every
 * encoder has a process of its own. A full run (3 GB in a temporary folder, 8 GB of memory) writes bench/results/first-token.{json,md};
 * `--quick` tries everything out at a small size; it, some models, and the processor's time in place of the clock's write nothing.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { machine, number, ratios, type Spread, spread } from '../harness.js';
import { inProcess } from '../own-process.js';
import { CLOCKS, type ClockName } from './clock.js';
import { type Image, measure, ROWS_KEPT, type Round } from './measure.js';
import { cutOf, MODELS, type Model, small } from './models.js';
import { timeRowChoice } from './row-choice.js';

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

/** What is done to make the first token come sooner, the way without anything first. */
const WAYS = ['all', 'kept', 'dropped', 'tiles', 'every'] as const;
type Way = (typeof WAYS)[number];

const TITLES: Record<Way, string> = {
  all: 'all tokens',
  kept: '11 % behind the tower',
  dropped: 'rows dropped in the tower, 11 % behind it',
  tiles: 'half of the tiles, 11 % of theirs',
  every: 'half of the tiles, rows dropped, 11 % of theirs',
};

/** One way of one round, in milliseconds. */
type Parts = Omit<Image, 'tokens'> & { readonly prefill: number; readonly sum: number };
const COLUMNS = ['tower', 'analysis', 'selection', 'connector', 'prefill', 'sum'] as const;

/** One row of the table. */
interface Row {
  readonly model: string;
  readonly way: Way;
  /** Tokens of the prompt, text and markers among them. */
  readonly prompt: number;
  readonly parts: Readonly<Record<(typeof COLUMNS)[number], Spread>>;
  /** How many times sooner than with all tokens, from the same rounds. */
  readonly sooner: Spread;
}

/** The tiles of the half that is looked at, the whole view among them. */
function taken({ tiles, hasWhole }: Model): number {
  return Number(hasWhole) + Math.ceil((tiles - Number(hasWhole)) / 2);
}

function waysOf({ tiles }: Model): readonly Way[] {
  return tiles > 1 ? WAYS : WAYS.slice(0, 3);
}

/** Tiles are equal: some of them take so much less, in every part, and have so many fewer tokens. */
function imageOf(way: Way, model: Model, { all, kept, dropped }: Omit<Round, 'prefill'>): Image {
  const image = { all, kept, dropped, tiles: kept, every: dropped }[way];
  const share = way === 'tiles' || way === 'every' ? taken(model) / model.tiles : 1;
  const { tower, analysis, selection, connector, tokens } = image;
  return {
    ...{ tower: share * tower, analysis: share * analysis, selection: share * selection, connector: share * connector },
    tokens: Math.round(share * tokens),
  };
}

function promptOf(way: Way, model: Model, images: Omit<Round, 'prefill'>): number {
  const { tile, rest } = model.text;
  const tiles = way === 'tiles' || way === 'every' ? taken(model) : model.tiles;
  return imageOf(way, model, images).tokens + tile * tiles + rest;
}

function rowsOf(model: Model, rounds: readonly Round[]): Row[] {
  return model.decoders.flatMap(({ name }) => {
    const partsOf = (way: Way): Parts[] =>
      rounds.map((round) => {
        const { tokens: _, ...parts } = imageOf(way, model, round);
        const prefill = round.prefill[name][promptOf(way, model, round)];
        const { tower, analysis, selection, connector } = parts;
        return { ...parts, prefill, sum: tower + analysis + selection + connector + prefill };
      });
    const unpruned = partsOf('all').map(({ sum }) => sum);
    return waysOf(model).map((way): Row => {
      const own = partsOf(way);
      const parts = Object.fromEntries(COLUMNS.map((part) => [part, spread(own.map((one) => one[part]))]));
      const sooner = ratios(
        unpruned,
        own.map(({ sum }) => sum),
      );
      return { model: name, way, prompt: promptOf(way, model, rounds[0]), parts: parts as Row['parts'], sooner };
    });
  });
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
    'whole view) take that share of the time of all, and of the tokens. ' +
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
  const lengths = (images: Omit<Round, 'prefill'>) => waysOf(model).map((way) => promptOf(way, model, images));
  process.send!(await measure(model, { rounds, now: CLOCKS[clock] }, lengths));
} else await main();
