/** `desap answer` and `desap prune` with a folder of each family, against what Hugging Face says of it (`expected.json`). */
import { cp, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { AutoModelForCausalLM, AutoProcessor, AutoTokenizer, env, type Tensor } from '@huggingface/transformers';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { answerCommand } from '../../src/cli/answer.js';
import type { Strip } from '../../src/cli/images/reader.js';
import { modelKind } from '../../src/cli/models.js';
import { pruneCommand } from '../../src/cli/prune.js';
import { MODEL_TYPES } from '../../src/vision/families.js';
import { openVisionModel } from '../../src/vision/index.js';
import { imageOf, ROOT, type Size } from '../transformers/family-cases.js';
import { type Expected, familyFolder, json, pngOf } from './family-folders.js';
import { desap, ONE_LINE } from './run.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-cli-families-'));
});
afterAll(() => rm(folder, { recursive: true }));

const modelOf = (family: string) => familyFolder(folder, family);
const png = (size: Size, path?: string) => pngOf(folder, size, path);

async function textOf(model: string, ids: readonly number[]): Promise<string> {
  env.allowRemoteModels = false;
  env.localModelPath = folder;
  const tokenizer = await AutoTokenizer.from_pretrained(model.slice(folder.length + 1));
  return tokenizer.decode([...ids], { skip_special_tokens: true }).trim();
}

const sum = (counts: readonly number[]) => counts.reduce((total, count) => total + count, 0);

const GEMMA = '<bos><bos><start_of_turn>user\n{image}{question}<end_of_turn>\n<start_of_turn>model\n';

describe.each([
  { family: 'idefics3', tiles: 5, form: 'llm' },
  { family: 'lfm2_vl', tiles: 1, form: 'llm' },
  { family: 'paligemma', tiles: 1, form: 'llm' },
  // Its ids begin with two start tokens, of which the chat template would give one.
  { family: 'gemma3', tiles: 1, form: 'llm', prompt: GEMMA },
  { family: 'llava_onevision', tiles: 1, form: 'llm' },
  { family: 'qwen2_vl', tiles: 1, form: 'llm' },
  { family: 'qwen2_5_vl', tiles: 1, form: 'llm' },
  { family: 'qwen3_vl', tiles: 1, form: 'llm' },
  { family: 'qwen3_vl_packed', tiles: 1, form: 'llm' },
])('$family', ({ family, tiles, form, prompt = '' }) => {
  const question = 'what is the color?';
  const asking = () => ['--model', model, ...(prompt ? ['--prompt', prompt] : [])];
  let model: string;
  let image: string;
  let unpruned: number[];
  beforeAll(async () => {
    const { model: own, expected } = await modelOf(family);
    model = own;
    const [{ pictures, unpruned: ids }] = expected.cases;
    image = await png(pictures[0][0]);
    unpruned = ids[0];
  });

  it('answers as Hugging Face, with all tokens and with a few', async () => {
    const all = await json(answerCommand(), image, question, '--keep', 'all', ...asking());
    expect(all.ids).toEqual(unpruned);
    expect(all.text).toBe(await textOf(model, unpruned));
    expect(all.indices).toBeUndefined();
    const every = await json(answerCommand(), image, question, '--keep-ratio', '1', ...asking());
    expect(every.ids).toEqual(unpruned);
    const some = await json(answerCommand(), image, question, '--keep', '3', ...asking());
    expect(some.indices).toHaveLength(some.tokens);
    expect(some.tileCounts).toEqual(new Array(tiles).fill(3));
    expect(some.task).toEqual({ form });
    expect(all.promptTokens - some.promptTokens).toBe(all.tokens - some.tokens);
  });

  it('prunes, and draws what it kept', async () => {
    const output = join(folder, `${family}.png`);
    const how = ['--keep', '6', '--allocation', 'image', '--model', model];
    const kept = await json(pruneCommand(), image, question, ...how, '-o', output);
    expect(sum(kept.tileCounts)).toBe(6);
    expect(kept.tiles).toHaveLength(tiles);
    expect(kept.task).toEqual({ form });
    expect(kept.maps.saliency).toHaveLength(kept.patches);
    const { height } = await sharp(output).metadata();
    expect(height).toBeGreaterThan(tiles > 1 ? 2 * 480 : 200);
  });
});

describe('llava_next', () => {
  let model: string;
  let expected: Expected;
  const args = (...more: string[]) => ['--model', model, '--clip', join(model, 'clip'), ...more];
  beforeAll(async () => {
    ({ model, expected } = await modelOf('llava_next'));
    // Where a model's own newline vector lies.
    await cp(join(model, 'expected.safetensors'), join(model, 'model.safetensors'));
  });

  it('answers as Hugging Face, and prunes its tiles', async () => {
    const [given] = expected.cases;
    const image = await png(given.picture);
    const question = await questionOf(model, given.input_ids);
    const all = await json(answerCommand(), image, question, ...args());
    expect(all).toMatchObject({ ids: given.unpruned, tokens: given.tokens });
    const some = await json(answerCommand(), image, question, ...args('--keep', '2', '--newline', 'none'));
    expect(some.tileCounts).toEqual(new Array(given.tiles).fill(2));
    expect(some.tokens).toBe(2 * given.tiles);
    expect(some.task).toEqual({ form: 'clip' });
    for (const anyres of ['model', 'paper']) {
      const output = join(folder, `${anyres}.png`);
      const kept = await json(
        pruneCommand(),
        image,
        question,
        ...args('--keep', '3', '--anyres', anyres, '-o', output),
      );
      expect(kept.tileCounts).toEqual(new Array(given.tiles).fill(3));
      expect((await sharp(output).metadata()).height).toBeGreaterThan(2 * 300);
    }
  });
});

describe('video_llava', () => {
  let model: string;
  let expected: Expected;
  const args = (...more: string[]) => ['--model', model, '--clip', join(model, 'clip'), ...more];
  beforeAll(async () => {
    ({ model, expected } = await modelOf('video_llava'));
  });

  it('answers as Hugging Face about frames in a folder, and prunes each frame', async () => {
    const [given] = expected.cases;
    const frames = join(folder, 'frames');
    await mkdir(frames);
    for (const [i, frame] of given.frames.entries()) await png(frame, join(frames, `frame-${i}.png`));
    const question = await questionOf(model, given.input_ids);
    const all = await json(answerCommand(), frames, question, ...args());
    expect(all).toMatchObject({ ids: given.unpruned, tokens: given.tokens });
    // A video file, through a program that stands in for ffmpeg: it gives frames of 64 x 64 pixels.
    const film = join(folder, 'film.mp4');
    await writeFile(film, JSON.stringify({ frames: 20, width: 64, height: 64 }));
    await symlink(resolve('test/fixtures/ffmpeg.mjs'), join(folder, 'ffmpeg'));
    vi.stubEnv('PATH', `${folder}:${process.env.PATH}`);
    const few = await json(answerCommand(), film, question, ...args('--keep', '2', '--frames', '3'));
    vi.unstubAllEnvs();
    expect(few).toMatchObject({ tileCounts: [2, 2, 2], tokens: 3 * (2 + 1) });
    vi.stubEnv('PATH', '');
    const missing = { code: 'ERR_MISSING_PACKAGE', message: expect.stringContaining('install ffmpeg') };
    await expect(json(answerCommand(), film, question, ...args())).rejects.toMatchObject(missing);
    vi.unstubAllEnvs();
    const output = join(folder, 'video.png');
    const kept = await json(
      pruneCommand(),
      frames,
      question,
      ...args('--keep', '4', '--class-rows', 'drop', '-o', output),
    );
    expect(kept).toMatchObject({ medium: 'video', tileCounts: new Array(8).fill(4), task: { form: 'clip' } });
    expect(kept.indices).toHaveLength(32);
    expect((await sharp(output).metadata()).height).toBeGreaterThan(8 * 480);
  });
});

describe('phi3_v', () => {
  const model = join(ROOT, 'phi3_v_whole');
  const question = 'what is the color?';
  const args = (...more: string[]) => ['--model', model, '--clip', join(model, 'clip'), ...more];
  const limit = ['--max-new-tokens', '6'];

  it('answers as Transformers.js, with all tokens and with a few', async () => {
    const image = await png([1, 90, 60]);
    env.allowRemoteModels = false;
    env.localModelPath = ROOT;
    const client = await AutoModelForCausalLM.from_pretrained('phi3_v_whole', { dtype: 'fp32' });
    const processor = await AutoProcessor.from_pretrained('phi3_v_whole');
    const text = `<|user|>\n<|image_1|>\n${question}<|end|>\n<|assistant|>\n`;
    const inputs = await processor(text, imageOf([1, 90, 60]));
    const output = (await client.generate({ ...inputs, max_new_tokens: 6 })) as Tensor;
    const length = inputs.input_ids.dims[1];
    const ids = output.tolist()[0].slice(length).map(Number);
    await client.dispose();

    const all = await json(answerCommand(), image, question, ...args(...limit));
    // Two by two crops and the whole image, 36 tokens each, with separators.
    expect(all).toMatchObject({ ids, tokens: 5 * 36 + 19, promptTokens: length });
    const every = await json(answerCommand(), image, question, ...args('--keep-ratio', '1', ...limit));
    expect(every).toMatchObject({ ids, tokens: all.tokens });
    const some = await json(answerCommand(), image, question, ...args('--keep', '3', '--newline', 'none', ...limit));
    expect(some).toMatchObject({ tokens: 15, tileCounts: [3, 3, 3, 3, 3], task: { form: 'clip' } });
    expect(all.promptTokens - some.promptTokens).toBe(all.tokens - some.tokens);
    const asked = json(answerCommand(), image, 'is <|image_1|> there?', ...args());
    await expect(asked).rejects.toMatchObject({ code: 'ERR_VALUE', message: expect.stringContaining('<|image_1|>') });
  });

  it('prunes, and draws what the encoder sees: the crops as one picture, and the whole image', async () => {
    const output = join(folder, 'phi3.png');
    const how = ['--keep', '9', '--allocation', 'image', '-o', output];
    const kept = await json(pruneCommand(), await png([1, 90, 60]), question, ...args(...how));
    expect(sum(kept.tileCounts)).toBe(9);
    expect(kept).toMatchObject({ patches: 199, task: { form: 'clip' } });
    expect((await sharp(output).metadata()).height).toBeGreaterThan(2 * 336);
  });

  it('draws each pixel and each token in its place', async () => {
    const size: Size = [1, 90, 60];
    const read = await (await (await modelKind(model)).images(model)).read(await png(size));
    const vision = await openVisionModel(model, { clip: join(model, 'clip') });
    const [image] = await vision.encode(read.inputs);
    const [crops, whole] = await read.strips(image);
    expect(crops).toMatchObject({ title: '2 x 2 crops', rows: 12, columns: 12, image: { width: 672, height: 672 } });
    expect(whole).toMatchObject({ title: 'whole image', rows: 6, columns: 6, image: { width: 336, height: 336 } });
    // The image was made 672 pixels wide, and white above and below.
    const pixel = ({ image: { data, width } }: Strip, x: number, y: number) => [
      ...data.subarray((y * width + x) * 3, (y * width + x) * 3 + 3),
    ];
    expect(pixel(crops, 5, 5)).toEqual([255, 255, 255]);
    expect(pixel(whole, 330, 330)).toEqual([255, 255, 255]);
    const { data } = await imageOf(size).resize(672, 448);
    let difference = 0;
    for (let y = 0; y < 448; y += 7)
      for (let x = 0; x < 672; x++)
        for (const [c, value] of pixel(crops, x, y + 112).entries())
          difference = Math.max(difference, Math.abs(value - data[(y * 672 + x) * 3 + c]));
    expect(difference).toBeLessThanOrEqual(1);
    const places = [crops, whole].flatMap((strip) =>
      Array.from({ length: strip.rows * strip.columns }, (_, cell) =>
        strip.place(Math.floor(cell / strip.columns), cell % strip.columns),
      ),
    );
    const { indices, source } = await image.prune(null, { keepRatio: 1, taskShare: 0 });
    expect(places).toEqual([...indices].filter((_, k) => source[k] !== 2));
    image.dispose();
    await vision.dispose();
  });
});

describe('the table of families', () => {
  async function folderOf(config: object): Promise<string> {
    const own = await mkdtemp(join(folder, 'config-'));
    await writeFile(join(own, 'config.json'), JSON.stringify(config));
    return own;
  }

  it.each(MODEL_TYPES)('has %s', async (model_type) => {
    const { images, processing, isClip } = await modelKind(await folderOf({ model_type }));
    expect(images).toBeTypeOf('function');
    // CLIP's towers are run here, but for the one that Transformers.js has a class for.
    expect(processing === null).toBe(isClip && model_type !== 'phi3_v');
  });

  it('sends a LLaVA with another tower through Transformers.js', async () => {
    const config = { model_type: 'llava', vision_config: { model_type: 'siglip_vision_model' } };
    expect((await modelKind(await folderOf(config))).processing).not.toBeNull();
  });

  it.each([
    ['a family that is refused', { model_type: 'florence2' }, [], /DaViT.*ImageAnalysis\.from/],
    ['an unknown family', { model_type: 'abacus' }, [], /'abacus', wanted .*qwen2_vl/],
    ['frames of a model for images', { model_type: 'paligemma' }, ['--frames', '4'], /--frames: got 4/],
  ])('gives the reason for %s', async (_, config, flags, message) => {
    const model = await folderOf(config);
    const image = await png([1, 8, 8]);
    for (const command of [answerCommand(), pruneCommand()])
      await expect(json(command, image, 'what?', '--keep', '2', '--model', model, ...flags)).rejects.toMatchObject({
        code: 'ERR_VALUE',
        message: expect.stringMatching(message),
      });
  });

  it.each([
    ['a CLIP folder where there is no CLIP', ['--clip', 'models/tiny-clip'], /clip/],
    ["SigLIP's space without a SigLIP", ['--task', 'siglip'], /^siglip: got undefined/],
    ['tiles of LLaVA-NeXT in another family', ['--anyres', 'paper'], /anyres/],
  ])('refuses %s', async (_, flags, message) => {
    const image = await png([1, 32, 32]);
    const model = join(ROOT, 'paligemma');
    for (const command of [answerCommand(), pruneCommand()])
      await expect(json(command, image, 'what?', '--keep', '2', '--model', model, ...flags)).rejects.toMatchObject({
        code: 'ERR_VALUE',
        message: expect.stringMatching(message),
      });
  });

  it('refuses a placeholder in a question, and a folder without files', async () => {
    const image = await png([1, 32, 32]);
    const model = join(ROOT, 'paligemma');
    const asked = json(answerCommand(), image, 'is <image> there?', '--model', model);
    await expect(asked).rejects.toMatchObject({ code: 'ERR_VALUE', message: expect.stringContaining('<image>') });
    const empty = await folderOf({ model_type: 'paligemma', image_token_index: 1 });
    await expect(json(answerCommand(), image, 'what?', '--model', empty)).rejects.toMatchObject({ code: 'ERR_FILE' });
    await expect(json(pruneCommand(), image, 'what?', '--keep', '2', '--model', empty)).rejects.toMatchObject({
      code: 'ERR_FILE',
    });
  });
});

it('gives the install line where Transformers.js is missing', async () => {
  const hooks = `export function resolve(name, context, next) {
    if (name !== '@huggingface/transformers') return next(name, context);
    throw Object.assign(new Error('not there'), { code: 'ERR_MODULE_NOT_FOUND' });
  }`;
  const hook = join(folder, 'hook.mjs');
  const url = `data:text/javascript,${encodeURIComponent(hooks)}`;
  await writeFile(hook, `import { register } from 'node:module';\nregister(${JSON.stringify(url)});\n`);
  vi.stubEnv('NODE_OPTIONS', `--import ${hook}`);
  const { code, err } = await desap('answer', await png([1, 32, 32]), 'what?', '--model', join(ROOT, 'paligemma'));
  vi.unstubAllEnvs();
  expect(err).toMatch(ONE_LINE);
  expect(err).toContain('npm install @huggingface/transformers');
  expect(code).toBe(1);
});

/** The question of a prompt `USER: <image>\n… ASSISTANT:`. */
async function questionOf(model: string, ids: readonly number[]): Promise<string> {
  const text = await textOf(model, ids);
  return (/USER:\s*(.*?) ASSISTANT:/s.exec(text)?.[1] ?? text).trim();
}
