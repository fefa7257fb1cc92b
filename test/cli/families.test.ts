/** `desap answer` and `desap prune` with a folder of each family, against what Hugging Face says of it (`expected.json`). */
import { cp, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { AutoTokenizer, env } from '@huggingface/transformers';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { answerCommand } from '../../src/cli/answer.js';
import { modelKind } from '../../src/cli/models.js';
import { pruneCommand } from '../../src/cli/prune.js';
import { MODEL_TYPES } from '../../src/vision/families.js';
import { ROOT, type Size } from '../transformers/family-cases.js';
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

describe('the table of families', () => {
  async function folderOf(config: object): Promise<string> {
    const own = await mkdtemp(join(folder, 'config-'));
    await writeFile(join(own, 'config.json'), JSON.stringify(config));
    return own;
  }

  it.each(MODEL_TYPES)('has %s', async (model_type) => {
    const { images, processing, isClip } = await modelKind(await folderOf({ model_type }));
    expect(images).toBeTypeOf('function');
    expect(isClip).toBe(processing === null); // CLIP's towers are run here
  });

  it('sends a LLaVA with another tower through Transformers.js', async () => {
    const config = { model_type: 'llava', vision_config: { model_type: 'siglip_vision_model' } };
    expect((await modelKind(await folderOf(config))).processing).not.toBeNull();
  });

  it('reads images for Phi-3.5-vision, and says what it does not do with them', async () => {
    const config = { image_processor_type: 'Phi3VImageProcessor', num_crops: 4, num_img_tokens: 144 };
    const model = await folderOf({ model_type: 'phi3_v' });
    const normal = { image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5] };
    await writeFile(join(model, 'preprocessor_config.json'), JSON.stringify({ ...config, ...normal }));
    const image = await png([1, 64, 64]);
    const read = await (await (await modelKind(model)).images(model)).read(image);
    expect(read.inputs.pixelValues?.dims).toEqual([1, 5, 3, 336, 336]);
    expect(read.inputs.imageSizes?.dims).toEqual([1, 2]);
    await expect(read.strips({} as never)).rejects.toMatchObject({ code: 'ERR_VALUE', message: /Phi-3.5-vision/ });
    const asked = json(answerCommand(), image, 'what?', '--model', model);
    await expect(asked).rejects.toMatchObject({ code: 'ERR_VALUE', message: /desap prune/ });
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
