import { ATTENTION, BLOCK_OUTPUT, COS, HIDDEN, SIN } from './block-values.js';
import { between } from './connector.js';
import { type Cut, cut, type EditedGraph } from './edit.js';
import { Builder } from './format/builder.js';
import type { OnnxModel } from './format/model.js';
import { DataType } from './format/proto.js';
import { derivedFrom, type LastBlock } from './search/last-block.js';

/**
 * A vision encoder without its last attention, which is computed elsewhere: `tower`, the attention, `tail` and the connector, one behind the
 * other, make the features of the file. Scores of all patches with each other exist in neither graph.
 */
export interface SplitEncoder {
  /** The encoder in front of its last block: hidden states, rotary tables and what else comes from there. */
  readonly tower: EditedGraph;
  /** From hidden states, the attention behind its output projection and `crossing` to the sum that ends the block, and `handed`. */
  readonly tail: EditedGraph;
  /** Values that the tail needs besides: outputs of the tower. */
  readonly crossing: readonly string[];
  /** Values that the connector needs of the last block: outputs of the tail. */
  readonly handed: readonly string[];
}

/** What is known of the encoder. */
interface Given {
  /** Inputs that take float32 in place of float16. */
  readonly inputs: NonNullable<Cut['inputs']>;
  /** Outputs of the file besides the features. */
  readonly further: readonly string[];
  /** Values that the connector needs besides rows, and the names under which they are handed over. */
  readonly connector: readonly string[];
  readonly crossing: readonly string[];
  /** Whether the features have columns of earlier blocks. */
  readonly packed: boolean;
}

/**
 * Splits an encoder at its last attention.
 *
 * @param builder nodes that write what the tower hands out; gets those of the tail's crossing values
 * @returns null where something else that the file hands out comes from the last attention, or the features from earlier blocks
 */
export function splitEncoder(
  model: OnnxModel,
  { graph, block, rotation, end }: LastBlock,
  builder: Builder,
  { inputs, further, connector, crossing, packed }: Given,
): SplitEncoder | null {
  const { input, out } = block;
  const attended = derivedFrom(graph, [out.output]);
  if (packed || further.some((name) => attended.has(name))) return null;
  const isHanded = (i: number) => attended.has(connector[i]);
  const handed = crossing.filter((_, i) => isHanded(i));
  const behind = connector.filter((_, i) => isHanded(i));
  const needed = between(graph, [input, out.output], [...end.summands, ...behind]).crossing;
  const names = needed.map((_, i) => `desap.tail/${i}`);
  for (const [i, name] of names.entries()) builder.name(needed[i], name);

  const tail = new Builder(model.opset);
  tail.name(tail.cast(HIDDEN, graph.elementType(input)), input);
  const rows = tail.cast(ATTENTION, graph.elementType(out.output));
  // The rows have a bias already that the file adds later.
  if (out.laterBias === null) tail.name(rows, out.output);
  else tail.add('Sub', [rows, out.laterBias], {}, out.output);
  for (const [i, name] of names.entries()) tail.name(name, needed[i]);
  const [first, ...others] = end.summands;
  tail.float(tail.sum(first, ...others), BLOCK_OUTPUT);
  for (const [i, name] of handed.entries()) tail.name(behind[i], name);

  const tables = rotation === null ? [] : [COS, SIN];
  const kept = crossing.filter((_, i) => !isHanded(i));
  return {
    tower: cut(model, { inputs, outputs: [HIDDEN, ...tables, ...further, ...kept, ...names], nodes: builder.nodes }),
    tail: cut(graph.model, {
      inputs: [
        ...[HIDDEN, ATTENTION].map((name) => ({ name, type: DataType.float })),
        ...names.map((name, i) => ({ name, type: graph.elementType(needed[i]) })),
      ],
      outputs: [BLOCK_OUTPUT, ...handed],
      nodes: tail.nodes,
    }),
    crossing: names,
    handed,
  };
}
