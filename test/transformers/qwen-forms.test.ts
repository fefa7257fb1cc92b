/** Qwen towers in the forms that optimisers, quantisers and other exporters give them. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openGraph } from '../../src/onnx/index.js';
import { readQwenTower } from '../../src/runtimes/transformers/qwen-graph.js';
import { FORM_NAMES, inForm } from './attention-forms.js';

const ROOT = 'test/fixtures/families';
const UNIT = 4;
const GRIDS = [
  [1, 8, 12],
  [2, 6, 4],
];

type Outputs = Record<string, Float32Array>;

function feedsOf(grid: readonly number[], { inputNames }: ort.InferenceSession) {
  const patches = grid.reduce((product, extent) => product * extent, 1);
  const data = Float32Array.from({ length: patches * 96 }, (_, i) => Math.sin(i * i));
  const [pixels, grids] = [...inputNames].sort((a, b) => Number(a.includes('grid')) - Number(b.includes('grid')));
  return {
    [pixels]: new ort.Tensor('float32', data, [patches, 96]),
    [grids]: new ort.Tensor('int64', BigInt64Array.from(grid, BigInt), [1, 3]),
  };
}

/** What a session says of an image, and of frames. */
async function run(session: ort.InferenceSession): Promise<Outputs[]> {
  const all: Outputs[] = [];
  for (const grid of GRIDS) {
    const outputs = await session.run(feedsOf(grid, session));
    all.push(Object.fromEntries(Object.entries(outputs).map(([name, { data }]) => [name, data as Float32Array])));
  }
  await session.release();
  return all;
}

const quiet = { logSeverityLevel: 3 } as const;
const tower = async (path: string) => run(await openGraph(ort, readQwenTower(path, UNIT), quiet));

function expectSame(got: Outputs[], want: Outputs[], tolerance: number): void {
  for (const [i, outputs] of want.entries())
    for (const [name, values] of Object.entries(outputs)) {
      expect(got[i][name]).toHaveLength(values.length);
      const largest = Math.max(...values.map(Math.abs));
      const difference = Math.max(...values.map((value, at) => Math.abs(value - got[i][name][at])));
      expect(difference / largest, `${name} of ${GRIDS[i]}`).toBeLessThan(tolerance);
    }
}

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'desap-attention-'));
});
afterAll(() => rm(root, { recursive: true }));

describe('attention of other tools, in a file of torch.export', () => {
  const source = join(ROOT, 'qwen3_vl_packed/onnx/vision_encoder.onnx');
  let bytes: Uint8Array;
  let want: Outputs[];
  beforeAll(async () => {
    bytes = await readFile(source);
    want = await tower(source);
  });

  it.each(FORM_NAMES)('%s', async (form) => {
    const path = join(root, 'form.onnx');
    // ONNX Runtime has no kernel of it for processors: the last one is read and not run.
    const which = form === 'PackedMultiHeadAttention' ? 'last' : 'all';
    await writeFile(path, await inForm(bytes, form, which));
    expectSame(await tower(path), want, 1e-5);
  });
});
