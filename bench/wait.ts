/**
 * npm run bench:wait [-- --quick]: what waits for the vision tower, and what need not. At LLaVA-1.5's shape with random weights (1.3 GB in a
 * temporary folder, 2 GB of memory): the text tower behind the vision tower, and in a thread beside it; the analysis of a tile behind the
 * tower's run on the next one, and beside it. A full run (two minutes) writes bench/results/wait.{json,md}; `--quick` tries everything
 * out at a small size and writes nothing.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as ort from 'onnxruntime-node';
import { Pruner } from '../src/index.js';
import { HIDDEN_STATES, openGraph, readTower, towerGraph } from '../src/onnx/index.js';
import { threadedOrt } from '../src/vision/session-thread.js';
import { head, normal } from './data.js';
import { machine, range, ratios, type Spread, spread } from './harness.js';
import { temporaryFolder, type VisionShape, visionEncoder } from './onnx-models.js';

const QUICK = process.argv.includes('--quick');
const ROUNDS = QUICK ? 2 : 11;
const VISION: VisionShape = QUICK
  ? { image: 112, patch: 14, width: 1024, heads: 16, intermediate: 256, layers: 2, languageWidth: 64 }
  : { image: 336, patch: 14, width: 1024, heads: 16, intermediate: 4096, layers: 23, languageWidth: 64 };
/** A text tower's work: twelve blocks of CLIP-L's text width on the rows of a question, here those of a small image. */
const TEXT: VisionShape = {
  image: 56,
  patch: 14,
  width: 768,
  heads: 12,
  intermediate: 3072,
  layers: 12,
  languageWidth: 64,
};

/** A tower of a written model, on some module. */
async function tower(shape: VisionShape, folder: string, name: string, runtime: Parameters<typeof openGraph>[0]) {
  const path = join(folder, `${name}.onnx`);
  const graph = visionEncoder(shape);
  await graph.writeWeights(`${path}.data`);
  await graph.writeModel(path, `${name}.onnx.data`);
  const structure = readTower(path);
  return async () => openGraph(runtime, towerGraph(structure));
}

const WAYS = {
  tower: 'the tower alone',
  text: 'the text tower alone',
  thread: 'the text tower alone, in its thread',
  behind: 'the text tower behind the tower',
  beside: 'the text tower in a thread beside it',
  analysis: 'the analysis alone',
  tilesBehind: 'two tiles, then their analyses',
  tilesBeside: 'two tiles, the first one’s analysis beside the second one’s run',
} as const;
type Way = keyof typeof WAYS;

async function main(): Promise<void> {
  const folder = temporaryFolder();
  const [openTower, openText] = [await tower(VISION, folder, 'tower', ort), await tower(TEXT, folder, 'text', ort)];
  const [vision, text] = [await openTower(), await openText()];
  const threaded = await threadedOrt();
  const thread = await openGraph(threaded, towerGraph(readTower(join(folder, 'text.onnx'))));
  const pruner = await Pruner.load(head(), { device: 'cpu' });
  const feeds = ({ image }: VisionShape, seed: number) => ({
    pixel_values: new ort.Tensor('float32', normal(seed, 3 * image ** 2), [1, 3, image, image]),
  });
  const [tiles, question] = [[feeds(VISION, 1), feeds(VISION, 2)], feeds(TEXT, 3)];
  const see = async (tile: number) => {
    const { data, dims } = (await vision.run(tiles[tile]))[HIDDEN_STATES];
    return { data: data as Float32Array, dims: dims.slice(1) };
  };
  const states = await see(0);
  const run: Record<Way, () => Promise<unknown>> = {
    tower: () => see(0),
    text: () => text.run(question),
    thread: () => thread.run(question),
    behind: async () => [await text.run(question), await see(0)],
    beside: () => Promise.all([thread.run(question), see(0)]),
    analysis: async () => (await pruner.analyze(states)).dispose(),
    tilesBehind: async () => {
      const seen = [await see(0), await see(1)];
      for (const one of seen) (await pruner.analyze(one)).dispose();
    },
    tilesBeside: async () => {
      const first = pruner.analyze(await see(0));
      const second = await see(1);
      for (const one of [await first, await pruner.analyze(second)]) one.dispose();
    },
  };
  const ways = Object.keys(WAYS) as Way[];
  const samples = Object.fromEntries(ways.map((way) => [way, [] as number[]])) as Record<Way, number[]>;
  for (let round = 0; round <= ROUNDS; round++)
    for (const way of ways) {
      const start = performance.now();
      await run[way]();
      if (round > 0) samples[way].push(performance.now() - start);
    }
  pruner.dispose();
  await Promise.all([vision, text, thread].map((session) => session.release()));

  const times = Object.fromEntries(ways.map((way) => [way, spread(samples[way])])) as Record<Way, Spread>;
  // The measure: image and question in one go, over what the image alone takes.
  const share = (way: Way) =>
    ratios(
      samples[way].map((whole, i) => whole + samples.analysis[i]),
      samples.tower.map((own, i) => own + samples.analysis[i]),
    );
  const host = machine();
  const about = `${host.processor}, ${host.cores} cores; ${host.cpu}; Node ${host.node}; ${host.date}; load average at the end ${host.loadAverage}.`;
  const shares = { behind: share('behind'), beside: share('beside') };
  const tilesGain = ratios(samples.tilesBehind, samples.tilesBeside);
  const report = [
    '# What waits for the vision tower',
    '',
    about,
    `LLaVA-1.5's tower (${VISION.layers} blocks of ${VISION.width}) and a text tower's work (${TEXT.layers} blocks of ${TEXT.width} on ${(TEXT.image / TEXT.patch) ** 2 + 1} rows), float32,`,
    `random weights, sessions and pruner with their default threads. Medians of ${ROUNDS} rounds (10th to 90th percentile), ways in turn; ratios from the same rounds.`,
    '',
    '| | ms |',
    '|---|---|',
    ...ways.map((way) => `| ${WAYS[way]} | ${range(times[way])} |`),
    '',
    `Image and question over tower and analysis: ${range(shares.behind)} with the text tower behind, ${range(shares.beside)} with it beside.`,
    `Two tiles are ${range(tilesGain)} times faster with one analysis beside the tower.`,
    '',
  ].join('\n');
  console.log(report);
  if (QUICK) return;
  const results = join(dirname(fileURLToPath(import.meta.url)), 'results');
  await mkdir(results, { recursive: true });
  const data = { machine: host, rounds: ROUNDS, times, shares, tilesGain };
  await writeFile(join(results, 'wait.json'), `${JSON.stringify(data, null, 1)}\n`);
  await writeFile(join(results, 'wait.md'), report);
}

await main();
