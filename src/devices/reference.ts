/**
 * The JavaScript reference: float64 arithmetic, textbook loops, runs anywhere. It is what every other backend is held
 * against. It computes on the calling thread, also when called asynchronously.
 */

import { copyBlock } from '../block-weights.js';
import { naming } from '../errors.js';
import { copyHead } from '../head.js';
import { align } from '../kernels/align.js';
import { attention } from '../kernels/attention.js';
import { dpp } from '../kernels/dpp.js';
import { farthestPoints } from '../kernels/farthest-points.js';
import type { KernelArguments, KernelName, KernelResults } from '../kernels/kernels.js';
import { layerNorm } from '../kernels/layer-norm.js';
import { linear } from '../kernels/linear.js';
import { merge } from '../kernels/merge.js';
import { widen } from '../kernels/numeric.js';
import { pool } from '../kernels/pool.js';
import { readOut } from '../kernels/read-out.js';
import { rmsNorm } from '../kernels/rms-norm.js';
import { saliency } from '../kernels/saliency.js';
import { select } from '../kernels/select.js';
import { selfAttention } from '../kernels/self-attention.js';
import { siglipReadOut } from '../kernels/siglip-read-out.js';
import { topK } from '../kernels/top-k.js';
import { unitRows } from '../kernels/unit-rows.js';
import { assertAlive } from '../tensor.js';
import type { Driver } from './driver.js';
import { fromParts, matrices, type ReferenceAnalysis } from './reference-analysis.js';
import { ReferenceBlock } from './reference-block.js';
import { ReferenceHead } from './reference-head.js';
import { present, settle, single } from './reference-support.js';

const KERNELS: { [K in KernelName]: (args: KernelArguments[K]) => KernelResults[K] } = {
  layerNorm: ({ x, weight, bias, epsilon }) => single(layerNorm(widen(x), weight, bias, epsilon).data),
  rmsNorm: ({ x, weight, epsilon }) => single(rmsNorm(widen(x), weight, epsilon).data),
  linear: ({ x, weight, bias }) => single(linear(widen(x), widen(weight), bias).data),
  attention: ({ q, k, v, heads }) => single(attention(widen(q), widen(k), widen(v), heads).data),
  saliency: ({ q, k, heads, classToken, rotary }) => single(saliency(widen(q), widen(k), heads, classToken, rotary)),
  selfAttention: ({ q, k, v, heads, rotary }) => {
    const { context, saliency } = selfAttention(widen(q), widen(k), widen(v), heads, rotary);
    return { context: single(context.data), saliency: single(saliency) };
  },
  pool: ({ scores, unit, units }) => single(pool(scores, unit, units)),
  unitRows: ({ x }) => single(unitRows(widen(x)).data),
  readOut: ({ context, out, postNorm, epsilon, visualProjection }) => {
    const result = readOut(widen(context), out, postNorm, epsilon, widen(visualProjection));
    return { attention: single(result.attention.data), embeddings: single(result.embeddings.data) };
  },
  siglipReadOut: ({ attention, ...head }) => {
    const { embeddings, global, saliency } = siglipReadOut(widen(attention), head);
    return { embeddings: single(embeddings.data), global: single(global), saliency: single(saliency) };
  },
  align: ({ visual, text, endOfText, global, alignment, lambda, matrices: wanted }) => {
    const aligned = align(widen(visual), widen(text), endOfText, global, alignment, lambda);
    return { task: single(aligned.task), matrices: wanted ? matrices(aligned) : null };
  },
  topK: ({ scores, k, excluded }) => topK(scores, k, excluded),
  select: ({ task, saliency, keep, taskKeep }) => select(task, saliency, keep, taskKeep),
  merge: ({ features, kept }) => {
    const { tokens, assignment, counts } = naming('features', () => merge(widen(features), kept));
    return { tokens: single(tokens.data), assignment, counts };
  },
  farthestPoints: ({ x, seeds, count }) => farthestPoints(widen(x), seeds, count),
  dpp: ({ x, relevance, blend, count }) => dpp(widen(x), relevance, blend, count),
};

export function createReferenceDriver(): Driver {
  let alive = true;
  const use = () => assertAlive('device', alive);
  return {
    device: 'reference',
    deviceDescription: 'JavaScript reference, float64',
    precision: 'fp32',
    run: (kernel, args, sync) => {
      use();
      return settle(sync, () => KERNELS[kernel](present(args)));
    },
    createHead: async (weights) => {
      use();
      return new ReferenceHead(copyHead(weights), use);
    },
    createBlock: async (weights) => {
      use();
      return new ReferenceBlock(copyBlock(weights), use);
    },
    createAnalysis: (parts, sync) => {
      use();
      return settle(sync, () => fromParts(present(parts), use));
    },
    pruneAll: (analyses, requests, sync) => {
      use();
      const several = analyses.length > 1;
      return settle(sync, () =>
        analyses.map((analysis, b) =>
          (analysis as ReferenceAnalysis).ask(present(requests[b]), several ? b : undefined),
        ),
      );
    },
    // It computes at once.
    cancel: () => false,
    dispose: () => {
      alive = false;
    },
  };
}
