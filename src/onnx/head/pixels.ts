import { invalid, mismatch } from '../../errors.js';
import { limits } from '../../limits.js';
import { float32, type Tensor } from '../../tensor.js';
import { ancestors, type Graph } from '../search/graph.js';
import { positionCount } from '../search/positions.js';
import type { TowerStructure } from '../tower.js';

/**
 * Pixel values for a trial run: uniform in [-1, 1) from a fixed seed, in the shape that the graph says. Free extents are
 * one image of three channels, as large as patch convolution and position embedding ask for.
 *
 * @throws DesapError `ERR_VALUE` when the graph does not say the size of the image
 */
export function trialPixels(tower: TowerStructure): Tensor {
  const { pixels, graph } = tower;
  const known = pixels.dims ?? ['', '', '', ''];
  const { blocks, width, classToken } = tower;
  const isKnown = known.slice(2).every((extent) => typeof extent === 'number');
  const side = isKnown ? null : imageSide(graph, blocks[0].norm.output, width, classToken);
  const shape = known.map((extent, axis) =>
    typeof extent === 'number' && extent > 0 ? extent : [1, 3, side, side][axis],
  );
  if (shape.length !== 4 || shape.some((extent) => extent === null || extent === undefined))
    throw invalid(
      'ERR_VALUE',
      'pixelValues',
      undefined,
      `an image tensor, as ${graph.model.name} does not say how large its images are ([${known.join(', ')}])`,
    );
  const dims = shape as number[];
  const random = uniform(1);
  const values = Float32Array.from({ length: trialSize(graph.model.name, dims) }, () => 2 * random() - 1);
  return float32(values, dims);
}

/**
 * How many numbers a trial image has, which is as large as a file says.
 * @param name what error messages call the file
 * @throws DesapError `ERR_GRAPH` for more than the limit `trialNumbers`
 */
export function trialSize(name: string, dims: readonly number[]): number {
  const { trialNumbers } = limits();
  const size = dims.reduce((product, extent) => product * extent, 1);
  if (size <= trialNumbers) return size;
  throw mismatch(
    'ERR_GRAPH',
    name,
    `images [${dims.join(', ')}], which are ${size} numbers to try it on`,
    `at most ${trialNumbers} (limits({ trialNumbers }))`,
  );
}

/**
 * Height and width of a square image, from the patch convolution and the count of positions.
 *
 * @param first a value behind both
 * @param width D
 */
export function imageSide(graph: Graph, first: string, width: number, classToken: boolean): number | null {
  // Conv, ConvInteger, QLinearConv, FusedConv.
  const convolution = ancestors(graph, first).find((node) => node.op.includes('Conv'));
  const stride = convolution?.attributes.get('strides')?.ints?.[0];
  const positions = positionCount(graph, first, width);
  if (stride === undefined || positions === null) return null;
  const side = Math.sqrt(positions - (classToken ? 1 : 0));
  return Number.isInteger(side) ? side * stride : null;
}

/** Uniform numbers in [0, 1) from a seed (mulberry32). */
export function uniform(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
