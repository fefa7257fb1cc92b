/**
 * npx tsx bench/open.ts [--quick]: time and memory of opening LLaVA's vision encoder (CLIP ViT-L/14-336 with its projector,
 * random weights) as one session, as a user does, and in two parts that refer to the same file, as LlavaVision does. Every
 * opening has a process of its own. Linux only, for the numbers of /proc. A full run (1.3 GB in a temporary folder) writes
 * bench/results/open.{json,md}; `--quick` tries everything out on a small tower and writes nothing.
 */
import { mkdir, readdir, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as ort from 'onnxruntime-node';
import { openGraph } from '../src/onnx/edit.js';
import { HIDDEN_STATES, IMAGE_FEATURES, PATCHES, projectorGraph, towerGraph } from '../src/onnx/split.js';
import { readTower } from '../src/onnx/tower.js';
import { tensor } from './data.js';
import { machine, type Spread, spread } from './harness.js';
import { temporaryFolder, type VisionShape, visionEncoder } from './onnx-models.js';
import { inProcess, resident } from './own-process.js';

const QUICK = process.argv.includes('--quick');
const SHAPE: VisionShape = QUICK
  ? { image: 56, patch: 14, width: 256, heads: 4, intermediate: 1024, layers: 5, languageWidth: 512 }
  : { image: 336, patch: 14, width: 1024, heads: 16, intermediate: 4096, layers: 23, languageWidth: 4096 };
const ROUNDS = 7;
const CHILD = '--child';

/** Features of an image, by sessions that are open. */
type Encode = (pixels: ort.Tensor) => Promise<ort.Tensor>;

/** The ways to open an encoder; the first is the one that the others are compared with. */
const WAYS: Record<string, (path: string) => Promise<Encode>> = {
  'one session': async (path) => {
    const session = await ort.InferenceSession.create(path);
    const [input, output] = [session.inputNames[0], session.outputNames[0]];
    return async (pixels) => (await session.run({ [input]: pixels }))[output];
  },
  'two parts, for pruning': async (path) => {
    const structure = readTower(path);
    const tower = await openGraph(ort, towerGraph(structure));
    const projector = await openGraph(ort, projectorGraph(structure));
    return async (pixels) => {
      const hidden = (await tower.run({ [tower.inputNames[0]]: pixels }))[HIDDEN_STATES];
      const [, rows, width] = hidden.dims;
      const patches = (hidden.data as Float32Array).subarray(width);
      const input = new ort.Tensor('float32', patches, [1, rows - 1, width]);
      return (await projector.run({ [PATCHES]: input }))[IMAGE_FEATURES];
    };
  },
};

/** Resident memory of a process in MB, now and at its largest so far. */
interface Memory {
  readonly resident: number;
  readonly peak: number;
}

/** What one child reports. */
interface Sample {
  readonly ms: number;
  readonly started: Memory;
  readonly opened: Memory;
  /** After the first image. */
  readonly used: Memory;
  /** Sum of the magnitudes of the image's features: both ways have to compute the same. */
  readonly magnitude: number;
}

function memory(): Memory {
  return { resident: resident('VmRSS'), peak: resident('VmHWM') };
}

async function child(way: string, path: string): Promise<Sample> {
  const started = memory();
  const start = performance.now();
  const encode = await WAYS[way](path);
  const ms = performance.now() - start;
  const opened = memory();
  const { data } = tensor(1, 3, SHAPE.image ** 2);
  const features = await encode(new ort.Tensor('float32', data as Float32Array, [1, 3, SHAPE.image, SHAPE.image]));
  const magnitude = (features.data as Float32Array).reduce((sum, x) => sum + Math.abs(x), 0);
  return { ms, started, opened, used: memory(), magnitude };
}

/** Names, sizes and times of change in a folder. */
async function listing(folder: string): Promise<string> {
  const names = (await readdir(folder, { recursive: true })).sort();
  const lines = names.map(async (name) => {
    const { size, mtimeMs, ctimeMs } = await stat(join(folder, name));
    return `${name} ${size} ${mtimeMs} ${ctimeMs}`;
  });
  return (await Promise.all(lines)).join('\n');
}

/** Opens the model each way in turn, round by round, and watches its folder. */
async function measure(path: string): Promise<Map<string, Sample[]>> {
  const before = await listing(dirname(path));
  const samples = new Map(Object.keys(WAYS).map((way): [string, Sample[]] => [way, []]));
  for (let round = 0; round < ROUNDS; round++) {
    process.stderr.write(`round ${round + 1} of ${ROUNDS} ...\n`);
    for (const [way, list] of samples)
      list.push(await inProcess(import.meta.url, [CHILD, way, path, ...(QUICK ? ['--quick'] : [])], way));
  }
  const after = await listing(dirname(path));
  if (after !== before) throw new Error(`the model's folder changed:\n${before}\n->\n${after}`);
  const magnitudes = [...samples.values()].flat().map(({ magnitude }) => magnitude);
  if (Math.max(...magnitudes) > 1.0001 * Math.min(...magnitudes))
    throw new Error(`the features differ: sums of magnitudes ${magnitudes.join(', ')}`);
  return samples;
}

/** Columns of the table: what is read off a sample. */
const COLUMNS = {
  'open, ms': ({ ms }: Sample) => ms,
  'peak while opening, MB': ({ opened }: Sample) => opened.peak,
  'open, MB': ({ opened }: Sample) => opened.resident,
  'after one image, MB': ({ used }: Sample) => used.resident,
};

interface Row {
  readonly way: string;
  readonly columns: Record<string, Spread>;
  /** The first way's time and peak memory by this one's, from the same rounds. */
  readonly ratios: { readonly time: Spread; readonly peak: Spread };
}

function summary(samples: Map<string, Sample[]>): Row[] {
  const [baseline] = samples.values();
  return [...samples].map(([way, list]) => {
    const ratio = (read: (sample: Sample) => number) =>
      spread(list.map((sample, round) => read(baseline[round]) / read(sample)));
    const columns = Object.entries(COLUMNS).map(([name, read]) => [name, spread(list.map(read))] as const);
    const { 'open, ms': time, 'peak while opening, MB': peak } = COLUMNS;
    return { way, columns: Object.fromEntries(columns), ratios: { time: ratio(time), peak: ratio(peak) } };
  });
}

function report(about: string, rows: readonly Row[], fileMegabytes: number, started: number): string {
  const range = ({ median, low, high }: Spread, digits = 0) =>
    `${median.toFixed(digits)} (${low.toFixed(digits)} - ${high.toFixed(digits)})`;
  const names = Object.keys(COLUMNS);
  const { layers, width, image, patch, languageWidth } = SHAPE;
  return [
    '# Opening a vision encoder with and without pruning',
    '',
    about,
    `LLaVA's vision encoder: ${layers} layers of width ${width} at ${image} pixels and patches of ${patch}, projector to ${languageWidth}; float32, random weights,`,
    `one file of ${fileMegabytes.toFixed(0)} MB, which the system holds in its page cache. One session: \`InferenceSession.create(path)\`. Two parts: the`,
    "structure is read, the tower and the projector are opened as graphs whose weights are ranges of the user's file. CLIP's own",
    'file, which `LlavaVision.open` reads the head from and compares with the tower, is not opened here.',
    `Medians of ${ROUNDS} rounds (10th to 90th percentile), each opening in a fresh process, in turn. Resident memory of the whole process,`,
    `${started.toFixed(0)} MB before opening.`,
    '',
    `| | ${names.join(' | ')} | times faster | times less peak memory |`,
    `|---|${'---|'.repeat(names.length + 2)}`,
    ...rows.map(({ way, columns, ratios }, i) => {
      const ratio = i === 0 ? ['', ''] : [range(ratios.time, 2), range(ratios.peak, 2)];
      return `| ${[way, ...names.map((name) => range(columns[name])), ...ratio].join(' | ')} |`;
    }),
    '',
    'For the same image, the magnitudes of the features of both ways have the same sum (within 0.01 %). Nothing in the folder of',
    'the model was created or changed (names, sizes and times of change before and after all rounds).',
    '',
  ].join('\n');
}

async function main(): Promise<void> {
  const path = join(temporaryFolder(), 'vision_encoder.onnx');
  process.stderr.write('writing the model ...\n');
  await visionEncoder(SHAPE).writeWhole(path);
  const samples = await measure(path);
  const rows = summary(samples);
  const host = machine();
  const fileMegabytes = (await stat(path)).size / 2 ** 20;
  const startedMegabytes = spread([...samples.values()].flat().map(({ started }) => started.resident)).median;
  const about = `${host.processor}, ${host.cores} cores; Node ${host.node}; ${host.date}; load average at the end ${host.loadAverage}.`;
  const text = report(about, rows, fileMegabytes, startedMegabytes);
  console.log(text);

  if (QUICK) return;
  const results = join(dirname(fileURLToPath(import.meta.url)), 'results');
  const data = { machine: host, shape: SHAPE, fileMegabytes, startedMegabytes, rounds: ROUNDS, rows };
  await mkdir(results, { recursive: true });
  await writeFile(join(results, 'open.json'), `${JSON.stringify(data, null, 1)}\n`);
  await writeFile(join(results, 'open.md'), text);
}

const [mode, way, path] = process.argv.slice(2);
if (mode === CHILD) process.send!(await child(way, path));
else await main();
