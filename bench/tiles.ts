/**
 * npm run bench:tiles [-- --short]: which tiles of an image each rule takes, and what that does to answers: tiny-llava-next, 400 questions
 * about 200 images, original positions. The rule is chosen on the images of even number; the others say what it is worth. `--short` asks the
 * first 40 questions and writes nothing; a full run writes bench/results/tiles.{json,md}.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { Tensor } from 'onnxruntime-common';
import { llavaNextImages } from '../src/cli/images/llava-next.js';
import { Llava } from '../src/cli/llava/llava.js';
import { float32 } from '../src/tensor.js';
import { LlavaNextVision } from '../src/vision/llava-next.js';
import type { LookedTiles } from '../src/vision/looked-tiles.js';
import { type LookRule, TILE_RULES, tilesTaken } from '../src/vision/tile-options.js';
import { MODELS, mean, type Paired, paired, RESULTS } from './questions.js';

const MODEL = join(MODELS, 'tiny-llava-next');
const CLIP = join(MODELS, 'tiny-clip');
const TILES = 4;
const SUBSETS = 2 ** TILES;
/** Of each tile: all tokens, or 16 by the preset `best`. */
const FORMS = ['all', '16'] as const;
type Form = (typeof FORMS)[number];
const COUNTS = [1, 2, 3];
const MASSES = [0.7, 0.8, 0.9, 0.95];
const SHORT = 40;
/** Patches on a side of a tile, and of the map of all tiles. */
const SIDE = 12;
const EDGE = 24;

interface Line {
  readonly image: string;
  readonly question: string;
  readonly answer: string;
  readonly object: readonly [x: number, y: number, radius: number] | null;
}

/** One question: the scores of its tiles by each rule, and whether the answer is right with each subset of them, as bits. */
interface Outcome {
  readonly half: 0 | 1;
  readonly scores: Readonly<Record<LookRule, Float32Array>>;
  readonly right: Readonly<Record<Form, readonly boolean[]>>;
  /** The tile that holds the object. */
  readonly holder: number | null;
}

interface Row {
  readonly by: string;
  readonly keep: string;
  /** Tiles that are taken, on average. */
  readonly tiles: number;
  /** By the half of the images, against all tiles with as many tokens of each. */
  readonly halves: readonly Readonly<Record<Form, Paired>>[];
}

const { values } = parseArgs({ options: { short: { type: 'boolean', default: false } } });
const lines = (await readFile(join(MODELS, 'eval-next', 'questions.jsonl'), 'utf8')).trim().split('\n');
const questions = lines.map((line) => JSON.parse(line) as Line).slice(0, values.short ? SHORT : undefined);

const images = await llavaNextImages(MODEL);
const llava = await Llava.open(MODEL, { clip: CLIP, images });
const looking = await LlavaNextVision.open(join(MODEL, 'onnx', 'vision_encoder.onnx'), {
  ...{ clip: CLIP, tiles: { keep: 1, by: 'block' } },
});
const spent = new Map<string, number[]>();
const outcomes: Outcome[] = [];
for (const [i, line] of questions.entries()) {
  outcomes.push(await outcomeOf(line, i));
  if (process.stderr.isTTY) process.stderr.write(`\r${i + 1}/${questions.length}`);
}
await looking.dispose();
await llava.dispose();

const rows: Row[] = [
  ...TILE_RULES.flatMap((by) => [
    ...COUNTS.map((keep) => rowOf(by, `${keep}`, ({ scores }) => [tilesTaken({ keep, mass: 1 }, scores[by])])),
    ...MASSES.map((mass) =>
      rowOf(by, `auto ${mass}`, ({ scores }) => [tilesTaken({ keep: 'auto', mass }, scores[by])]),
    ),
  ]),
  ...COUNTS.map((keep) => rowOf('chance', `${keep}`, () => subsetsOf(keep))),
  rowOf('the tile that holds the object', '1', ({ holder }) => (holder === null ? subsetsOf(1) : [[holder]])),
];
const chosen = best(rows);
const shares = Object.fromEntries(
  [...spent]
    .filter(([name]) => name !== 'tile')
    .map(([name, times]) => [name, median(times) / median(spent.get('tile')!)]),
);
const text = table();
process.stdout.write(text);
if (!values.short) {
  const result = {
    date: new Date().toISOString(),
    machine: cpus()[0].model,
    questions: questions.length,
    chosen,
    shares,
    rows,
  };
  await writeFile(join(RESULTS, 'tiles.json'), `${JSON.stringify(result, null, 1)}\n`);
  await writeFile(join(RESULTS, 'tiles.md'), text);
}

async function outcomeOf({ image: file, question, answer, object }: Line, i: number): Promise<Outcome> {
  const path = join(MODELS, 'eval-next', file);
  const text = await looking.encodeQuestion(question);
  const [one] = await looking.encode((await images.read(path)).inputs);
  const glanced = one as LookedTiles;
  const scores = {} as Record<LookRule, Float32Array>;
  for (const by of TILE_RULES) scores[by] = await timed(by, by === 'block' ? TILES : 1, () => glanced.scores(by, text));
  await timed('tile', TILES, () => glanced.encode([0, 1, 2, 3]));
  glanced.dispose();

  using seen = await llava.see(path);
  const all = await seen.image.all();
  const kept = await seen.image.prune(question, { keep: 16, preset: 'best' });
  const everything = { features: all, indices: Int32Array.from({ length: all.dims[1] }, (_, place) => place) };
  const right = { all: [] as boolean[], '16': [] as boolean[] };
  for (const form of FORMS)
    for (let subset = 0; subset < SUBSETS; subset++) {
      const some = ofTiles(form === 'all' ? everything : kept, subset, all.dims[1]);
      const { text: said } = await llava.complete(some, question, { positions: 'original', maxNewTokens: 1 });
      right[form].push(said === answer);
    }
  const holder = object && Math.floor(object[1] / 96) * 2 + Math.floor(object[0] / 96);
  return { half: (Math.floor(i / 2) % 2) as 0 | 1, scores, right, holder };
}

/** What is left of an image's tokens without some tiles: the whole view, those tiles' tokens, and newlines of rows that have any. */
function ofTiles({ features, indices }: { features: Tensor; indices: Int32Array }, subset: number, tokens: number) {
  const first = SIDE * SIDE;
  const rowOfPlace = (place: number) => Math.floor((place - first) / (EDGE + 1));
  const tileOf = (place: number) => {
    const column = (place - first) % (EDGE + 1);
    return column === EDGE ? null : Math.floor(rowOfPlace(place) / SIDE) * 2 + Math.floor(column / SIDE);
  };
  const isIn = (place: number) => place < first || (tileOf(place) !== null && ((subset >> tileOf(place)!) & 1) === 1);
  const ended = new Set([...indices].filter((place) => place >= first && isIn(place)).map(rowOfPlace));
  const stays = [...indices.keys()].filter((k) => {
    const place = indices[k];
    return isIn(place) || (place >= first && tileOf(place) === null && ended.has(rowOfPlace(place)));
  });
  const width = features.dims[2];
  const own = new Float32Array(stays.length * width);
  for (const [row, k] of stays.entries())
    own.set((features.data as Float32Array).subarray(k * width, (k + 1) * width), row * width);
  const kept = { indices: Int32Array.from(stays, (k) => indices[k]), assignment: new Int32Array(tokens) };
  return { features: float32(own, [1, stays.length, width]), kept };
}

async function timed<T>(name: string, tiles: number, run: () => Promise<T>): Promise<T> {
  const start = performance.now();
  const made = await run();
  spent.set(name, [...(spent.get(name) ?? []), (performance.now() - start) / tiles]);
  return made;
}

/** @param take the tiles of a question; several ways are averaged */
function rowOf(by: string, keep: string, take: (outcome: Outcome) => readonly ArrayLike<number>[]): Row {
  const ways = outcomes.map(take);
  const bits = (tiles: ArrayLike<number>) => Array.from(tiles).reduce((all, tile) => all + 2 ** tile, 0);
  const halves = [0, 1].map((half) => {
    const own = [...outcomes.keys()].filter((i) => outcomes[i].half === half);
    const of = (form: Form) => {
      const percent = own.map((i) => mean(ways[i].map((tiles) => 100 * Number(outcomes[i].right[form][bits(tiles)]))));
      return paired(
        percent,
        own.map((i) => 100 * Number(outcomes[i].right[form][SUBSETS - 1])),
      );
    };
    return { all: of('all'), '16': of('16') };
  });
  return { by, keep, tiles: mean(ways.flatMap((one) => one.map(({ length }) => length))), halves };
}

function subsetsOf(count: number): number[][] {
  const all = Array.from({ length: SUBSETS }, (_, subset) => [0, 1, 2, 3].filter((tile) => (subset >> tile) & 1));
  return all.filter(({ length }) => length === count);
}

/** The rule with the most right answers on the first half, over 1, 2 and 3 tiles. */
function best(all: readonly Row[]): string {
  const score = (rule: string) =>
    mean(
      all.filter(({ by, keep }) => by === rule && !keep.startsWith('auto')).map(({ halves }) => halves[0].all.percent),
    );
  return [...TILE_RULES].sort((a, b) => score(b) - score(a))[0];
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

function table(): string {
  const cell = ({ percent, difference, error }: Paired) =>
    `${percent.toFixed(1)} (${difference < 0 ? '' : '+'}${difference.toFixed(1)} ± ${error.toFixed(1)})`;
  const body = rows.map(
    ({ by, keep, tiles, halves: [chose, says] }) =>
      `| ${by} | ${keep} | ${tiles.toFixed(2)} | ${[chose.all, says.all, chose['16'], says['16']].map(cell).join(' | ')} |`,
  );
  const cost = Object.entries(shares).map(([by, share]) => `${by} ${(100 * share).toFixed(0)} %`);
  return `# Tiles that a question needs

${new Date().toISOString().slice(0, 10)}, ${cpus()[0].model}, tiny-llava-next, ${questions.length} questions, by \`npm run bench:tiles\`: percent of right answers with the whole view and
some of four tiles, in brackets the difference to all four, paired, with its standard error. The rule was chosen on the first half (images of
even number); the second half says what it is worth. One small model, synthetic scenes: no evidence about photographs.

Chosen on the first half: \`${chosen}\`.

| by | keep | tiles taken | first half, all tokens | second half, all tokens | first half, 16 a tile | second half, 16 a tile |
|---|---|---|---|---|---|---|
${body.join('\n')}

Time of a rule as a share of encoding one tile (\`block\`: for each tile; the others: once an image, a question's first): ${cost.join(', ')}. This
tower has three blocks, so that what runs cost besides counts; by blocks alone \`block\` costs (b + 1/2) / (L - 1) of a tile: a half here, a ninth of a
tower of 24.
`;
}
