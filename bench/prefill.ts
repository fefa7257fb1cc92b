/**
 * npx tsx bench/prefill.ts [--quick]: what pruning saves a language model's prefill and what the pruner costs, at the shape of
 * LLaVA-1.5-7B with random weights. A full run (3.2 GB in a temporary folder, 4 GB of memory) writes
 * bench/results/prefill.{json,md}; `--quick` tries everything out at a small width and writes nothing.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { decoderFlops, MODEL_SHAPES } from '../src/flops.js';
import { Pruner } from '../src/index.js';
import { atRest } from '../src/vision/session.js';
import { head, normal, tensor } from './data.js';
import { LLAVA, machine, type Spread, spread } from './harness.js';
import { type DecoderShape, llamaDecoder, temporaryFolder } from './onnx-models.js';

const QUICK = process.argv.includes('--quick');
const SHAPE: DecoderShape = QUICK
  ? { width: 256, heads: 4, intermediate: 688 }
  : { width: 4096, heads: 32, intermediate: 11008 };
const LAYERS = [1, 4] as const;
const WHOLE_MODEL = MODEL_SHAPES['llava-1.5-7b'].decoder.layers;
const TEXT = 40;
const KEPT = [64, 128, 192];
const ROUNDS = 11;
const WEIGHTS = 'weights.data';

/** Milliseconds of one round, per contender. */
interface Sample {
  readonly prefill: number;
  /** 0 when all visual tokens are kept. */
  readonly pruner: number;
}

/** One number of decoder layers and one number of visual tokens. */
interface Row {
  readonly layers: number;
  readonly visual: number;
  readonly prefill: Spread;
  readonly pruner: Spread | null;
  readonly total: Spread;
  /** How many times faster than with all visual tokens, pruner included; from the same rounds. */
  readonly ratio: Spread;
  /** The same, by the operations of the paper's eq. 6 and without the pruner. */
  readonly ratioByOperations: number;
  /** The pruner's part of the time. */
  readonly share: Spread | null;
}

/** A straight line through the times at one and four layers: time = fixed + layers * perLayer. */
interface Projection {
  readonly visual: number;
  readonly perLayer: number;
  readonly fixed: number;
  /** All layers of the model, pruner included. */
  readonly total: number;
  readonly ratio: number;
  /** Decoder layers whose saving equals the pruner's time. */
  readonly breakEven: number | null;
}

/** What a decoder takes for a prompt of random embeddings. */
function prompt(visual: number): Record<string, Tensor> {
  const n = visual + TEXT;
  return {
    inputs_embeds: new Tensor('float32', normal(visual, n * SHAPE.width), [1, n, SHAPE.width]),
    position_ids: new Tensor(
      'int64',
      BigInt64Array.from({ length: n }, (_, i) => BigInt(i)),
      [1, n],
    ),
  };
}

/** Times all contenders in turn, round by round, after one round that does not count. */
async function measure(session: InferenceSession, pruner: Pruner): Promise<Map<number, Sample[]>> {
  const [hidden, text] = [tensor(1, LLAVA.rows, LLAVA.width), tensor(2, LLAVA.text, LLAVA.projectionDim)];
  const visuals = [LLAVA.patches, ...KEPT];
  const prompts = new Map(visuals.map((visual) => [visual, prompt(visual)]));
  const samples = new Map(visuals.map((visual): [number, Sample[]] => [visual, []]));
  for (let round = 0; round <= ROUNDS; round++)
    for (const visual of visuals) {
      const start = performance.now();
      if (visual !== LLAVA.patches) pruner.pruneSync(hidden, text, { keep: visual });
      const pruned = performance.now();
      await session.run(prompts.get(visual)!);
      const sample = { prefill: performance.now() - pruned, pruner: visual === LLAVA.patches ? 0 : pruned - start };
      if (round > 0) samples.get(visual)!.push(sample);
    }
  return samples;
}

function summary(layers: number, samples: Map<number, Sample[]>): Row[] {
  const total = ({ prefill, pruner }: Sample) => prefill + pruner;
  const unpruned = samples.get(LLAVA.patches)!.map(total);
  const operations = (visual: number) => decoderFlops(visual + TEXT, { ...SHAPE, layers });
  return [...samples].map(([visual, rounds]) => {
    const isPruned = visual !== LLAVA.patches;
    return {
      layers,
      visual,
      prefill: spread(rounds.map(({ prefill }) => prefill)),
      pruner: isPruned ? spread(rounds.map(({ pruner }) => pruner)) : null,
      total: spread(rounds.map(total)),
      ratio: spread(rounds.map((sample, round) => unpruned[round] / total(sample))),
      ratioByOperations: operations(LLAVA.patches) / operations(visual),
      share: isPruned ? spread(rounds.map((sample) => sample.pruner / total(sample))) : null,
    };
  });
}

function project(rows: readonly Row[]): Projection[] {
  const [few, many] = LAYERS;
  const row = (layers: number, visual: number) => rows.find((r) => r.layers === layers && r.visual === visual)!;
  const lines = [LLAVA.patches, ...KEPT].map((visual) => {
    const [short, long] = [row(few, visual), row(many, visual)];
    const perLayer = (long.prefill.median - short.prefill.median) / (many - few);
    const fixed = short.prefill.median - few * perLayer;
    const pruner = long.pruner?.median ?? null;
    return { visual, perLayer, fixed, pruner, total: fixed + WHOLE_MODEL * perLayer + (pruner ?? 0) };
  });
  const [unpruned] = lines;
  return lines.map(({ pruner, ...line }) => ({
    ...line,
    ratio: unpruned.total / line.total,
    breakEven: pruner === null ? null : pruner / (unpruned.perLayer - line.perLayer),
  }));
}

const ms = (x: number) => x.toFixed(Math.abs(x) < 100 ? 1 : 0);
const range = ({ median, low, high }: Spread, write: (x: number) => string) =>
  `${write(median)} (${write(low)} - ${write(high)})`;
const percent = (x: number) => `${(100 * x).toFixed(1)} %`;
const times = (x: number) => x.toFixed(2);

function report(about: string, rows: readonly Row[], projections: readonly Projection[]): string {
  const shortest = projections.find(({ visual }) => visual === LLAVA.keep)!;
  const measured = rows.find(({ layers, visual }) => layers === LAYERS[1] && visual === LLAVA.keep)!;
  return [
    '# Prefill with and without pruning',
    '',
    about,
    `Llama decoder layers (width ${SHAPE.width}, ${SHAPE.heads} heads, feed-forward ${SHAPE.intermediate}; float32, random weights) in onnxruntime-node, ${TEXT} text`,
    'tokens behind the visual ones, keys and values handed out. Pruned rows contain the pruner: hidden states of',
    `${LLAVA.rows} x ${LLAVA.width} and ${LLAVA.text} text tokens, both given, to merged tokens. In no row: vision tower, projector, CLIP text tower, embedding, logits.`,
    `Medians of ${ROUNDS} rounds (10th to 90th percentile); contenders in turn within each round; ratios from the same rounds.`,
    '',
    '| layers | visual tokens | prefill ms | pruner ms | both ms | times faster | by operations (eq. 6) | share of the pruner |',
    '|---|---|---|---|---|---|---|---|',
    ...rows.map(({ layers, visual, prefill, pruner, total, ratio, ratioByOperations, share }) => {
      const own = pruner && share ? [range(pruner, ms), range(total, ms), range(ratio, times)] : ['', '', ''];
      const rest = share ? [times(ratioByOperations), range(share, percent)] : ['', ''];
      return `| ${[layers, visual, range(prefill, ms), ...own, ...rest].join(' | ')} |`;
    }),
    '',
    `## Projected to ${WHOLE_MODEL} layers`,
    '',
    `Not measured: a straight line through the medians at ${LAYERS.join(' and ')} layers. Break-even: how many decoder layers save what the`,
    'pruner takes.',
    '',
    '| visual tokens | ms per layer | fixed ms | projected ms, pruner included | projected times faster | break-even, layers |',
    '|---|---|---|---|---|---|',
    ...projections.map(({ visual, perLayer, fixed, total, ratio, breakEven }) => {
      const own = breakEven === null ? ['', ''] : [times(ratio), times(breakEven)];
      return `| ${[visual, ms(perLayer), ms(fixed), ms(total), ...own].join(' | ')} |`;
    }),
    '',
    'The paper reports 2.3 times faster prefill and 1.6 times in total at 11.1 % kept tokens (64 of 576), on a GPU. Here, on a CPU in',
    `float32: ${times(measured.ratio.median)} times measured at ${LAYERS[1]} layers and ${times(shortest.ratio)} times projected to ${WHOLE_MODEL}, pruner included; ${times(measured.ratioByOperations)} times by operations`,
    'alone. Other hardware makes other ratios; these are no check of those of the paper.',
    '',
  ].join('\n');
}

const folder = temporaryFolder();
process.stderr.write('writing the weights ...\n');
await llamaDecoder(SHAPE, LAYERS[1]).writeWeights(join(folder, WEIGHTS));
const pruner = await Pruner.load(head(), { device: 'cpu' });
const rows: Row[] = [];
for (const layers of LAYERS) {
  process.stderr.write(`${layers} decoder layer${layers > 1 ? 's' : ''} ...\n`);
  const path = join(folder, `decoder-${layers}.onnx`);
  await llamaDecoder(SHAPE, layers).writeModel(path, WEIGHTS);
  const session = await InferenceSession.create(path, atRest());
  try {
    rows.push(...summary(layers, await measure(session, pruner)));
  } finally {
    await session.release();
  }
}
const projections = project(rows);
const host = machine();
const about = `${host.processor}, ${host.cores} cores; pruner: ${pruner.deviceDescription}; Node ${host.node}; ${host.date}; load average at the end ${host.loadAverage}.`;
const text = report(about, rows, projections);
console.log(text);
const peakMegabytes = Math.round(process.resourceUsage().maxRSS / 1024);
process.stderr.write(`peak memory ${peakMegabytes} MB\n`);

if (!QUICK) {
  const results = join(dirname(fileURLToPath(import.meta.url)), 'results');
  const data = { machine: host, shape: SHAPE, textTokens: TEXT, rounds: ROUNDS, rows, projections, peakMegabytes };
  await mkdir(results, { recursive: true });
  await writeFile(join(results, 'prefill.json'), `${JSON.stringify(data, null, 1)}\n`);
  await writeFile(join(results, 'prefill.md'), text);
}
