/** The layers of the house: a file imports from its own layer and from those below, and no files import each other in a circle. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { expect, test } from 'vitest';
import { ROOT } from './support.js';

/** From the ground up; the last pattern that fits a file is its layer. */
const LAYERS: readonly (readonly [string, RegExp])[] = [
  ['basics', /^[a-z-]+\.ts$/],
  ['kernels', /^kernels\//],
  ['devices', /^devices\/|^telemetry\.ts$/],
  ['methods', /^methods\//],
  ['onnx format', /^onnx\/format\//],
  ['onnx search', /^onnx\/search\//],
  ['onnx', /^onnx\/[a-z-]+\.ts$/],
  ['onnx head', /^onnx\/head\/|^onnx\/index\.ts$/],
  ['pruner', /^(pruner|block-head|image-analysis|prune-(request|result)|method-input|host-buffer|ort|index)\.ts$/],
  ['serving', /^serving\//],
  ['vision', /^vision\//],
  ['server', /^server\//],
  ['transformers', /^transformers\//],
  ['command line', /^cli\//],
];
const SOURCE = join(ROOT, 'src');
const files = readdirSync(SOURCE, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.ts'));

const layerOf = (file: string) => LAYERS.findLastIndex(([, pattern]) => pattern.test(file));

/** Modules of this package that a text imports, in whichever form; those of which it takes types only among them. */
function imported(text: string): string[] {
  return [...text.matchAll(/\b(?:from|import)\s*\(?\s*'(\.[^']+)\.js'/g)].map(([, path]) => path);
}

/** Files of this package that a file imports. */
function imports(file: string): string[] {
  const text = readFileSync(join(SOURCE, file), 'utf8');
  return imported(text).map((path) => normalize(join(dirname(file), `${path}.ts`)));
}

test('an import is seen in each of its forms', () => {
  const forms = [
    "import { a } from './a.js';",
    "import './b.js';",
    "export * from '../c.js';",
    "const d = await import('./d.js');",
    "const e = await import(\n  './e.js'\n);",
    "type F = typeof import('./f.js');",
    "import g from 'node:fs';",
  ];
  expect(imported(forms.join('\n'))).toEqual(['./a', './b', '../c', './d', './e', './f']);
});

test('every file has a layer, and every layer files', () => {
  expect(files.length).toBeGreaterThan(100);
  expect(files.filter((file) => layerOf(file) < 0)).toEqual([]);
  expect([...new Set(files.map(layerOf))].sort((a, b) => a - b)).toEqual([...LAYERS.keys()]);
});

test('no file imports from a layer above', () => {
  const upward = files.flatMap((file) =>
    imports(file)
      .filter((other) => layerOf(other) > layerOf(file))
      .map((other) => `${file} (${LAYERS[layerOf(file)][0]}) imports ${other} (${LAYERS[layerOf(other)][0]})`),
  );
  expect(upward).toEqual([]);
});

test('no files import each other in a circle', () => {
  const done = new Set<string>();
  const circles: string[] = [];
  const walk = (file: string, path: readonly string[]) => {
    if (path.includes(file)) circles.push([...path.slice(path.indexOf(file)), file].join(' -> '));
    if (done.has(file)) return;
    done.add(file);
    for (const other of imports(file)) walk(other, [...path, file]);
  };
  for (const file of files) walk(file, []);
  expect(circles).toEqual([]);
});
