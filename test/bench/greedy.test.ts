/** Inputs of bench/greedy, and what it says where OpenVINO's pruner cannot be had. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it, onTestFinished } from 'vitest';
import { inputs, type Shape, writeInputs } from '../../bench/greedy/inputs.js';
import { openvinoPruner } from '../../bench/greedy/openvino.js';

const SHAPE: Shape = { grid: [12, 10], width: 64 };

async function folder(): Promise<string> {
  const made = await mkdtemp(join(tmpdir(), 'desap-test-'));
  onTestFinished(() => rm(made, { recursive: true }));
  return made;
}

function cosine(x: Float32Array, i: number, j: number): number {
  const { width } = SHAPE;
  const dot = (a: number, b: number) => {
    let sum = 0;
    for (let c = 0; c < width; c++) sum += x[a * width + c] * x[b * width + c];
    return sum;
  };
  return dot(i, j) / Math.sqrt(dot(i, i) * dot(j, j));
}

it('makes smooth rows like those around them, and independent ones like none', () => {
  const [smooth, independent] = (['smooth', 'independent'] as const).map(
    (likeness) => inputs(SHAPE, likeness).x.data as Float32Array,
  );
  const middle = 55; // row 5, column 5
  for (const neighbour of [middle - 1, middle + 1, middle - 10, middle + 10])
    expect(cosine(smooth, middle, neighbour)).toBeGreaterThan(0.5);
  for (const other of [0, middle + 1, 119]) expect(Math.abs(cosine(independent, middle, other))).toBeLessThan(0.5);
  expect(Math.abs(cosine(smooth, middle, 119))).toBeLessThan(0.5);
});

it('makes relevance from 0 to 1', () => {
  const { relevance } = inputs(SHAPE, 'smooth');
  expect(Math.min(...relevance)).toBe(0);
  expect(Math.max(...relevance)).toBeCloseTo(1, 4);
});

it('writes what it has in memory', async () => {
  const to = await folder();
  const given = inputs(SHAPE, 'independent');
  await writeInputs(to, given);
  const read = async (name: string) => new Float32Array(Uint8Array.from(await readFile(join(to, name))).buffer);
  expect(await read('rows.f32')).toEqual(given.x.data);
  expect(await read('text.f32')).toEqual(given.text);
  expect(await read('relevance.f32')).toEqual(given.relevance);
});

it('says that a Python has no openvino_genai', async () => {
  const python = join(await folder(), 'python');
  await writeFile(python, '#!/bin/sh\nexit 1\n', { mode: 0o755 });
  expect(openvinoPruner(python, tmpdir())).toBe('the Python that `--python` names has no openvino_genai');
});
