/** A folder in which the file names of the papers stand for the repository's own small models. */
import { copyFileSync, existsSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { saveHead } from '../../src/index.js';
import { extractHead } from '../../src/onnx/index.js';
import { ROOT } from '../support.js';
import { BENCHMARKS } from './benchmarks.js';

/** Inside of the package, so that `import ... from 'desap'` finds it. */
export const WORKPLACE = join(ROOT, 'out', 'snippets');

const LLAVA = 'models/tiny-llava';
const CLIP = 'models/tiny-clip';
const IMAGE = 'models/eval/demo/02.png';

const FOLDERS: Readonly<Record<string, string>> = {
  examples: 'examples',
  test: 'test',
  'models/eval': 'models/eval',
  'models/eval-next': 'models/eval-next',
  'models/tiny-llava-next': 'models/tiny-llava-next',
  'SmolVLM-500M-Instruct': 'test/fixtures/families/idefics3',
  'models/tiny-llava': LLAVA,
  'models/tiny-clip': CLIP,
  'models/llava-1.5-7b-hf': LLAVA,
  'models/clip-vit-large-patch14-336': CLIP,
  'llava-1.5-7b-hf': LLAVA,
  'clip-vit-large-patch14-336': CLIP,
};
const FILES: Readonly<Record<string, string>> = {
  'photo.jpg': IMAGE,
  'photo.png': IMAGE,
  'vision_encoder.onnx': `${LLAVA}/onnx/vision_encoder.onnx`,
  'vision_model.onnx': `${CLIP}/onnx/vision_model.onnx`,
  'model.safetensors': `${CLIP}/model.safetensors`,
};
/** Heads that a paper has from `desap extract`. */
const HEADS = ['head.safetensors', 'clip-vit-large-patch14-336.head.safetensors'];

/** Shapes and the like of the models that the papers name, and those of the small ones. */
const SIZES: readonly (readonly [RegExp, string])[] = [
  [/\b577\b/g, '145'],
  [/\b576\b/g, '144'],
  [/\b1024\b/g, '128'],
  [/\b768\b/g, '96'],
  [/(?<![\w-])336\b/g, '96'],
  [/--isa \w+/g, '--isa scalar'],
  [/\b64,128,192\b/g, '16,32,48'],
  [/(?<=\bat(?:: |=))4\b/g, '1'],
];

export function sized(code: string): string {
  return SIZES.reduce((text, [pattern, size]) => text.replaceAll(pattern, size), code);
}

/** Makes the folder anew. */
export async function makeWorkplace(): Promise<void> {
  rmSync(WORKPLACE, { recursive: true, force: true });
  const place = (name: string) => {
    mkdirSync(dirname(join(WORKPLACE, name)), { recursive: true });
    return join(WORKPLACE, name);
  };
  for (const [name, target] of Object.entries(FOLDERS)) symlinkSync(join(ROOT, target), place(name), 'junction');
  for (const [name, target] of Object.entries(FILES)) copyFileSync(join(ROOT, target), place(name));
  for (const [name, json] of Object.entries(BENCHMARKS)) writeFileSync(place(name), `${JSON.stringify(json)}\n`);
  const head = await extractHead({ visionModel: join(ROOT, CLIP, 'onnx/vision_model.onnx') });
  for (const name of HEADS) await saveHead(head, place(name));
  if (!existsSync(join(ROOT, 'dist', 'index.js'))) throw new Error('there is no dist; npm run build:ts makes it');
}
