/** What the package exports, by name: whoever adds a public name adds it here, and whoever takes one away breaks somebody's program. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { ROOT } from './support.js';

const NAMES: Readonly<Record<string, readonly string[]>> = {
  desap: [
    'BlockAnalysis',
    'BlockHead',
    'DesapError',
    'HostBuffer',
    'ImageAnalysis',
    'Pruner',
    'devices',
    'formatBlock',
    'formatHead',
    'limits',
    'loadBlock',
    'loadHead',
    'openBackend',
    'saveBlock',
    'saveHead',
    'tapsOf',
  ],
  'desap/onnx': [
    ...['HIDDEN_STATES', 'IMAGE_FEATURES', 'PATCHES'],
    ...[
      'confirmHead',
      'confirmTower',
      'extractHead',
      'openGraph',
      'projectorGraph',
      'readModel',
      'readTower',
      'towerGraph',
    ],
  ],
  'desap/onnxruntime': [
    ...[
      'AnyresImageProcessor',
      'BlockImage',
      'BlockTilesImage',
      'BlockVision',
      'ClipText',
      'ImageProcessor',
      'LlavaImage',
      'LlavaNextVision',
      'LlavaVision',
      'Phi3Vision',
      'QwenImage',
      'QwenVision',
      'SiglipText',
      'TilesImage',
      'VideoLlavaVision',
      'compact',
      'openVisionModel',
      'tapsOf',
      'videoFrames',
    ],
  ],
  'desap/server': ['VisionPool', 'httpStatus'],
  'desap/serving': ['checkUsage', 'toImageEmbeds', 'toPromptEmbeds'],
  'desap/transformers': ['attach'],
};

type Entry = Record<string, { default: string } | string>;
const { exports } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { exports: Entry };
const modules = Object.entries(exports).flatMap(([path, entry]) =>
  typeof entry === 'string' ? [] : [[path.replace('.', 'desap'), entry.default] as const],
);

it('has a list for each entry of package.json', () => {
  expect(modules.map(([name]) => name).sort()).toEqual(Object.keys(NAMES));
});

it.each(modules)('%s', async (name, file) => {
  const module = await import(join(ROOT, file.replace('dist', 'src').replace('.js', '.ts')));
  expect(Object.keys(module).sort()).toEqual(NAMES[name]);
});
