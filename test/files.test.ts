/** Files that are none, are endless, are too large, or lie elsewhere: what is read and what is written. */
import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { chmod, copyFile, lstat, readlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import * as ort from 'onnxruntime-node';
import sharp from 'sharp';
import { afterEach, describe, expect, test } from 'vitest';
import { readQuestions } from '../src/cli/eval/questions.js';
import { readText } from '../src/files.js';
import { loadBlock, loadHead, saveHead } from '../src/index.js';
import { limits } from '../src/limits.js';
import { trialPixels } from '../src/onnx/head/pixels.js';
import { extractHead, readModel, readTower } from '../src/onnx/index.js';
import { readFloats } from '../src/onnx/weights.js';
import { writeWhole } from '../src/output-file.js';
import { formatSafeTensors, openSafeTensors, parseSafeTensors, readSafeTensors } from '../src/safetensors.js';
import { ClipText, ImageProcessor, openVisionModel, SiglipText } from '../src/vision/index.js';
import { openSession } from '../src/vision/session.js';
import { Editable } from './onnx/editable.js';
import { ROOT, randomHead } from './support.js';

const CLIP = join(ROOT, 'models/tiny-clip');
const CHECKPOINT = join(CLIP, 'model.safetensors');
const SHAPE = { width: 32, heads: 2, projectionDim: 16 };
const DEFAULTS = limits();
afterEach(() => {
  limits(DEFAULTS);
});

const folder = () => mkdtempSync(join(tmpdir(), 'desap-files-'));
const fifo = (path: string): string => {
  mkdirSync(dirname(path), { recursive: true });
  execFileSync('mkfifo', [path]);
  return path;
};

/** What is done beside a FIFO. */
const beside = (path: string, read: () => unknown) => {
  fifo(path);
  return read();
};

/** A model x + w whose w lies in a file. */
function external(path: string, location: string): string {
  const graph = new Editable();
  graph.inputs = [{ name: 'x', type: 1, dims: [4] }];
  graph.tensors.set('w', { name: 'w', type: 1, dims: [4], data: { location, offset: 0, length: 16 } });
  graph.outputs = [graph.add('Add', ['x', 'w'])];
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, graph.bytes());
  return path;
}

const weightsOf = (path: string) => {
  const model = readModel(path);
  return readFloats(model, model.initializers.get('w')!);
};

/** An index whose tensors all lie in one file. */
function index(path: string, named: unknown): string {
  const names = tensorsOf(CHECKPOINT);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, JSON.stringify({ weight_map: Object.fromEntries(names.map((name) => [name, named])) }));
  return path;
}

function tensorsOf(path: string): string[] {
  return [...parseSafeTensors(readFileSync(path)).tensors.keys()];
}

describe('a FIFO without a writer is refused at once', () => {
  const refused = { code: 'ERR_FILE', message: expect.stringMatching(/a FIFO|no such file|neither/) };
  test.each<[string, (at: string) => unknown]>([
    ['readModel', (at) => readModel(fifo(`${at}/m.onnx`))],
    ['readTower', (at) => readTower(fifo(`${at}/m.onnx`))],
    ['external data', (at) => beside(`${at}/w.bin`, () => weightsOf(external(`${at}/m.onnx`, 'w.bin')))],
    ['external data of a session', (at) => beside(`${at}/w.bin`, () => openSession(external(`${at}/m.onnx`, 'w.bin')))],
    ['loadHead', (at) => loadHead(fifo(`${at}/x.safetensors`))],
    ['loadBlock', (at) => loadBlock(fifo(`${at}/x.safetensors`))],
    ['a checkpoint', (at) => extractHead({ safetensors: fifo(`${at}/model.safetensors`) })],
    ['an index', (at) => extractHead({ safetensors: fifo(`${at}/model.safetensors.index.json`) })],
    [
      'a shard',
      (at) => beside(`${at}/shard`, () => extractHead({ safetensors: index(`${at}/x.index.json`, 'shard'), heads: 4 })),
    ],
    ['a vision model', (at) => extractHead({ visionModel: fifo(`${at}/m.onnx`) })],
    [
      'a tokenizer',
      (at) => ClipText.open({ model: join(CLIP, 'onnx/text_model.onnx'), tokenizer: fifo(`${at}/tokenizer.json`) }),
    ],
    ['an image configuration', (at) => beside(`${at}/preprocessor_config.json`, () => ImageProcessor.open(at))],
    ['an image', async (at) => (await ImageProcessor.open(CLIP)).process(fifo(`${at}/x.png`))],
    ['questions', (at) => readQuestions(fifo(`${at}/q.jsonl`))],
  ])('%s', async (_, read) => {
    await expect((async () => read(folder()))()).rejects.toMatchObject(refused);
  });
});

describe('what a file names', () => {
  test('is not looked for outside of its folder', async () => {
    const at = folder();
    mkdirSync(join(at, 'private'));
    await copyFile(CHECKPOINT, join(at, 'private/secret.safetensors'));
    const outside = [
      '../private/secret.safetensors',
      join(at, 'private/secret.safetensors'),
      'a/../../private/x',
      '',
      'C:\\x',
      '\\x',
      'a\0b',
    ];
    for (const named of [...outside, 5, null, {}, [], true, { toString: 1 }])
      await expect(
        extractHead({ safetensors: index(join(at, 'model/x.index.json'), named), heads: 4 }),
      ).rejects.toMatchObject({
        code: 'ERR_FILE',
        message: expect.stringMatching(/weight_map\['.*'\]: got .*, wanted the name of a file in its folder/s),
      });
    for (const location of outside)
      await expect((async () => weightsOf(external(join(at, 'model/m.onnx'), location)))()).rejects.toMatchObject({
        code: 'ERR_FILE',
      });
  });

  test('is read from its folder, and below', async () => {
    const at = folder();
    mkdirSync(join(at, 'shards'));
    await copyFile(CHECKPOINT, join(at, 'shards/1.safetensors'));
    const given = { safetensors: index(join(at, 'x.index.json'), 'shards/1.safetensors'), heads: 4 };
    expect(await extractHead(given)).toEqual(await extractHead({ safetensors: CHECKPOINT }));
  });

  test('is no link out of the folder, unless that is asked for', async () => {
    const at = folder();
    writeFileSync(join(at, 'secret'), 'root:x:0:0:root:/root');
    const model = external(join(at, 'model/m.onnx'), 'w.bin');
    symlinkSync('../secret', join(at, 'model/w.bin'));
    const refused = {
      code: 'ERR_FILE',
      message: expect.stringMatching(/a link to .*secret, wanted a file in .*linksOut/),
    };
    await expect((async () => weightsOf(model))()).rejects.toMatchObject(refused);
    await expect(openSession(model)).rejects.toMatchObject(refused);
    limits({ linksOut: true });
    expect(await weightsOf(model)).toHaveLength(4);
  });

  test('may be a link inside of the folder, and the folder a link', async () => {
    const at = folder();
    const model = external(join(at, 'model/m.onnx'), 'w.bin');
    writeFileSync(join(at, 'model/real.bin'), new Uint8Array(16));
    symlinkSync('real.bin', join(at, 'model/w.bin'));
    symlinkSync('model', join(at, 'alias'));
    expect(await weightsOf(model)).toHaveLength(4);
    expect(await weightsOf(join(at, 'alias/m.onnx'))).toHaveLength(4);
  });

  test("is found where the links of Hugging Face's cache lead", async () => {
    const at = join(folder(), 'models--x--y');
    const snapshot = join(at, 'snapshots/0a1b');
    for (const path of [join(at, 'blobs'), join(snapshot, 'onnx')]) mkdirSync(path, { recursive: true });
    external(join(at, 'blobs/hash1'), 'm.onnx_data');
    writeFileSync(join(at, 'blobs/hash2'), new Uint8Array(16));
    symlinkSync('../../../blobs/hash1', join(snapshot, 'onnx/m.onnx'));
    symlinkSync('../../../blobs/hash2', join(snapshot, 'onnx/m.onnx_data'));
    expect(await weightsOf(join(snapshot, 'onnx/m.onnx'))).toHaveLength(4);
    await copyFile(CHECKPOINT, join(at, 'blobs/hash3'));
    index(join(at, 'blobs/hash4'), 'shard.safetensors');
    symlinkSync('../../blobs/hash3', join(snapshot, 'shard.safetensors'));
    symlinkSync('../../blobs/hash4', join(snapshot, 'model.safetensors.index.json'));
    const head = await extractHead({ safetensors: join(snapshot, 'model.safetensors.index.json'), heads: 4 });
    expect(head).toEqual(await extractHead({ safetensors: CHECKPOINT }));
  });

  test('is no device, however a link leads there', async () => {
    limits({ linksOut: true });
    const at = folder();
    symlinkSync('/dev/zero', join(at, 'zero'));
    const refused = { code: 'ERR_FILE', message: expect.stringContaining('a device') };
    await expect(extractHead({ safetensors: index(join(at, 'x.index.json'), 'zero'), heads: 4 })).rejects.toMatchObject(
      refused,
    );
    await expect((async () => weightsOf(external(join(at, 'm.onnx'), 'zero')))()).rejects.toMatchObject(refused);
    for (const path of ['/dev/zero', '/dev/null']) {
      await expect(loadHead(path)).rejects.toMatchObject(refused);
      expect(() => readModel(path)).toThrow(expect.objectContaining(refused));
    }
  });

  test('is no folder', async () => {
    const at = folder();
    mkdirSync(join(at, 'sub'));
    for (const location of ['sub', '.', './'])
      await expect((async () => weightsOf(external(join(at, 'm.onnx'), location)))()).rejects.toMatchObject({
        code: 'ERR_FILE',
      });
  });
});

describe('large files', () => {
  test('of more than 2 GiB are read in parts', async () => {
    const path = join(folder(), 'big.safetensors');
    const head = {
      __metadata__: { format: 'pt' },
      far: { dtype: 'F32', shape: [1], data_offsets: [3 * 2 ** 30 - 4, 3 * 2 ** 30] },
    };
    const json = Buffer.from(JSON.stringify(head));
    const start = Buffer.alloc(8);
    start.writeBigUInt64LE(BigInt(json.length));
    writeFileSync(path, Buffer.concat([start, json]));
    truncateSync(path, 8 + json.length + 3 * 2 ** 30);
    const { tensors } = await readSafeTensors(path, (name) => name === 'far');
    expect(tensors.get('far')?.bytes).toEqual(new Uint8Array(4));
    expect((await (await openSafeTensors(path)).read('far')).bytes).toEqual(new Uint8Array(4));
  });

  test('a head and a checkpoint among them', async () => {
    const at = folder();
    const given = randomHead(1, SHAPE);
    await saveHead(given, join(at, 'x.safetensors'));
    // What follows the tensors is nobody's.
    truncateSync(join(at, 'x.safetensors'), 3 * 2 ** 30);
    expect(await loadHead(join(at, 'x.safetensors'))).toEqual(given);
    await copyFile(CHECKPOINT, join(at, 'model.safetensors'));
    await chmod(join(at, 'model.safetensors'), 0o600);
    truncateSync(join(at, 'model.safetensors'), 3 * 2 ** 30);
    expect((await extractHead({ safetensors: join(at, 'model.safetensors'), heads: 4 })).heads).toBe(4);
  });

  test('of a text that is longer than a string can be are refused', async () => {
    const path = join(folder(), 'long');
    writeFileSync(path, '');
    truncateSync(path, 2 ** 29);
    await expect(readText(path)).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(/long: got 536870912 bytes, wanted a text of at most 536870888 characters/),
    });
  });

  test('have no more in them than they hold', async () => {
    const tensors = Object.fromEntries(
      Array.from({ length: 100 }, (_, i) => [`t${i}`, { dtype: 'F32', shape: [4], data_offsets: [0, 16] }]),
    );
    const json = Buffer.from(JSON.stringify(tensors));
    const start = Buffer.alloc(8);
    start.writeBigUInt64LE(BigInt(json.length));
    const path = join(folder(), 'x.safetensors');
    writeFileSync(path, Buffer.concat([start, json, Buffer.alloc(16)]));
    await expect(readSafeTensors(path)).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringContaining('claim 1600 bytes of the 16'),
    });
  });
});

describe('limits', () => {
  test('of a header', async () => {
    limits({ headerBytes: 64 });
    await expect(loadHead(formatSafeTensors({ a: { data: new Float32Array(1), shape: [1] } }))).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(/header claims \d+ bytes, wanted at most 64/),
    });
  });

  test('of JSON', async () => {
    limits({ jsonBytes: 100 });
    await expect(ClipText.open({ model: join(CLIP, 'onnx/text_model.onnx'), tokenizer: CLIP })).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(/tokenizer\S*\.json: got \d+ bytes, wanted at most 100/),
    });
  });

  test('of a text', async () => {
    await using text = await ClipText.open({ model: join(CLIP, 'onnx/text_model.onnx'), tokenizer: CLIP });
    const emoji = '🙂'.repeat(16_000);
    await expect(text.encode(emoji)).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: 'text: got 64000 bytes of text, wanted at most 16384 (limits({ textBytes }))',
    });
    limits({ textBytes: 10 });
    await expect(text.encode('a red star')).resolves.toBeDefined();
    await expect(text.encode('a red stars')).rejects.toMatchObject({ code: 'ERR_VALUE' });
  });

  test('of tokens, in whichever form a text is read', async () => {
    limits({ promptTokens: 12 });
    const refused = (argument: string) => ({
      code: 'ERR_VALUE',
      message: expect.stringMatching(
        `^${argument}: got \\d+ tokens, wanted at most 12 \\(limits\\(\\{ promptTokens \\}\\)\\)$`,
      ),
    });
    const [short, long] = ['what is it', 'what is it '.repeat(8)];
    await using text = await ClipText.open({ model: join(CLIP, 'onnx/text_model.onnx'), tokenizer: CLIP });
    await using siglip = await SiglipText.open(join(ROOT, 'test/fixtures/siglip'), { longText: 'truncate' });
    await using table = await openVisionModel(join(ROOT, 'test/fixtures/families/gemma3'), { keep: 4 });
    await expect(text.encode(long)).rejects.toMatchObject(refused('text'));
    expect(() => text.check(long)).toThrow(expect.objectContaining(refused('text')));
    await expect(table.encodeQuestion(long)).rejects.toMatchObject(refused('question'));
    await expect(table.checkQuestion(long)).rejects.toMatchObject(refused('question'));
    text.check(short);
    // What is cut off is not counted.
    siglip.check(long);
    await expect(table.checkQuestion(short)).resolves.toBeUndefined();
    await using padded = await SiglipText.open(join(ROOT, 'test/fixtures/siglip'));
    expect(() => padded.check(long)).toThrow(expect.objectContaining(refused('text')));
  });

  test('of tokens refuse a question before its image is encoded', async () => {
    let runs = 0;
    const create = async (...given: Parameters<typeof ort.InferenceSession.create>) => {
      const session = await ort.InferenceSession.create(...given);
      const run = session.run.bind(session) as (...all: unknown[]) => Promise<never>;
      session.run = (...all: unknown[]) => {
        runs++;
        return run(...all);
      };
      return session;
    };
    const counted = { ...ort, InferenceSession: { create } } as unknown as typeof ort;
    const llava = join(ROOT, 'models/tiny-llava');
    await using vision = await openVisionModel(llava, { clip: CLIP, keep: 4, ort: counted });
    const inputs = {
      pixelValues: await (await ImageProcessor.open(llava)).process(join(ROOT, 'models/eval/images/000.png')),
    };
    limits({ promptTokens: 5 });
    runs = 0;
    await expect(vision.prune(inputs, 'what is the large thing ?')).rejects.toMatchObject({
      message: 'question: got 8 tokens, wanted at most 5 (limits({ promptTokens }))',
    });
    expect(runs).toBe(0);
    // A method that does not ask reads no question.
    await expect(vision.prune(inputs, 'what is the large thing ?', { method: 'divprune' })).resolves.toBeDefined();
  });

  test('of an image', async () => {
    const processor = await ImageProcessor.open(CLIP);
    limits({ imagePixels: 11 });
    const pixels = { data: new Uint8Array(36), width: 4, height: 3 };
    await expect(processor.process(pixels)).rejects.toMatchObject({
      code: 'ERR_SHAPE',
      message: expect.stringContaining('1 to 11 pixels'),
    });
    await expect(processor.process(join(ROOT, 'test/fixtures/images/edge.png'))).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringContaining('at most 11 pixels'),
    });
    limits({ imageBytes: 10 });
    await expect(processor.process(join(ROOT, 'test/fixtures/images/edge.png'))).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringContaining('at most 10'),
    });
  });

  test('are as they were after a refusal, and say what they are', () => {
    expect(() => limits({ textBytes: 0 })).toThrow(expect.objectContaining({ code: 'ERR_VALUE' }));
    expect(() => limits({ textBytes: '5' as never })).toThrow(
      "limits.textBytes: got '5', wanted a positive integer, or Infinity",
    );
    expect(() => limits({ linksOut: 1 as never })).toThrow(expect.objectContaining({ code: 'ERR_VALUE' }));
    expect(() => limits({ pixels: 5 } as never)).toThrow("the unknown option 'pixels'");
    expect(limits()).toEqual(DEFAULTS);
    expect(limits({ textBytes: Number.POSITIVE_INFINITY }).textBytes).toBe(Number.POSITIVE_INFINITY);
  });
});

describe('a file that is written', () => {
  const bytes = new TextEncoder().encode('new');

  test('is one, whole, whoever else writes it', async () => {
    const path = join(folder(), 'x');
    const heads = [1, 2, 3].map((seed) => randomHead(seed, SHAPE));
    for (let round = 0; round < 20; round++) {
      await Promise.all(heads.map((head) => saveHead(head, path)));
      expect(heads).toContainEqual(await loadHead(path));
    }
    expect(readdirSync(dirname(path))).toEqual(['x']);
  });

  test('takes the place of a file, with its permissions, also behind links', async () => {
    const at = folder();
    writeFileSync(join(at, 'real'), 'old', { mode: 0o600 });
    symlinkSync('real', join(at, 'link'));
    symlinkSync('link', join(at, 'further'));
    await writeWhole(join(at, 'further'), bytes);
    expect(readFileSync(join(at, 'real'), 'utf8')).toBe('new');
    expect(statSync(join(at, 'real')).mode & 0o777).toBe(0o600);
    expect(await readlink(join(at, 'further'))).toBe('link');
    expect(readdirSync(at).sort()).toEqual(['further', 'link', 'real']);
  });

  test('may have a name as long as names can be', async () => {
    const path = join(folder(), 'x'.repeat(255));
    await writeWhole(path, bytes);
    expect(readFileSync(path, 'utf8')).toBe('new');
  });

  test.each<[string, (path: string) => unknown, RegExp]>([
    ['a FIFO', (path) => fifo(path), /got a FIFO, wanted a file/],
    ['a folder', (path) => mkdirSync(path), /got a folder, wanted a file/],
    ['a link to nothing', (path) => symlinkSync('nowhere', path), /got a link to nothing/],
    ['a link to a device', (path) => symlinkSync('/dev/null', path), /got a device, wanted a file/],
    ['a link to a FIFO', (path) => symlinkSync(fifo(`${path}-fifo`), path), /got a FIFO, wanted a file/],
  ])('takes no place of %s', async (_, make, message) => {
    const path = join(folder(), 'x');
    make(path);
    const before = await lstat(path);
    await expect(saveHead(randomHead(1, SHAPE), path)).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringMatching(message),
    });
    expect((await lstat(path)).ino).toBe(before.ino);
    expect(readdirSync(dirname(path)).filter((name) => name.endsWith('.part'))).toEqual([]);
  });

  test('is refused where there is no folder', async () => {
    const path = join(folder(), 'no/x');
    await expect(writeWhole(path, bytes)).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringContaining(path),
    });
    expect(existsSync(path)).toBe(false);
  });
});

test.each([[[1, 3, 40_000, 40_000]], [[10_000_000, 3, 2, 2]]])(
  'images that a graph declares as %j are not made',
  (dims) => {
    const tower = readTower(join(CLIP, 'onnx/vision_model.onnx'));
    const made = () => trialPixels({ ...tower, pixels: { ...tower.pixels, dims } });
    expect(made).toThrow(
      expect.objectContaining({ code: 'ERR_GRAPH', message: expect.stringContaining('at most 16777216') }),
    );
  },
);

test.each([
  [10_000, 1],
  [1, 100_000],
])('a picture of %i x %i pixels costs no more than what is cropped of it', async (width, height) => {
  const png = await sharp({ create: { width, height, channels: 3, background: '#123456' } })
    .png()
    .toBuffer();
  const size = { size: { shortest_edge: 336 }, crop_size: 336 };
  const start = performance.now();
  expect((await (await ImageProcessor.open(size)).process(png)).dims).toEqual([1, 3, 336, 336]);
  expect(performance.now() - start).toBeLessThan(10_000);
  // Without a crop it would be enormous.
  await expect((await ImageProcessor.open({ ...size, do_center_crop: false })).process(png)).rejects.toMatchObject({
    code: 'ERR_VALUE',
    message: expect.stringContaining('1 to 16777216 pixels in the end'),
  });
});
