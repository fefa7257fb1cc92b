import { DesapError } from '../errors.js';
import { type Cut, cut, type EditedGraph } from './edit.js';
import { DataType } from './proto.js';
import type { TowerStructure } from './tower.js';
import { type GraphNode, newNode, renamed } from './write.js';

/** Names of the values that a cut graph takes and hands out; the prefix keeps them apart from the user's. */
export const HIDDEN_STATES = 'desap.hidden_states';
export const PATCHES = 'desap.patches';
export const IMAGE_FEATURES = 'desap.image_features';

/**
 * The part of a vision tower from the image to the hidden states that DeSAP works on.
 * In: the file's own image input, as float32. Out: `desap.hidden_states` [batch, N, D] float32, class token included.
 */
export function towerGraph(tower: TowerStructure): EditedGraph {
  const { inputs, nodes } = floatPixels(tower);
  return cut(tower.graph.model, {
    inputs,
    outputs: [HIDDEN_STATES],
    nodes: [...nodes, toFloat(tower.hidden, HIDDEN_STATES)],
  });
}

const PIXELS = 'desap.pixels';

/** What lets a tower take float32 pixels under the name of its image input: for a float16 one, a Cast behind that. */
export function floatPixels({ graph, pixels }: TowerStructure): Required<Pick<Cut, 'inputs' | 'nodes'>> {
  const { name, type } = pixels;
  if (type === DataType.float) return { inputs: [], nodes: [] };
  const behind = graph.consumers(name).map((node) => renamed(node, (value) => (value === name ? PIXELS : value)));
  const narrow = newNode({ op: 'Cast', inputs: [name], outputs: [PIXELS], attributes: { to: { i: type } } });
  return { inputs: [{ name, type: DataType.float }], nodes: [narrow, ...behind] };
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
