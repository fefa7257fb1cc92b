import { InferenceSession } from 'onnxruntime-node';
import { expect, test } from 'vitest';
import { GRAPH_NAMES, headGraph } from '../../bench/head/graphs.js';
import { Pruner } from '../../src/index.js';
import { normalTensor, randomHead, relativeError, values } from '../support.js';

const SHAPE = { rows: 38, text: 5, keep: 9 };
const HEAD = randomHead(4, { width: 32, heads: 4, projectionDim: 24 });

test.each(GRAPH_NAMES)('the %s graph computes the head', async (name) => {
  const [hidden, text] = [normalTensor(1, SHAPE.rows, HEAD.width), normalTensor(2, SHAPE.text, HEAD.projectionDim)];
  using reference = await Pruner.load(HEAD, { device: 'reference' });
  const want = reference.pruneSync(hidden, text, { keep: SHAPE.keep, maps: true });
  const session = await InferenceSession.create(headGraph(name, HEAD, SHAPE));
  const got = await session.run({ hidden, text });
  await session.release();

  const integers = (output: string) => Array.from(got[output].data as BigInt64Array, Number);
  expect(integers('indices')).toEqual([...want.indices]);
  expect(integers('assignment')).toEqual([...want.assignment]);
  expect(relativeError(got.task.data as Float32Array, want.maps!.task!)).toBeLessThan(1e-4);
  expect(relativeError(got.tokens.data as Float32Array, values(want.tokens))).toBeLessThan(1e-4);
});
