/** The encoder of a last block of its own in two parts, with a place between where rows may be dropped. */
import { DesapError } from '../errors.js';
import { BLOCK_OUTPUT, COS, HIDDEN, SIN } from './block-values.js';
import type { Connector } from './connector.js';
import type { Cut } from './edit.js';
import type { Builder } from './format/builder.js';
import type { OnnxModel } from './format/model.js';
import type { GraphNode } from './format/write.js';
import { rotaryTables } from './rotary-tables.js';
import { Graph } from './search/graph.js';
import { attentionDepth } from './search/last-attention.js';
import { derivedFrom, type LastBlock } from './search/last-block.js';
import { enteringBlocks } from './search/residual.js';
import { checkAt, cutTower, type TowerCut } from './tower-cut.js';

/**
 * What runs the last block of a cut tower. `kernels`: the rest hands out the states that enter it. `file`: also the sum that ends it, for
 * connectors whose rows are to have the file's own rounding. `beyond`: the pruned block stands behind that sum.
 */
export type LastBy = 'kernels' | 'file' | 'beyond';

/** An encoder as it was read. */
interface Given {
  /** The file's model, with the parts of a loop that is written out. */
  readonly model: OnnxModel;
  readonly found: LastBlock;
  readonly connector: Connector;
  /** Inputs that take float32 in place of float16, nodes that write what the connector needs besides rows, and their names. */
  readonly inputs: NonNullable<Cut['inputs']>;
  readonly nodes: readonly GraphNode[];
  readonly crossing: readonly string[];
  /** Outputs of the file besides the features. */
  readonly further: readonly string[];
}

/** How many blocks of an encoder there are in front of its last. */
export function blocksInFront({ model, found }: Pick<Given, 'model' | 'found'>): number {
  return enteringOf(new Graph(model), found).length - 1;
}

/**
 * Cuts an encoder in front of a block.
 *
 * @param at how many blocks see all rows, from 1 on; at least one is behind them
 * @throws DesapError `ERR_VALUE` for a block that it does not have; `ERR_GRAPH` where the encoder cannot be cut, with what stands in the way
 */
export function blockCut(given: Given, at: number, last: LastBy): TowerCut {
  const { model, found, connector, inputs, nodes, crossing, further } = given;
  const graph = new Graph(model);
  const { block, rotation, end } = found;
  const entering = enteringOf(graph, found);
  // Where the file runs the last block, that one is a part of the rest.
  checkAt(model.name, at, entering.length - (last === 'kernels' ? 1 : 0));
  const states = entering[at];
  checkOthers(graph, states, { ...connector, further });

  const tables = rotation === null ? [] : [COS, SIN];
  const ends = last === 'kernels' ? [] : [BLOCK_OUTPUT];
  const write = (builder: Builder) => {
    if (ends.length > 0) {
      const [first, ...others] = end.summands;
      builder.float(builder.sum(first, ...others), BLOCK_OUTPUT);
    }
    if (last === 'beyond') builder.name(BLOCK_OUTPUT, HIDDEN);
    else builder.float(block.input, HIDDEN);
    if (rotation === null) return;
    const { cos, sin } = rotaryTables(builder, found);
    builder.name(cos, COS);
    builder.name(sin, SIN);
  };
  const values = [block.input, ...(rotation ? [rotation.queries.value] : []), ...(ends.length > 0 ? end.summands : [])];
  return cutTower({
    ...{ graph, at, states, turn: (_, value) => value },
    front: { inputs, nodes, outputs: [...further, ...crossing] },
    late: { outputs: [HIDDEN, ...ends, ...tables], values, write },
  });
}

/** @throws DesapError `ERR_GRAPH` where blocks in front are none that are found */
function enteringOf(graph: Graph, { block }: LastBlock): string[] {
  const entering = enteringBlocks(graph, block.input);
  if (attentionDepth(graph, entering[0]) > 0)
    throw new DesapError(
      'ERR_GRAPH',
      `${graph.model.name}: looked for blocks that each add to the hidden states; found something else in front of '${entering[0]}', ${entering.length - 1} blocks in front of the last`,
    );
  return entering;
}

/** @throws DesapError `ERR_GRAPH` for rows of blocks behind the cut that go past the last one */
function checkOthers(
  graph: Graph,
  states: string,
  { crossing, packed, further }: Pick<Connector, 'crossing' | 'packed'> & { readonly further: readonly string[] },
): void {
  const behind = derivedFrom(graph, [states]);
  const others = [...crossing, ...further].filter((value) => behind.has(value));
  const { name } = graph.model;
  if (packed)
    throw new DesapError(
      'ERR_GRAPH',
      `${name}: looked for features that the last block alone makes; found columns of earlier blocks beside them, whose rows are dropped`,
    );
  if (others.length > 0)
    throw new DesapError(
      'ERR_GRAPH',
      `${name}: looked for a tower behind which only the rows of its last block are used; found '${others[0]}', which comes from a block behind the cut`,
    );
}
