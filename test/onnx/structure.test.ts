import { readFileSync } from 'node:fs';
import * as ort from 'onnxruntime-node';
import { beforeAll, describe, expect, test } from 'vitest';
import type { HeadWeights } from '../../src/head.js';
import { confirmHead, extractHead, HIDDEN_STATES, openGraph, readTower, towerGraph } from '../../src/onnx/index.js';
import { normal, relativeError } from '../support.js';
import { Editable } from './editable.js';
import * as variants from './variants.js';

const CLIP = readFileSync('models/tiny-clip/onnx/vision_model.onnx');
const PIXELS = new ort.Tensor('float32', normal(3, 3 * 96 * 96), [1, 3, 96, 96]);
/** onnxruntime warns of weights that its own optimiser leaves over. */
const QUIET = { logSeverityLevel: 3 } as const;

let original: HeadWeights;
let hiddenStates: Float32Array;

async function variant(...changes: variants.Variant[]): Promise<Uint8Array> {
  const graph = await Editable.from(CLIP);
  for (const change of changes) change(graph);
  return graph.bytes();
}

/** What onnxruntime makes of the whole file, and of the part up to the hidden states. */
async function run(bytes: Uint8Array): Promise<{ embedding: Float32Array; hidden: Float32Array }> {
  const whole = await ort.InferenceSession.create(bytes, QUIET);
  const part = await openGraph(ort, towerGraph(readTower(bytes)), QUIET);
  const embedding = Object.values(await whole.run({ [whole.inputNames[0]]: PIXELS }))[0].data as Float32Array;
  const hidden = (await part.run({ [part.inputNames[0]]: PIXELS }))[HIDDEN_STATES].data as Float32Array;
  await whole.release();
  await part.release();
  return { embedding, hidden };
}

/** Largest difference of any weight, relative to the largest of its tensor. */
function headError(got: HeadWeights, wanted: HeadWeights): number {
  const tensors = ({ ln1, q, k, v, out, postNorm, visualProjection }: HeadWeights) => [
    visualProjection,
    ...[ln1, q, k, v, out, postNorm].flatMap(({ weight, bias }) => [weight, bias]),
  ];
  return Math.max(...tensors(got).map((tensor, i) => relativeError(tensor, tensors(wanted)[i])));
}

let embedding: Float32Array;

beforeAll(async () => {
  original = await extractHead({ visionModel: CLIP });
  ({ hidden: hiddenStates, embedding } = await run(CLIP));
});

describe('the same tower in other forms', () => {
  // name, changes, largest error of the head, largest error of what the graph computes
  const cases: [string, variants.Variant[], number, number][] = [
    ['as it is', [], 0, 0],
    ['names stripped', [variants.stripNames], 0, 0],
    ['layer norms of nine nodes', [variants.nineNodeNorms], 0, 1e-5],
    ['nodes in another order', [variants.shuffled], 0, 0],
    ['Identity and Cast in between', [variants.passNodes], 0, 0],
    ['root of the scale on both operands', [variants.scaledOperands], 0, 1e-5],
    ['scale computed from a shape', [variants.computedScale], 0, 1e-5],
    ['scale as a Div of q', [variants.dividedQueries], 0, 1e-5],
    ['scale folded into q', [variants.foldedIntoQ], 1e-6, 1e-5],
    ['root of the scale folded into q and k', [variants.foldedIntoBoth], 1e-6, 1e-5],
    ['projection as Gemm', [variants.gemmProjection], 0, 1e-5],
    ['weights behind Transpose nodes', [variants.transposeNodes], 0, 1e-5],
    ['float16', [variants.halfPrecision], 1e-3, 2e-2],
    ['MultiHeadAttention', [variants.multiHeadAttention], 0, 1e-5],
    ['Attention with packed weights', [variants.packedAttention], 0, 1e-5],
    ['SkipLayerNormalization', [variants.skipNorms], 0, 1e-5],
    ['fused attention and norms', [variants.packedAttention, variants.skipNorms], 0, 1e-5],
    [
      'everything at once',
      [
        variants.nineNodeNorms,
        variants.scaledOperands,
        variants.gemmProjection,
        variants.passNodes,
        variants.shuffled,
        variants.stripNames,
      ],
      0,
      1e-5,
    ],
  ];
  test.each(cases)('%s', async (_, changes, headTolerance, tolerance) => {
    const bytes = await variant(...changes);
    const { blocks, classToken, width, readOut, projector } = readTower(bytes);
    expect({ blocks: blocks.length, heads: blocks.map((block) => block.heads), classToken, width }).toEqual({
      blocks: 4,
      heads: [4, 4, 4, 4],
      classToken: true,
      width: 128,
    });
    expect(readOut).not.toBeNull();
    expect(projector).toBeNull();
    const computed = await run(bytes);
    expect(relativeError(computed.embedding, embedding)).toBeLessThanOrEqual(tolerance);
    expect(relativeError(computed.hidden, hiddenStates)).toBeLessThanOrEqual(tolerance);
    const head = await extractHead({ visionModel: bytes });
    expect(headError(head, original)).toBeLessThanOrEqual(headTolerance);
    expect({ ...head, ...original }).toEqual(original);
    await confirmHead(ort, bytes, head, { session: QUIET });
  });
});
