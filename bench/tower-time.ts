/**
 * What the choice of rows inside the tower takes beside a block of that tower, at true shapes with random weights: the front, each rule, and
 * the rest of all rows and of a quarter. Run: npm run bench:tower. `--short` is a trial with few rounds.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { openBackend } from '../src/index.js';
import { type Matrix, rowsOf } from '../src/methods/matrix.js';
import { trialPixels } from '../src/onnx/head/pixels.js';
import { readTaps } from '../src/onnx/head/taps.js';
import { pixelTensor } from '../src/onnx/head/trial.js';
import { readTower } from '../src/onnx/index.js';
import { clipTowerCut } from '../src/onnx/tower-cut.js';
import { allRows, CutTower } from '../src/vision/cut-tower.js';
import { unitsThatStay } from '../src/vision/row-rules.js';
import { atRest } from '../src/vision/session.js';
import { ROW_RULES } from '../src/vision/tower-options.js';
import { machine, number, range, type Spread, spread } from './harness.js';
import { temporaryFolder, type VisionShape, visionEncoder } from './onnx-models.js';
import { RESULTS, row } from './questions.js';

const ROUNDS = process.argv.includes('--short') ? 3 : 21;
const AT = 1;
const SHARE = 0.25;
const LAYERS = 3;
const SHAPES: Readonly<Record<string, Omit<VisionShape, 'layers' | 'languageWidth'>>> = {
  'CLIP ViT-L/14-336 (LLaVA): 576 patches, 1024 wide': {
    image: 336,
    patch: 14,
    width: 1024,
    heads: 16,
    intermediate: 4096,
  },
  'a base tower of 512 x 512 (as SmolVLM has): 1024 patches, 768 wide': {
    image: 512,
    patch: 16,
    width: 768,
    heads: 12,
    intermediate: 3072,
  },
};

interface Timed {
  readonly shape: string;
  readonly blocks: number;
  /** Milliseconds by part. */
  readonly ms: Readonly<Record<string, Spread>>;
}

async function time(name: string, shape: (typeof SHAPES)[string], folder: string): Promise<Timed> {
  const file = join(folder, `${shape.patch}-${shape.width}.onnx`);
  await visionEncoder({ ...shape, layers: LAYERS, languageWidth: 64 }).writeWhole(file);
  const structure = readTower(file);
  const pixels = pixelTensor(ort, trialPixels(structure));
  const feeds = { [structure.pixels.name]: pixels };
  const session = atRest();
  const cut = clipTowerCut(structure, AT);
  const weights = (await readTaps(ort, structure, { blocks: [AT], heads: shape.heads }, session)).get(AT)!;
  const tower = await CutTower.open(ort, cut, { session, trials: async () => [feeds], tolerance: 1e-3 });
  const backend = openBackend({ device: 'cpu' });
  const entered = await tower.enter(feeds);
  const matrix = (data: unknown): Matrix => ({ data: data as Float32Array, rows: entered.rows, cols: shape.width });
  const patches = Int32Array.from({ length: entered.rows - 1 }, (_, patch) => patch);
  const states = rowsOf(
    matrix(entered.states.data),
    patches.map((patch) => 1 + patch),
  );
  const hidden = matrix(entered.states.data);
  const tile = { backend, states, block: { tap: { hidden, weights }, classToken: true, patches: null } };
  const keep = Math.round(SHARE * patches.length);
  const few = Int32Array.from({ length: 1 + keep }, (_, i) => Math.floor(i / SHARE));
  const parts: Record<string, () => Promise<unknown>> = {
    [`front: patches and ${AT} block`]: () => tower.enter(feeds),
    ...Object.fromEntries(ROW_RULES.map((by) => [`rule ${by}`, () => unitsThatStay(by, tile, keep)])),
    [`rest of all rows: ${LAYERS - AT} blocks`]: () => tower.leave(entered, allRows(entered)),
    [`rest of a quarter: ${LAYERS - AT} blocks`]: () => tower.leave(entered, [few]),
  };
  const samples = new Map<string, number[]>(Object.keys(parts).map((part) => [part, []]));
  for (let round = -1; round < ROUNDS; round++)
    for (const [part, run] of Object.entries(parts)) {
      const start = performance.now();
      await run();
      // The first round warms up.
      if (round >= 0) samples.get(part)!.push(performance.now() - start);
    }
  backend.dispose();
  await tower.release();
  return {
    shape: name,
    blocks: LAYERS - AT,
    ms: Object.fromEntries([...samples].map(([part, own]) => [part, spread(own)])),
  };
}

const folder = temporaryFolder();
const about = machine();
const timed: Timed[] = [];
for (const [name, shape] of Object.entries(SHAPES)) timed.push(await time(name, shape, folder));
const text = [
  '# Rows dropped inside the tower: time',
  '',
  `${about.date}, ${about.processor}, ${about.cores} cores, ${about.cpu}, Node ${about.node}, load ${about.loadAverage}; ${ROUNDS} rounds, medians with`,
  'the 10th and 90th percentile. Random weights; the last column is in blocks of the same tower on all rows.',
  ...timed.flatMap(({ shape, blocks, ms }) => {
    const block = Object.entries(ms).find(([part]) => part.startsWith('rest of all'))![1].median / blocks;
    return [
      ...['', `## ${shape}`, '', row('part', 'ms', 'blocks'), row('---', '---', '---')],
      ...Object.entries(ms).map(([part, spread]) => row(part, range(spread), number(spread.median / block))),
    ];
  }),
  '',
].join('\n');
await writeFile(join(RESULTS, 'tower-time.json'), `${JSON.stringify({ about, timed }, null, 1)}\n`);
await writeFile(join(RESULTS, 'tower-time.md'), text);
process.stdout.write(text);
