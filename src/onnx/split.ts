import { DesapError } from '../errors.js';
import { integer } from '../tensor.js';
import { type Cut, cut, type EditedGraph } from './edit.js';
import { Builder } from './format/builder.js';
import { DataType } from './format/proto.js';
import { renamed } from './format/write.js';
import type { Block } from './search/attention.js';
import { MOVES } from './search/constants.js';
import { ancestors, type Graph } from './search/graph.js';
import { checkTower, type TowerStructure } from './tower.js';

// The prefix keeps these names apart from those of the file.

/** The output of {@link towerGraph}. */
export const HIDDEN_STATES = 'desap.hidden_states';
/** The input of {@link projectorGraph}. */
export const PATCHES = 'desap.patches';
/** The output of {@link projectorGraph}. */
export const IMAGE_FEATURES = 'desap.image_features';

/** The output of {@link towerGraph} that has the hidden states which enter a block. */
export const enteringStates = (block: number) => `desap.entering_block_${block}`;

/**
 * The part of a vision tower from the image to the hidden states that DeSAP works on.
 * In: the file's own image input, as float32. Out: `desap.hidden_states` [batch, N, D] float32, class token included.
 *
 * @param tapped blocks in front of it, from 0; what enters block b is the output `desap.entering_block_b`, of the same shape
 * @throws DesapError `ERR_VALUE` for what is no tower, and for a block that it does not have
 */
export function towerGraph(tower: TowerStructure, tapped: readonly number[] = []): EditedGraph {
  const { model } = checkTower(tower).graph;
  const builder = new Builder(model.opset);
  const inputs = floatPixels(builder, tower);
  builder.float(batchFirst(builder, tower, tower.hidden), HIDDEN_STATES);
  const entering = tapped.map((block) => enters(builder, tower, block));
  return cut(model, { inputs, outputs: [HIDDEN_STATES, ...entering], nodes: builder.nodes });
}

/**
 * The part of a vision tower from the image to the hidden states that enter one of its blocks.
 * In: the file's own image input, as float32. Out: `desap.entering_block_b` [batch, N, D] float32, class token included.
 *
 * @throws DesapError `ERR_VALUE` for what is no tower, and for a block that it does not have
 */
export function towerFront(tower: TowerStructure, block: number): EditedGraph {
  const { model } = checkTower(tower).graph;
  const builder = new Builder(model.opset);
  const inputs = floatPixels(builder, tower);
  const outputs = [enters(builder, tower, block)];
  return cut(model, { inputs, outputs, nodes: builder.nodes });
}

/** Hands out what enters a block. */
function enters(builder: Builder, tower: TowerStructure, block: number): string {
  return builder.float(batchFirst(builder, tower, blockOf(tower, block).input), enteringStates(block));
}

/** How many blocks a tower has in front of the hidden states that DeSAP works on: L - 1 of L. */
export function blocksBefore({ graph, blocks, hidden }: TowerStructure): number {
  return blocks.filter(({ depth }) => depth < graph.depth(hidden)).length;
}

/**
 * A block in front of the hidden states that DeSAP works on.
 * @throws DesapError `ERR_VALUE`
 */
export function blockOf(tower: TowerStructure, block: number): Block {
  return tower.blocks[integer('tapped', block, 0, blocksBefore(tower) - 1)];
}

/** Hidden states of any layer as [batch, N, D]. */
export function batchFirst(builder: Builder, tower: TowerStructure, value: string): string {
  return tower.batchFirst ? value : builder.transpose(value, 1, 0, 2);
}

/**
 * Lets a tower take float32 pixels under the name of its image input: behind a float16 one stands a Cast.
 * @returns the inputs of such a cut
 */
export function floatPixels(builder: Builder, { graph, pixels }: TowerStructure): NonNullable<Cut['inputs']> {
  const { name, type } = pixels;
  if (type === DataType.float) return [];
  const narrow = builder.cast(name, type);
  builder.include(graph.consumers(name).map((node) => renamed(node, (value) => (value === name ? narrow : value))));
  return [{ name, type: DataType.float }];
}

/**
 * The projector of a LLaVA vision encoder by itself, for any number of rows.
 * In: `desap.patches` [K, D] or [batch, K, D] float32. Out: `desap.image_features`, the same with the language model's width.
 *
 * @throws DesapError `ERR_GRAPH` when the file has no projector; `ERR_VALUE` for what is no tower
 */
export function projectorGraph(tower: TowerStructure): EditedGraph {
  const { graph, projector, width } = checkTower(tower);
  const { model } = graph;
  if (projector === null)
    throw new DesapError(
      'ERR_GRAPH',
      `${model.name}: looked for a projector (linear layers behind the hidden states); found none`,
    );
  const { patches, result } = projector;
  const builder = new Builder(model.opset);
  // The patches as [rows, D]: what a Gemm takes, and every other operator of a projector too.
  const rows = builder.reshape(PATCHES, builder.integers(-1, width));
  builder.cast(rows, graph.elementType(patches), patches);
  stripShapes(builder, graph, patches, result);
  // Rows [rows, W] in the shape that the patches have, with W in place of D.
  const leading = [builder.add('Shape', [PATCHES]), builder.integers(0), builder.integers(-1)];
  const shape = builder.concat(builder.add('Slice', leading), builder.integers(-1));
  builder.add('Reshape', [builder.float(result), shape], {}, IMAGE_FEATURES);
  return cut(model, {
    inputs: [{ name: PATCHES, type: DataType.float }],
    outputs: [IMAGE_FEATURES],
    nodes: builder.nodes,
  });
}

/**
 * Puts operators that do nothing in place of those between two values that only change the shape: exporters write the patch count of
 * their trial image into shapes, and rows are rows whatever their count.
 */
function stripShapes(builder: Builder, graph: Graph, from: string, to: string): void {
  const behind = new Set([from]);
  const needed = new Set(ancestors(graph, to, from));
  for (const node of graph.order) {
    if (!needed.has(node) || !node.inputs.some((input) => behind.has(input))) continue;
    for (const output of node.outputs) behind.add(output);
    if (MOVES.has(node.op) && behind.has(node.inputs[0])) builder.name(node.inputs[0], node.outputs[0]);
  }
}
