import type { Tensor as OrtTensor } from 'onnxruntime-common';
import { ATTENTION, BLOCK_OUTPUT, COS, HIDDEN, SIN } from './block-values.js';
import { between } from './connector.js';
import { type Cut, cut, type EditedGraph, type OrtModule } from './edit.js';
import { Builder } from './format/builder.js';
import type { OnnxModel } from './format/model.js';
import { DataType } from './format/proto.js';
import type { GraphNode } from './format/write.js';
import { derivedFrom, type LastBlock } from './search/last-block.js';

/**
 * A vision encoder without its last attention, which is computed elsewhere: `tower`, the attention, `tail` and the connector, one behind the
 * other, make the features of the file. Scores of all patches with each other exist in neither graph.
 */
export interface SplitEncoder {
  /** The encoder in front of its last block: hidden states, rotary tables and what else comes from there. */
  readonly tower: EditedGraph;
  /** From the hidden states and the attention behind its output projection to the sum that ends the block. */
  readonly tail: EditedGraph;
}

/** Rows of a tail's run: what its feed-forward layers write stays small then. */
const TAIL_ROWS = 1024;

/**
 * Runs a tail over rows, some at a time.
 *
 * @param rows hidden states and attention of all rows; what ends the block is written over the attention
 * @param dims of both: [B, N, D], or [N, D]
 * @param atOnce rows of a run
 */
export async function throughTail(
  { Tensor }: OrtModule,
  run: (feeds: Record<string, OrtTensor>) => Promise<Readonly<Record<string, OrtTensor>>>,
  rows: { readonly hidden: Float32Array; readonly attention: Float32Array; readonly dims: readonly number[] },
  atOnce = TAIL_ROWS,
): Promise<void> {
  const { hidden, attention, dims } = rows;
  const size = atOnce * dims[dims.length - 1];
  for (let at = 0; at < attention.length; at += size) {
    const some = (all: Float32Array) => {
      const data = all.subarray(at, at + size);
      const count = data.length / dims[dims.length - 1];
      return new Tensor('float32', data, [...dims.slice(0, -2).map(() => 1), count, dims[dims.length - 1]]);
    };
    const { [BLOCK_OUTPUT]: ends } = await run({ [HIDDEN]: some(hidden), [ATTENTION]: some(attention) });
    attention.set(ends.data as Float32Array, at);
  }
}

/** What the tower is cut out with. */
interface Given {
  /** Inputs that take float32 in place of float16. */
  readonly inputs: NonNullable<Cut['inputs']>;
  /** Nodes that write what it hands out. */
  readonly nodes: readonly GraphNode[];
  /** What it hands out besides hidden states and tables: values for the connector, and outputs of the file besides the features. */
  readonly outputs: readonly string[];
  /** What these are in the file. */
  readonly values: readonly string[];
}

/**
 * Splits an encoder at its last attention.
 * @returns null where something else that is handed out comes from the last attention, or the rest of the block needs more than the two
 */
export function splitEncoder(
  model: OnnxModel,
  { graph, block: { input, out }, rotation, end }: LastBlock,
  { inputs, nodes, outputs, values }: Given,
): SplitEncoder | null {
  const attended = derivedFrom(graph, [out.output]);
  const { crossing } = between(graph, [input, out.output], end.summands);
  if (crossing.length > 0 || values.some((value) => attended.has(value))) return null;

  const tail = new Builder(model.opset);
  tail.name(tail.cast(HIDDEN, graph.elementType(input)), input);
  const rows = tail.cast(ATTENTION, graph.elementType(out.output));
  // The rows have a bias already that the file adds later.
  if (out.laterBias === null) tail.name(rows, out.output);
  else tail.add('Sub', [rows, out.laterBias], {}, out.output);
  const [first, ...others] = end.summands;
  tail.float(tail.sum(first, ...others), BLOCK_OUTPUT);

  const tables = rotation === null ? [] : [COS, SIN];
  return {
    tower: cut(model, { inputs, outputs: [HIDDEN, ...tables, ...outputs], nodes }),
    tail: cut(graph.model, {
      inputs: [HIDDEN, ATTENTION].map((name) => ({ name, type: DataType.float })),
      outputs: [BLOCK_OUTPUT],
      nodes: tail.nodes,
    }),
  };
}
