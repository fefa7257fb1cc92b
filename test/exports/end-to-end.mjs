// node test/exports/end-to-end.mjs --python venv/bin/python [--optimum venv-optimum/bin/python] [--out folder]
//
// From a LLaVA and a CLIP as `save_pretrained` of transformers writes them, through tools/export, to pruned answers by README's
// examples as they are written: the head with buffers of its own, a vision model, the command line's loop over plain onnxruntime,
// attach in Transformers.js. Compared with Hugging Face: its own answer with all visual tokens, and its language model fed with the kept ones.
// With --optimum also with a CLIP folder by optimum; with --made on the folder of an earlier run. After `npm run build`.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { copyFile, mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { AutoModelForImageTextToText, AutoProcessor, env, RawImage } from '@huggingface/transformers';
import { HostBuffer, Pruner, saveHead } from 'desap';
import { extractHead, HIDDEN_STATES, openGraph, readTower, towerGraph } from 'desap/onnx';
import { ClipText, ImageProcessor, openVisionModel } from 'desap/onnxruntime';
import { attach } from 'desap/transformers';
import * as ort from 'onnxruntime-node';
import { Llava } from '../../dist/cli/llava/llava.js';

const { values: options } = parseArgs({
  options: {
    python: { type: 'string', default: 'python3' },
    optimum: { type: 'string' },
    out: { type: 'string' },
    made: { type: 'boolean' },
  },
});
const root = fileURLToPath(new URL('../..', import.meta.url));
const out = options.out ?? (await mkdtemp(join(tmpdir(), 'desap-exports-')));
const models = join(out, 'models');
const llavaFolder = join(models, 'llava');
const imageFile = join(out, 'picture.png');
const python = (program, ...args) =>
  execFileSync(program, args, {
    cwd: root,
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, TQDM_DISABLE: '1' },
  });

if (!options.made) await make();

const { question, prompt, ids, whole, pruned } = JSON.parse(await readFile(join(out, 'expected.json'), 'utf8'));
for (const clip of ['clip', ...(options.optimum ? ['clip-optimum'] : [])]) {
  const clipFolder = join(models, clip);
  await check(`the head with own buffers, ${clip}`, () => withBuffers(clipFolder));
  await check(`openVisionModel, ${clip}`, () => withVisionModel(clipFolder));
  for (const folder of ['llava', 'llava-outside']) {
    await check(`Llava over onnxruntime, ${folder}, ${clip}`, () => withLlava(folder, clipFolder));
    await check(`attach in Transformers.js, ${folder}, ${clip}`, () => withTransformers(folder, clipFolder));
  }
  for (const dtype of ['q8', 'q4'])
    for (const folder of ['llava', 'llava-outside'])
      await check(`attach in Transformers.js, ${folder}, ${dtype}, ${clip}`, () =>
        quantised(folder, clipFolder, dtype),
      );
}
if (options.out === undefined) await rm(out, { recursive: true });

async function check(name, run) {
  await run();
  console.log(`ok ${name}`);
}

async function make() {
  python(options.python, 'test/exports/end_to_end_make.py', out);
  const dtypes = ['--dtype', 'fp32', 'q8', 'q4'];
  for (const name of ['clip', 'llava'])
    python(options.python, 'tools/export/export.py', join(out, name), join(models, name), ...dtypes);
  // Weights beside their graphs, as models above 2 GB have them.
  const outside = join(models, 'llava-outside');
  python(options.python, 'tools/export/export.py', join(out, 'llava'), outside, '--inline-limit', '4096', ...dtypes);
  if (options.optimum) await byOptimum();
}

/** optimum's whole CLIP: one file with both towers, which the folder has under both names. */
async function byOptimum() {
  const folder = join(models, 'clip-optimum');
  const made = join(out, 'optimum');
  await mkdir(join(folder, 'onnx'), { recursive: true });
  python(
    options.optimum,
    '-m',
    'optimum.exporters.onnx',
    '--model',
    join(out, 'clip'),
    '--task',
    'feature-extraction',
    made,
  );
  for (const name of ['vision_model', 'text_model'])
    await copyFile(join(made, 'model.onnx'), join(folder, 'onnx', `${name}.onnx`));
  for (const name of ['config.json', 'tokenizer.json', 'tokenizer_config.json'])
    await copyFile(join(out, 'clip', name), join(folder, name));
}

async function pixels() {
  return (await ImageProcessor.open(llavaFolder)).process(imageFile);
}

async function withBuffers(clipFolder) {
  const headFile = join(out, 'head.safetensors');
  await saveHead(await extractHead({ visionModel: join(clipFolder, 'onnx/vision_model.onnx') }), headFile);
  const pixel_values = await pixels();

  const pruner = await Pruner.load(headFile);
  const tower = await openGraph(ort, towerGraph(readTower(join(llavaFolder, 'onnx/vision_encoder.onnx'))));
  const text = await ClipText.open({ model: join(clipFolder, 'onnx/text_model.onnx'), tokenizer: clipFolder });
  const buffer = HostBuffer.forTensor('float32', [1, 26, 36]);
  const hidden = buffer.tensor('float32', [1, 26, 36]);
  await tower.run({ pixel_values }, { [HIDDEN_STATES]: hidden });
  const image = await pruner.analyze(hidden);
  for (const [keep, expected] of Object.entries(pruned)) {
    const kept = await image.prune(await text.encode(question), { keep: Number(keep) });
    assert.deepEqual([...kept.indices], expected.kept);
    assert.deepEqual([...kept.source], expected.source);
    assert.deepEqual(kept.tokens.dims, [Number(keep), 36]);
  }
  for (const part of [image, buffer, pruner]) part.dispose();
  await Promise.all([text.dispose(), tower.release()]);
}

async function withVisionModel(clip) {
  const vision = await openVisionModel(llavaFolder, { clip, keep: 4 });
  const { features, indices } = await vision.prune({ pixelValues: await pixels() }, question);
  assert.deepEqual([...indices], pruned[4].kept);
  assert.deepEqual(features.dims, [1, 4, 44]);
  await vision.dispose();
}

async function withLlava(folder, clip) {
  const llava = await Llava.open(join(models, folder), { clip });
  assert.deepEqual((await llava.answer(imageFile, question)).ids, whole);
  for (const [keep, expected] of Object.entries(pruned))
    for (const positions of ['compact', 'original']) {
      const answer = await llava.answer(imageFile, question, { keep: Number(keep), positions });
      assert.deepEqual([...answer.pruned.indices], expected.kept);
      assert.deepEqual(answer.ids, expected[positions]);
    }
  await llava.dispose();
}

/** A model in Transformers.js with a processor, as a user loads it. */
async function load(folder, dtype) {
  env.allowRemoteModels = false;
  env.localModelPath = models;
  const processor = await AutoProcessor.from_pretrained(folder);
  const model = await AutoModelForImageTextToText.from_pretrained(folder, { dtype });
  const messages = [{ role: 'user', content: [{ type: 'image' }, { type: 'text', text: question }] }];
  const written = processor.apply_chat_template(messages, { add_generation_prompt: true });
  assert.equal(written, prompt);
  const inputs = await processor(await RawImage.read(imageFile), written);
  const answer = async (more) => {
    const output = await model.generate({ ...inputs, max_new_tokens: 6, do_sample: false, ...more });
    return Array.from(output.slice(null, [inputs.input_ids.dims[1], null]).data, Number);
  };
  return { model, inputs, answer };
}

async function withTransformers(folder, clipFolder) {
  const { model, inputs, answer } = await load(folder, 'fp32');
  assert.deepEqual(Array.from(inputs.input_ids.data, Number), ids);
  assert.deepEqual(await answer(), whole);
  let seen;
  const onPruned = ([image]) => (seen = [...image.indices]);
  const detach = await attach(model, { clip: clipFolder, model: join(models, folder), keep: 4, onPruned });
  assert.deepEqual(await answer(), pruned[4].compact);
  assert.deepEqual(seen, pruned[4].kept);
  for (const positions of ['compact', 'original'])
    assert.deepEqual(await answer({ desap: { keep: 9, positions } }), pruned[9][positions]);
  assert.deepEqual(await answer({ desap: { keep: 'all' } }), whole);
  await detach();
  assert.deepEqual(await answer(), whole);
  await model.dispose();
}

/** Coarser weights answer in their own way: with all tokens kept as without pruning, and with few, from as many as were asked for. */
async function quantised(folder, clipFolder, dtype) {
  const { model, answer } = await load(folder, dtype);
  const plain = await answer();
  let kept = 0;
  const onPruned = ([image]) => (kept = image.indices.length);
  const detach = await attach(model, { clip: clipFolder, model: join(models, folder), keep: 4, onPruned });
  assert.equal((await answer()).length > 0, true);
  assert.equal(kept, 4);
  assert.deepEqual(await answer({ desap: { keep: 'all' } }), plain);
  await detach();
  await model.dispose();
}
