import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { HeadWeights } from '../../src/head.js';
import { openGraph } from '../../src/onnx/edit.js';
import { readModel } from '../../src/onnx/format/model.js';
import { confirmHead, confirmTower } from '../../src/onnx/head/confirm.js';
import { extractHead } from '../../src/onnx/head/extract.js';
import { IMAGE_FEATURES, PATCHES, projectorGraph } from '../../src/onnx/split.js';
import { readText } from '../../src/onnx/text.js';
import { readTower } from '../../src/onnx/tower.js';
import { ClipText } from '../../src/vision/clip-text.js';
import { normal, relativeError } from '../support.js';
import { Editable } from './editable.js';
import { blocks4, dynamic8 } from './forms.js';
import { halfPrecision, type Variant } from './variants.js';

const CLIP = 'models/tiny-clip/onnx/vision_model.onnx';
const TEXT = 'models/tiny-clip/onnx/text_model.onnx';
const LLAVA = 'models/tiny-llava/onnx/vision_encoder.onnx';
const QUIET = { logSeverityLevel: 3 } as const;
const ROWS = new ort.Tensor('float32', normal(5, 9 * 128), [1, 9, 128]);
const FOLDER = mkdtempSync(join(tmpdir(), 'desap-optimised-'));
afterAll(() => rmSync(FOLDER, { recursive: true }));

type Level = 'basic' | 'extended' | 'all';

/** A model as onnxruntime's own optimiser saves it for this machine. */
async function optimised(path: string, level: Level, changes: readonly Variant[]): Promise<string> {
  const graph = await Editable.from(readFileSync(path));
  for (const change of changes) change(graph);
  graph.prune();
  const saved = join(FOLDER, `${level}-${basename(path)}`);
  const options = { ...QUIET, graphOptimizationLevel: level, optimizedModelFilePath: saved };
  const session = await ort.InferenceSession.create(graph.bytes(), options);
  await session.release();
  return saved;
}

async function project(path: string): Promise<Float32Array> {
  const session = await openGraph(ort, projectorGraph(readTower(path)), QUIET);
  const features = (await session.run({ [PATCHES]: ROWS }))[IMAGE_FEATURES].data as Float32Array;
  await session.release();
  return features;
}

async function encode(path: string): Promise<Float32Array> {
  const text = await ClipText.open({ model: path, tokenizer: 'models/tiny-clip', session: QUIET });
  const { embeddings } = await text.encode('what color is the ring ?');
  await text.dispose();
  return embeddings.data as Float32Array;
}

let head: HeadWeights;
let features: Float32Array;
let rows: Float32Array;
beforeAll(async () => {
  head = await extractHead({ visionModel: CLIP });
  features = await project(LLAVA);
  rows = await encode(TEXT);
});

// form, changes, largest error of what is computed, whether a head can be taken
const FORMS: [string, Variant[], number, boolean][] = [
  ['float32', [], 1e-5, true],
  ['float16', [halfPrecision], 2e-3, true],
  ['q8', [dynamic8], 5e-2, false],
  ['q4', [blocks4], 1e-1, false],
];

describe.each<Level>(['basic', 'extended', 'all'])("saved by onnxruntime's optimiser, level %s", (level) => {
  test.each(FORMS)('%s', async (name, changes, tolerance, hasHead) => {
    const llava = await optimised(LLAVA, level, changes);
    expect(readTower(llava).blocks.map(({ heads }) => heads)).toEqual([4, 4, 4]);
    expect((await confirmTower(ort, llava, CLIP, { session: QUIET })).error).toBeLessThan(tolerance);
    expect(relativeError(await project(llava), features)).toBeLessThan(tolerance);

    const clip = await optimised(CLIP, level, changes);
    await confirmHead(ort, clip, head, { session: QUIET });
    if (hasHead) await confirmHead(ort, clip, await extractHead({ visionModel: clip }), { session: QUIET });
    else await expect(extractHead({ visionModel: clip })).rejects.toThrow(/is quantised; take the head from a float32/);

    const text = await optimised(TEXT, level, changes);
    expect(readText(text).contextLength).toBe(32);
    expect(relativeError(await encode(text), rows)).toBeLessThan(tolerance);
    // What the test is for: operators that no exporter writes.
    const operators = readModel(llava).nodes.map(({ op }) => op);
    if (name === 'float32' && level !== 'basic') expect(operators).toContain('FusedMatMul');
  });
});
