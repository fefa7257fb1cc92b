/** What is fuzzed: readers of files, each with files of others' tools to begin with, and with what it may throw. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join, relative } from 'node:path';
import { DesapError, type DesapErrorCode } from '../../src/errors.js';
import { loadBlock, loadHead } from '../../src/index.js';
import { limits } from '../../src/limits.js';
import { checkExternalData } from '../../src/onnx/format/external.js';
import { type ModelSource, readModel } from '../../src/onnx/format/model.js';
import { extractHead } from '../../src/onnx/head/extract.js';
import { withHiddenStates } from '../../src/onnx/hidden-states.js';
import { readLastBlock } from '../../src/onnx/last-block.js';
import { readSiglipText, siglipTextGraph } from '../../src/onnx/siglip-text.js';
import { projectorGraph, towerGraph } from '../../src/onnx/split.js';
import { positionTable, readText, textGraph } from '../../src/onnx/text.js';
import { readTower } from '../../src/onnx/tower.js';
import { clipTowerCut } from '../../src/onnx/tower-cut.js';
import { readFloats } from '../../src/onnx/weights.js';
import { parseSafeTensors, readSafeTensors, toFloat32 } from '../../src/safetensors.js';
import { Questions } from '../../src/transformers/question/question.js';
import { readImage } from '../../src/vision/image/source.js';
import { readTextFiles } from '../../src/vision/text-files.js';
import { openTokenizer } from '../../src/vision/tokenizer.js';
import { ROOT } from '../support.js';
import { type Format, json, messages, png, safetensors } from './tree.js';

/** A file to begin with. */
export interface Seed {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** A reader under test. */
export interface Target {
  readonly seeds: () => Seed[];
  /** How a file is taken apart; null where only its bytes are changed. */
  readonly format: (bytes: Uint8Array) => Format | null;
  /** Reads a file in all ways that there are. It throws an AssertionError where two ways do not agree. */
  readonly read: (bytes: Uint8Array) => Promise<void>;
  /** Seconds of a processor that one file may take. */
  readonly seconds: number;
  /** Bytes that the process may grow by while one file is read. */
  readonly memory: number;
}

/** What a refusal of a file may say. */
const REFUSALS: readonly DesapErrorCode[] = [
  ...(['ERR_FILE', 'ERR_GRAPH', 'ERR_VALUE', 'ERR_SHAPE', 'ERR_DTYPE', 'ERR_NOT_FINITE'] as const),
];

/** Whether what was thrown is a refusal, as a caller is told about. */
export const isRefusal = (thrown: unknown) => thrown instanceof DesapError && REFUSALS.includes(thrown.code);

/** Two ways that should agree do not. */
export class Disagreement extends Error {}

const MB = 2 ** 20;
/** Pixels that a picture may have here: the bounds below are made for them. */
const PIXELS = 2 ** 21;

/** A folder of this process, made once. */
let made: string | null = null;
function folder(): string {
  if (made === null) {
    made = mkdtempSync(join(tmpdir(), 'desap-fuzz-'));
    const gone = made;
    process.once('exit', () => rmSync(gone, { recursive: true, force: true }));
  }
  return made;
}

function written(name: string, bytes: Uint8Array): string {
  const path = join(folder(), name);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, bytes);
  return path;
}

/** The files of a name, in folders of the repository. Larger ones than `most` are left out: they would take the time of many. */
function files(folders: readonly string[], name: RegExp, most = 300_000): Seed[] {
  return folders.flatMap((base) =>
    readdirSync(join(ROOT, base), { recursive: true, encoding: 'utf8' })
      .filter((file) => name.test(file))
      .sort()
      .map((file) => ({ name: join(base, file), bytes: new Uint8Array(readFileSync(join(ROOT, base, file))) }))
      .filter(({ bytes }) => bytes.length <= most),
  );
}

const corpus = (target: string) => files(['test/fuzz/corpus'], new RegExp(`^${target}/`));

/** What came of a call: its result, or the code and message of its refusal. Anything else that is thrown goes on. */
async function outcome<T>(call: () => T | Promise<T>, hidden = ''): Promise<{ value?: T; error?: string }> {
  try {
    return { value: await call() };
  } catch (error) {
    if (!isRefusal(error)) throw error;
    const { code, message } = error as DesapError;
    return { error: `${code} ${hidden === '' ? message : message.replaceAll(hidden, '')}` };
  }
}

function agree(what: string, one: unknown, other: unknown): void {
  const [a, b] = [JSON.stringify(one), JSON.stringify(other)];
  if (a !== b) throw new Disagreement(`${what}: ${a?.slice(0, 200)} is not ${b?.slice(0, 200)}`);
}

/** Makes all calls: one reader's refusal should not hide another's fault. Throws the first refusal where every call refused. */
async function each(...calls: (() => unknown)[]): Promise<void> {
  const refusals: unknown[] = [];
  for (const call of calls)
    try {
      await call();
    } catch (error) {
      if (!isRefusal(error)) throw error;
      refusals.push(error);
    }
  if (refusals.length === calls.length) throw refusals[0];
}

async function readTensors(bytes: Uint8Array): Promise<void> {
  const path = written('model.safetensors', bytes);
  const list = ({ tensors }: ReturnType<typeof parseSafeTensors>) =>
    [...tensors].map(([name, { dtype, shape, bytes: data }]) => [
      name,
      dtype,
      shape,
      Buffer.from(data).toString('base64'),
    ]);
  const memory = await outcome(() => list(parseSafeTensors(bytes, '')));
  const file = await outcome(async () => list(await readSafeTensors(path)), path);
  agree('memory and file', memory, file);
  await each(
    () => [...parseSafeTensors(bytes).tensors].map(([name, tensor]) => toFloat32(tensor, name)),
    () => loadHead(bytes),
    () => loadBlock(bytes),
    () => extractHead({ safetensors: path, heads: 2 }),
  );
}

/** Everything that is done with a graph before ONNX Runtime sees it. */
/** What the rest of a cut tower might be given. */
const CUT_STATES = { items: 2, rows: 5 };

async function readGraph(source: ModelSource): Promise<void> {
  const model = readModel(source, 'model');
  await each(
    () => {
      const tower = readTower(model);
      return each(
        () => towerGraph(tower, [0]),
        () => tower.projector && projectorGraph(tower),
        () => extractHead({ visionModel: model, heads: 2 }),
        () => clipTowerCut(tower, 1).rest(CUT_STATES),
      );
    },
    async () => {
      const text = readText(model);
      await each(
        () => textGraph(text),
        () => positionTable(text),
      );
    },
    () => siglipTextGraph(readSiglipText(model)),
    () => {
      const encoder = readLastBlock(model);
      return each(
        () => encoder.cutAt(1, 'kernels').rest(CUT_STATES),
        () => encoder.cutAt(1, 'file').rest(CUT_STATES),
      );
    },
    () => withHiddenStates(model),
  );
}

async function readOnnx(bytes: Uint8Array): Promise<void> {
  // From a file it is read through a small window.
  const path = written('model.onnx', bytes);
  const outline = ({ opset, nodes, initializers, inputs, outputs }: ReturnType<typeof readModel>) => [
    opset,
    nodes.map(({ op, inputs, outputs }) => [op, inputs, outputs]),
    [...initializers.values()].map(({ name, type, dims }) => [name, type, dims]),
    [inputs, outputs].map((values) => values.map(({ name, type, dims }) => [name, type, dims])),
  ];
  const memory = await outcome(() => outline(readModel(bytes, 'model')));
  const file = await outcome(() => outline(readModel(path)));
  agree('memory and file', [memory.value, memory.error?.replace('model', path)], [file.value, file.error]);
  await readGraph(bytes);
}

/** What a file outside of the model's folder holds: no weight may have it. */
const SECRET = 12345.5;
let furnished = false;

/** The folder of a model with a weight file, and everything that a name should not lead to. */
function furnish(): void {
  if (furnished) return;
  furnished = true;
  const weights = readFileSync(join(ROOT, 'test/fuzz/corpus/external/weights.bin'));
  const secret = new Uint8Array(new Float32Array(weights.length / 4).fill(SECRET).buffer);
  for (const name of ['outside.bin', 'elsewhere/outside.bin']) written(name, secret);
  for (const name of ['model/weights.bin', 'model/folder/weights.bin']) written(name, weights);
  const at = join(folder(), 'model');
  symlinkSync('../outside.bin', join(at, 'link.bin'));
  symlinkSync('../elsewhere', join(at, 'out'));
  symlinkSync('loop', join(at, 'loop'));
}

async function readExternal(bytes: Uint8Array): Promise<void> {
  furnish();
  const path = written('model/model.onnx', bytes);
  await each(
    () => checkExternalData(path),
    async () => {
      const model = readModel(path);
      for (const tensor of model.initializers.values()) {
        const { value } = await outcome(() => readFloats(model, tensor));
        if (value?.includes(SECRET))
          throw new Disagreement(`'${tensor.name}' was read from outside of the model's folder`);
      }
    },
    () => readGraph(path),
  );
}

const QUESTION = 'What colour is the Bär 熊 on the left?\n';

/** The same bytes stand for each file of a tokenizer in turn, beside good other ones. */
async function readTokenizer(bytes: Uint8Array): Promise<void> {
  const good = {
    tokenizer: join(ROOT, 'test/fixtures/exports/tok77/tokenizer.json'),
    config: join(ROOT, 'test/fixtures/exports/tok77/tokenizer_config.json'),
  };
  const folders = [
    { 'tokenizer.json': bytes, 'tokenizer_config.json': readFileSync(good.config) },
    {
      'tokenizer.json': readFileSync(good.tokenizer),
      'tokenizer_config.json': bytes,
      'special_tokens_map.json': bytes,
      'processor_config.json': bytes,
    },
  ];
  await each(
    ...folders.map((contents, i) => async () => {
      const at = join(folder(), `tokenizer-${i}`);
      for (const [name, content] of Object.entries(contents)) written(relative(folder(), join(at, name)), content);
      await each(
        async () => {
          const clip = await openTokenizer(at);
          clip.words(clip.content(QUESTION));
        },
        async () => {
          const text = await readTextFiles(at, 'the test');
          text.words(text.tokenizer.encode(QUESTION, { add_special_tokens: false }).ids);
        },
        async () => {
          const ids = (await readTextFiles(at, 'the test')).tokenizer.encode(QUESTION).ids;
          (await Questions.open(at)).read(ids, 0);
        },
      );
    }),
  );
}

async function readPicture(bytes: Uint8Array): Promise<void> {
  limits({ imagePixels: PIXELS });
  const { data, width, height } = await readImage(bytes);
  if (!(width >= 1 && height >= 1 && width * height <= PIXELS && data.length === 3 * width * height))
    throw new Disagreement(`an image of ${width} x ${height} pixels has ${data.length} bytes`);
}

export const TARGETS: Readonly<Record<string, Target>> = {
  safetensors: {
    seeds: () => [
      ...files(
        ['test/fixtures/safetensors', 'test/fixtures/siglip', 'test/fixtures/exports/expected'],
        /\.safetensors$/,
        100_000,
      ),
      ...corpus('safetensors'),
    ],
    format: () => safetensors,
    read: readTensors,
    seconds: 2,
    memory: 256 * MB,
  },
  onnx: {
    seeds: () => [
      ...files(
        ['test/fixtures/exports/models', 'test/fixtures/exports-more/models', 'test/fixtures/families'],
        /\.onnx$/,
      ).filter(({ name }) => !/decoder|embed_tokens/.test(basename(name))),
      ...corpus('onnx'),
    ],
    format: () => messages,
    read: readOnnx,
    seconds: 5,
    memory: 256 * MB,
  },
  external: {
    seeds: () => corpus('external').filter(({ name }) => !name.endsWith('.bin')),
    format: () => messages,
    read: readExternal,
    seconds: 5,
    memory: 256 * MB,
  },
  tokenizer: {
    seeds: () => [
      ...files(
        [
          'test/fixtures/exports/tok77',
          'test/fixtures/exports-more/t64',
          'test/fixtures/families',
          'test/fixtures/siglip',
          'test/fixtures/prompts/tokenizers',
        ],
        /(tokenizer(_config)?|special_tokens_map|processor_config)\.json$/,
        40_000,
      ),
      ...corpus('tokenizer'),
    ],
    format: () => json,
    read: readTokenizer,
    seconds: 5,
    memory: 256 * MB,
  },
  picture: {
    seeds: () => [...files(['test/fixtures/images'], /\.(jpg|png|tif|webp|gif|avif)$/, 50_000), ...corpus('picture')],
    format: (bytes) => (png.parse(bytes) ? png : null),
    read: readPicture,
    seconds: 5,
    memory: 256 * MB,
  },
};
