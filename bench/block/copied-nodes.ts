/**
 * The opponent: the decoupled attention and the saliency as nodes of ONNX in the encoder's own session, copied from those of its last
 * block. The package computed them so before it had kernels for a last block of any encoder. Scores [heads, N, N] exist for the file's
 * own attention, which is computed anew because the saliency needs its weights, and once more for the decoupled one.
 */
import { cut, type EditedGraph } from '../../src/onnx/edit.js';
import { Builder } from '../../src/onnx/format/builder.js';
import { readModel } from '../../src/onnx/format/model.js';
import { renamed } from '../../src/onnx/format/write.js';
import { FEATURES, LAST } from './models.js';

/** What the session hands out: [N / unit, W], [N / unit, W], [N / unit, 1]. */
export const HANDED_OUT = { features: FEATURES, rows: 'copied.rows', saliency: 'copied.saliency' } as const;

/** @param path a file of `encoder(.., 'nodes')` */
export function withCopiedNodes(path: string, unit: number): EditedGraph {
  const model = readModel(path);
  const builder = new Builder(model.opset);
  const own = attend(builder, LAST.q, LAST.k, LAST.v);
  builder.name(own.context, LAST.context);
  const decoupled = attend(builder, LAST.plain, LAST.plain, LAST.v).context;
  const copied = new Map([[LAST.context as string, decoupled]]);
  for (const node of model.nodes) {
    const isMade = node.outputs.includes(LAST.context);
    // The rows behind the output projection go where the block's own rows went.
    if (node.outputs.includes(LAST.rows)) copied.set(LAST.rows, copied.get(LAST.projected) as string);
    else if (!isMade && node.inputs.some((input) => copied.has(input))) {
      for (const output of node.outputs) copied.set(output, `copied/${output}`);
      builder.include([renamed(node, (name) => copied.get(name) ?? name)]);
    }
  }
  builder.name(copied.get(FEATURES) as string, HANDED_OUT.rows);
  const received = builder.mean(builder.mean(own.weights, 2, 0), 1, 0);
  const groups = builder.reshape(received, builder.integers(-1, unit));
  builder.name(builder.mean(groups, 1, 1), HANDED_OUT.saliency);
  return cut(model, { outputs: Object.values(HANDED_OUT), nodes: builder.nodes });
}

/** `softmax(q kᵀ / sqrt(dh)) v` of operands [1, N, H, dh]: the weights [1, H, N, N], and the context [1, H, N, dh]. */
function attend(builder: Builder, q: string, k: string, v: string): { weights: string; context: string } {
  const [queries, keys, values] = [q, k, v].map((value) => builder.transpose(value, 0, 2, 1, 3));
  const root = builder.add('Sqrt', [builder.float(builder.extents(q, 3))]);
  const scaled = builder.add('Div', [queries, root]);
  const scores = builder.add('MatMul', [scaled, builder.transpose(keys, 0, 1, 3, 2)]);
  const weights = builder.add('Softmax', [scores], { axis: { i: -1 } });
  return { weights, context: builder.add('MatMul', [weights, values]) };
}
