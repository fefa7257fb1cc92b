/** Vision encoders of all families on the inputs of their fixtures. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { openGraph } from '../../src/onnx/edit.js';
import type { BlockTrial } from '../../src/onnx/head/confirm-block.js';
import type { BlockEncoder } from '../../src/onnx/last-block.js';

export const FAMILY_ROOT = 'test/fixtures/families';
export const QUIET = { logSeverityLevel: 3 } as const;

import { readSafeTensors, type StoredTensor, toFloat32 } from '../../src/safetensors.js';

type Feeds = BlockTrial['feeds'];
type Outputs = Record<string, ort.Tensor>;

const float = (data: Float32Array, dims: readonly number[]) => ({ type: 'float32' as const, data, dims });
const int64 = (data: readonly number[], dims: readonly number[]) => ({
  type: 'int64' as const,
  data: BigInt64Array.from(data, BigInt),
  dims,
});
const sizeOf = (dims: readonly number[]) => dims.reduce((product, extent) => product * extent, 1);

/** The inputs of the first case of a family's `expected.json`, by the names of its file. */
export async function feedsOf(family: string, pixels: Float32Array): Promise<Feeds> {
  const { cases } = JSON.parse(await readFile(join(FAMILY_ROOT, family, 'expected.json'), 'utf8'));
  const [{ shapes, image_grid_thw: grid, spatial_shapes }] = cases;
  const feeds: Record<string, Feeds[string]> = { pixel_values: float(pixels, shapes.pixel_values) };
  if (grid) for (const name of ['grid_thw', 'image_grid_thw']) feeds[name] = int64(grid.flat(), [grid.length, 3]);
  const mask = shapes.pixel_attention_mask;
  if (spatial_shapes) {
    feeds.spatial_shapes = int64(spatial_shapes.flat(), [spatial_shapes.length, 2]);
    feeds.pixel_attention_mask = int64(new Array(sizeOf(mask)).fill(1), mask);
  } else if (mask)
    feeds.pixel_attention_mask = { type: 'bool', data: new Uint8Array(sizeOf(mask)).fill(1), dims: mask };
  return feeds;
}

/** The pixels of that case. */
export async function pixelsOf(family: string): Promise<Float32Array> {
  const { tensors } = await readSafeTensors(join(FAMILY_ROOT, family, 'expected.safetensors'));
  return toFloat32(tensors.get('pixel_values') as StoredTensor);
}

/** Feeds of which every sequence of the hidden states is whole: [B, N, D], or one [N, D]. */
export function trialOf(feeds: Feeds): BlockTrial {
  return {
    feeds,
    sequences(hidden) {
      const patches = hidden[hidden.length - 2];
      const count = sizeOf(hidden.slice(0, -2));
      return Array.from({ length: count }, (_, i) => ({ firstRow: i * patches, patches }));
    },
  };
}

/** What a graph computes of those feeds that it takes. */
export async function run(graph: BlockEncoder['tower'], feeds: Outputs): Promise<Outputs> {
  const session = await openGraph(ort, graph, QUIET);
  try {
    const used = Object.entries(feeds).filter(([name]) => session.inputNames.includes(name));
    return (await session.run(Object.fromEntries(used))) as Outputs;
  } finally {
    await session.release();
  }
}

export function tensorsOf(feeds: Feeds): Outputs {
  return Object.fromEntries(
    Object.entries(feeds).map(([name, { type, data, dims }]) => [name, new ort.Tensor(type, data as never, dims)]),
  );
}

export const numbers = ({ data }: ort.Tensor) => data as Float32Array;

/** Largest difference relative to the largest magnitude. */
export function errorOf(got: Float32Array, want: Float32Array): number {
  if (got.length !== want.length) return Number.POSITIVE_INFINITY;
  const largest = Math.max(...want.map(Math.abs));
  return Math.max(...want.map((value, i) => Math.abs(value - got[i]))) / largest;
}
