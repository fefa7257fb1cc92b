/**
 * npm run bench:families [-- --quick]: what pruning takes and saves in models that see an image as tiles, or a video as frames, at their
 * true shapes with random weights. Every contender has a process of its own. Linux only, for the numbers of /proc. A full run (2.1 GB in a
 * temporary folder, 6 GB of memory, a quarter of an hour) writes bench/results/families.{json,md}; `--quick` tries everything out at a small
 * size and writes nothing.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { decoderFlops } from '../../src/flops.js';
import { machine, number, range, ratios, type Spread, spread } from '../harness.js';
import { temporaryFolder } from '../onnx-models.js';
import { inProcess } from '../own-process.js';
import { type Report, type Run, report, type Task, WAYS, type Way } from './contenders.js';
import { type BlockModel, type ClipModel, MODELS, type Model, small, TEXT, tokensOf, writeModel } from './models.js';

const QUICK = process.argv.includes('--quick');
const CHILD = '--child';
const ROUNDS = QUICK ? 1 : 5;
const RUNS = 2;
const QUARTILE = 0.25;
/** Of the encoders of {@link BlockModel} as the bench writes them. */
const BENCH_BLOCKS = 2;

/** One model, and what its processes reported, round by round; nothing of a way that it does not have. */
interface Measured<M extends Model = Model> {
  readonly model: M;
  readonly reports: Readonly<Record<Way, readonly Report[]>>;
}

async function measure(model: Model, folder: string): Promise<Measured> {
  process.stderr.write(`${model.name}: writing the weights ...\n`);
  await writeModel(model, folder);
  const reports: Record<Way, Report[]> = { all: [], pruned: [] };
  for (let round = 0; round < ROUNDS; round++)
    for (const way of WAYS[model.kind]) {
      process.stderr.write(`${model.name}, round ${round + 1} of ${ROUNDS}: ${way} ...\n`);
      const task: Task = { model, way, folder, runs: RUNS };
      reports[way].push(await inProcess(import.meta.url, [CHILD, JSON.stringify(task)], `${model.name}, ${way}`));
    }
  return { model, reports };
}

const runsOf = (reports: readonly Report[]): Run[] => reports.flatMap(({ runs }) => runs);
const memoryOf = (reports: readonly Report[]) => ({
  opened: Math.max(...reports.map(({ opened }) => opened)),
  peak: Math.max(...reports.map(({ peak }) => peak)),
});

type Read = (run: Run) => number;

const times = (runs: readonly Run[], read: Read): Spread => spread(runs.map(read), QUARTILE);
/** How many times as much the first takes, run by run. */
const quotient = (above: readonly Run[], readAbove: Read, below: readonly Run[], readBelow: Read): Spread =>
  ratios(above.map(readAbove), below.map(readBelow), QUARTILE);

/** What pruning adds in front of the decoder. */
const added: Read = ({ together, connector, prune }) => together + connector + prune;
const prefill: Read = (run) => run.prefill;

const CLIP_COLUMNS =
  'model | visual tokens | encoder, ms a tile | pruner and projector, ms | prefill of one layer, ms | both, ms | times faster | by operations | open, MB | peak, MB';

function clipRows({ model, reports }: Measured<ClipModel>) {
  const tokens = tokensOf(model);
  const operations = (visual: number) => decoderFlops(visual + TEXT.prompt, { ...model.decoder, layers: 1 });
  const both: Read = (run) => added(run) + run.prefill;
  return WAYS.clip.map((way) => {
    const isAll = way === 'all';
    const runs = runsOf(reports[way]);
    return {
      model: model.name,
      visual: isAll ? tokens.all : tokens.kept,
      encoder: times(runs, ({ encoder }) => encoder / model.tiles),
      added: isAll ? null : times(runs, added),
      prefill: times(runs, prefill),
      both: isAll ? null : times(runs, both),
      ratio: isAll ? null : quotient(runsOf(reports.all), prefill, runs, both),
      ratioByOperations: isAll ? null : operations(tokens.all) / operations(tokens.kept),
      ...memoryOf(reports[way]),
    };
  });
}

const CALL_COLUMNS = 'model | tiles | one call, ms | a call a tile, ms | times faster';

function callRow({ model, reports }: Measured) {
  const runs = runsOf(reports.pruned);
  const [one, many]: Read[] = [({ together }) => together, ({ apart }) => apart];
  const ratio = quotient(runs, many, runs, one);
  return { model: model.name, tiles: model.tiles, together: times(runs, one), apart: times(runs, many), ratio };
}

const BLOCK_COLUMNS =
  'model | patches a tile | visual tokens | encoder, ms a block | analysis, ms | connector, ms | prune, ms | all three, in blocks | of blocks | open, MB | peak, MB';

/** Times of one tile. */
function blockRow({ model, reports }: Measured<BlockModel>) {
  const runs = runsOf(reports.pruned);
  const { tiles, patches, blocks } = model;
  const oneBlock: Read = ({ encoder, connector }) => (encoder - connector) / BENCH_BLOCKS;
  const aTile = (read: Read) => times(runs, (run) => read(run) / tiles);
  return {
    ...{ model: model.name, patches, ...tokensOf(model) },
    block: aTile(oneBlock),
    analysis: aTile(({ together }) => together),
    connector: aTile(({ connector }) => connector),
    prune: aTile(({ prune }) => prune),
    inBlocks: quotient(runs, added, runs, oneBlock),
    ...{ blocks, ...memoryOf(reports.pruned) },
  };
}

type Cell = string | number | Spread | null;

function table(columns: string, rows: readonly (readonly Cell[])[]): string {
  const cell = (value: Cell) => (value === null ? '' : typeof value === 'object' ? range(value) : value);
  const rule = `|${'---|'.repeat(columns.split(' | ').length)}`;
  return [`| ${columns} |`, rule, ...rows.map((row) => `| ${row.map(cell).join(' | ')} |`)].join('\n');
}

async function main(): Promise<void> {
  const folder = temporaryFolder();
  const measured: Measured[] = [];
  for (const model of MODELS) measured.push(await measure(QUICK ? small(model) : model, folder));
  const ofKind = <M extends Model>(kind: M['kind']) =>
    measured.filter(({ model }) => model.kind === kind) as unknown as Measured<M>[];
  const clip = ofKind<ClipModel>('clip').flatMap(clipRows);
  const calls = measured.map(callRow);
  const blocks = ofKind<BlockModel>('block').map(blockRow);

  const mb = ({ opened, peak }: Pick<Report, 'opened' | 'peak'>) => [opened.toFixed(0), peak.toFixed(0)];
  const host = machine();
  const text = [
    '# Models of tiles and frames',
    '',
    `${host.processor}, ${host.cores} cores; ${host.cpu}; Node ${host.node}; ${host.date}; load average at the end ${host.loadAverage}.`,
    `True shapes, float32, random weights; encoders and decoder in onnxruntime-node. Medians of ${ROUNDS * RUNS} runs with quartiles, in ${ROUNDS} rounds of`,
    'which each has a process for every contender, in turn; ratios run by run. Memory is resident memory of the process, the largest of all rounds:',
    'once all is open (weights), and while it ran.',
    '',
    '## CLIP towers',
    '',
    'LLaVA-NeXT: ViT-L/14-336, five tiles of 577 rows. Video-LLaVA: ViT-L/14-224, eight frames of 257 rows. 23 layers and the projector to 4096;',
    `one Llama-7B layer (width 4096, 32 heads, feed-forward 11008) with ${TEXT.prompt} text tokens behind the visual ones. The encoder runs tile by tile; with all`,
    'tokens it ends behind the projector. Times faster: prefill of all tokens against prefill of the kept ones with pruner and projector, which a',
    'model of 32 layers pays once. By operations: eq. 6 of the paper, without the pruner. Not in it: embedding, text tower, logits.',
    '',
    table(
      CLIP_COLUMNS,
      clip.map((row) => {
        const operations = row.ratioByOperations === null ? null : number(row.ratioByOperations);
        const { model, visual, encoder, added, prefill, both, ratio } = row;
        return [model, visual, encoder, added, prefill, both, ratio, operations, ...mb(row)];
      }),
    ),
    '',
    '## All tiles in one call',
    '',
    '`pruneBatch` against `prune` for each tile, and `analyzeBatch` against `analyze` of a `BlockHead`, one after the other. The kept tokens, and the',
    'saliency of the block head, are compared in every run, and are the same.',
    '',
    table(
      CALL_COLUMNS,
      calls.map(({ model, tiles, together, apart, ratio }) => [model, tiles, together, apart, ratio]),
    ),
    '',
    '## Encoders with a last block of their own',
    '',
    `SmolVLM: width 768, 12 heads, thirteen tiles. Qwen2.5-VL: width 1280, 16 heads, four images. Encoders of ${BENCH_BLOCKS} blocks with their connector, attention`,
    'written in nodes; times of one tile. A block: the encoder without its connector, halved, so it has half of the patch embedding. All three:',
    "analysis (all tiles in one call), connector on the attention's rows, and prune for a question, by the time of a block; the model's tower has so",
    'many blocks.',
    '',
    table(
      BLOCK_COLUMNS,
      blocks.map((row) => {
        const { model, patches, all, kept, block, analysis, connector, prune, inBlocks, blocks } = row;
        const times = [block, analysis, connector, prune, inBlocks];
        return [model, patches, `${all} to ${kept}`, ...times, blocks, ...mb(row)];
      }),
    ),
    '',
  ].join('\n');
  console.log(text);

  if (QUICK) return;
  const results = join(dirname(fileURLToPath(import.meta.url)), '..', 'results');
  const data = { machine: host, rounds: ROUNDS, runs: RUNS, models: MODELS, clip, calls, blocks };
  await mkdir(results, { recursive: true });
  await writeFile(join(results, 'families.json'), `${JSON.stringify(data, null, 1)}\n`);
  await writeFile(join(results, 'families.md'), text);
}

const [mode, task] = process.argv.slice(2);
if (mode === CHILD) process.send!(await report(JSON.parse(task)));
else await main();
