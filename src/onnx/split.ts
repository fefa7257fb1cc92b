import { DesapError } from '../errors.js';
import { cut, type EditedGraph } from './edit.js';
import { DataType } from './proto.js';
import type { TowerStructure } from './tower.js';
import { type GraphNode, newNode } from './write.js';

/** Names of the values that a cut graph takes and hands out; the prefix keeps them apart from the user's. */
export const HIDDEN_STATES = 'desap.hidden_states';
export const PATCHES = 'desap.patches';
export const IMAGE_FEATURES = 'desap.image_features';

/**
 * The part of a vision tower from the image to the hidden states that DeSAP works on.
 * In: the file's own image input. Out: `desap.hidden_states` [batch, N, D] float32, class token included.
 */
export function towerGraph({ graph, hidden }: TowerStructure): EditedGraph {
  return cut(graph.model, { outputs: [HIDDEN_STATES], nodes: [toFloat(hidden, HIDDEN_STATES)] });
}

/** A node that hands out a value as float32 under another name. */
export function toFloat(value: string, as: string): GraphNode {
  return newNode({ op: 'Cast', inputs: [value], outputs: [as], attributes: { to: { i: DataType.float } } });
}

/**
 * The projector of a LLaVA vision encoder by itself, for any number of rows.
 * In: `desap.patches` [K, D] or [batch, K, D] float32. Out: `desap.image_features`, the same with the language model's width.
 *
 * @throws DesapError `ERR_GRAPH` when the file has no projector
 */
export function projectorGraph({ graph, projector }: TowerStructure): EditedGraph {
  const { model } = graph;
  if (projector === null)
    throw new DesapError(
      'ERR_GRAPH',
      `${model.name}: looked for a projector (linear layers behind the hidden states); found none`,
    );
  const { patches, output } = projector;
  const restore = newNode({
    op: 'Cast',
    inputs: [PATCHES],
    outputs: [patches],
    attributes: { to: { i: graph.elementType(patches) } },
  });
  return cut(model, {
    inputs: [{ name: PATCHES, type: DataType.float }],
    outputs: [IMAGE_FEATURES],
    nodes: [restore, toFloat(output, IMAGE_FEATURES)],
  });
}
