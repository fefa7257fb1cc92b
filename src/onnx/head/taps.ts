import type { InferenceSession } from 'onnxruntime-common';
import type { OptionalBias } from '../../block-weights.js';
import { DesapError } from '../../errors.js';
import { readBlockWeights } from '../block-weights.js';
import { cut, type OrtModule, openGraph } from '../edit.js';
import { Builder } from '../format/builder.js';
import { toleranceOf } from '../search/precision.js';
import { batchFirst, blockOf, enteringStates, floatPixels } from '../split.js';
import type { TowerStructure } from '../tower.js';
import { relativeError } from './compare.js';
import { trialPixels } from './pixels.js';
import { type AttentionWeights, attentionRows } from './recompute.js';
import { pickRows, pixelTensor, runOpen, sampled } from './trial.js';

const attentionOf = (block: number) => `desap.attention_${block}`;

/**
 * Norm and attention of blocks in the middle of a tower, found by structure and confirmed by numbers: on one image, eight rows of each
 * attention behind its output projection are computed again from the weights.
 *
 * @param blocks from 0
 * @param heads H, for a graph that does not say it
 * @throws DesapError `ERR_HEAD_MISMATCH` for weights that do not give what the graph gives; `ERR_GRAPH`, `ERR_FILE`
 */
export async function readTaps(
  ort: OrtModule,
  tower: TowerStructure,
  { blocks, heads }: { readonly blocks: readonly number[]; readonly heads: number },
  options?: InferenceSession.SessionOptions,
): Promise<Map<number, AttentionWeights>> {
  const { graph } = tower;
  const builder = new Builder(graph.model.opset);
  const inputs = floatPixels(builder, tower);
  for (const block of blocks) {
    const { input, out } = blockOf(tower, block);
    builder.float(batchFirst(builder, tower, input), enteringStates(block));
    builder.float(out.laterBias === null ? out.output : builder.sum(out.output, out.laterBias), attentionOf(block));
  }
  const outputs = blocks.flatMap((block) => [enteringStates(block), attentionOf(block)]);
  const session = await openGraph(ort, cut(graph.model, { inputs, outputs, nodes: builder.nodes }), options);
  const pixels = pixelTensor(ort, trialPixels(tower));
  const values = await runOpen({ structure: tower, session }, pixels).finally(() => session.release());
  const read = new Map<number, AttentionWeights>();
  for (const block of blocks) {
    const own = blockOf(tower, block);
    const { norm1, ...weights } = await readBlockWeights(ort, { graph, block: own, heads: own.heads ?? heads });
    const withBias = ({ weight, bias }: OptionalBias) => ({ weight, bias: bias ?? new Float32Array(weights.width) });
    const [q, k, v, out] = [weights.q, weights.k, weights.v, weights.out].map(withBias);
    const attention = { ...weights, ln1: withBias(norm1), q, k, v, out };
    const { data, dims } = values[enteringStates(block)];
    const [images, rows, cols] = dims;
    const hidden = { data: (data as Float32Array).subarray(0, rows * cols), rows, cols };
    const samples = sampled(rows);
    // Between the layers the rows lie as the file has them, in whatever shape.
    const places = samples.map((row) => row * (tower.batchFirst ? 1 : images));
    const wanted = pickRows(values[attentionOf(block)].data as Float32Array, cols, places);
    const error = relativeError(attentionRows(attention, hidden, samples).data, wanted);
    const tolerance = toleranceOf(graph, own.out.output, own.input);
    if (!(error <= tolerance))
      throw new DesapError(
        'ERR_HEAD_MISMATCH',
        `${graph.model.name}: got an attention of block ${block} that differs from that of its weights by ${error.toExponential(1)} relative to the largest, wanted at most ${tolerance}`,
      );
    read.set(block, attention);
  }
  return read;
}
