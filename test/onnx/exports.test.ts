/** Files that real exporters wrote, as they are: every case, with the values that PyTorch computes. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { expect, it, test } from 'vitest';
import { Pruner } from '../../src/index.js';
import { LlavaVision } from '../../src/vision/index.js';
import { checkCase, type ExportCase } from '../exports/check-case.js';
import { normal, ROOT, randomHead, relativeError } from '../support.js';

const cases = (folder: string) =>
  (JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8')) as ExportCase[]).map((given) => ({
    ...given,
    folder,
  }));
const CASES = ['exports', 'exports-more'].flatMap((name) => cases(join(ROOT, 'test/fixtures', name)));

it('has all cases', () => expect(CASES).toHaveLength(16 + 15));

test.each(CASES)('$name ($kind)', async (given) => {
  expect((await checkCase(given.folder, given)).failures).toEqual([]);
});

test('a LLaVA file with the class token among its features gives all rows as the file does', async () => {
  const path = join(ROOT, 'test/fixtures/exports-more/models/llava_full_ts17.onnx');
  const pruner = await Pruner.load(randomHead(3, { width: 36, heads: 3, projectionDim: 20 }));
  const vision = await LlavaVision.open(path, { pruner });
  const plain = await ort.InferenceSession.create(path);
  const pixels = new ort.Tensor('float32', normal(5, 3 * 32 * 32), [1, 3, 32, 32]);
  const wanted = (await plain.run({ pixel_values: pixels })).image_features;
  const [image] = await vision.encode(pixels);
  const got = await image.all();
  expect(got.dims).toEqual([1, 17, wanted.dims[2]]);
  expect(relativeError(got.data as Float32Array, wanted.data as Float32Array)).toBeLessThan(1e-5);
  const text = { tokens: { data: normal(6, 4 * 20), dims: [4, 20] } };
  expect((await image.prune(text, { keep: 5 })).features.dims).toEqual([1, 5, wanted.dims[2]]);
  image.dispose();
  await vision.dispose();
  await plain.release();
  pruner.dispose();
});
