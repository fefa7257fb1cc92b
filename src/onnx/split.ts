import { DesapError } from '../errors.js';
import { type Cut, cut, type EditedGraph } from './edit.js';
import { DataType } from './format/proto.js';
import type { StoredTensor } from './format/stored-tensor.js';
import { type GraphNode, newNode, renamed } from './format/write.js';
import { MOVES } from './search/constants.js';
import { ancestors, type Graph } from './search/graph.js';
import type { TowerStructure } from './tower.js';

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
    nodes: [...nodes, ...batchFirst(tower, tower.hidden, HIDDEN_STATES)],
  });
}

/** Nodes that hand out hidden states of any layer as float32 [batch, N, D]. */
export function batchFirst(tower: TowerStructure, value: string, as: string): GraphNode[] {
  if (tower.batchFirst) return [toFloat(value, as)];
  const turned = `${as}.turned`;
  return [
    newNode({ op: 'Transpose', inputs: [value], outputs: [turned], attributes: { perm: { ints: [1, 0, 2] } } }),
    toFloat(turned, as),
  ];
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
  return cast(value, as, DataType.float);
}

/**
 * The projector of a LLaVA vision encoder by itself, for any number of rows.
 * In: `desap.patches` [K, D] or [batch, K, D] float32. Out: `desap.image_features`, the same with the language model's width.
 *
 * @throws DesapError `ERR_GRAPH` when the file has no projector
 */
export function projectorGraph({ graph, projector, width }: TowerStructure): EditedGraph {
  const { model } = graph;
  if (projector === null)
    throw new DesapError(
      'ERR_GRAPH',
      `${model.name}: looked for a projector (linear layers behind the hidden states); found none`,
    );
  const { patches, result } = projector;
  return cut(model, {
    inputs: [{ name: PATCHES, type: DataType.float }],
    outputs: [IMAGE_FEATURES],
    nodes: [
      ...asRows(width),
      cast(ROWS, patches, graph.elementType(patches)),
      ...shapeless(graph, patches, result),
      toFloat(result, PROJECTED),
      ...inShapeOfPatches(),
    ],
  });
}

const ROWS = 'desap.patch_rows';
const PROJECTED = 'desap.projected_rows';

/** The patches as [rows, D]: what a Gemm takes, and every other operator of a projector too. */
function asRows(width: number): GraphNode[] {
  return [
    newNode({
      op: 'Constant',
      inputs: [],
      outputs: [`${ROWS}.shape`],
      attributes: { value: { t: int64([-1, width]) } },
    }),
    newNode({ op: 'Reshape', inputs: [PATCHES, `${ROWS}.shape`], outputs: [ROWS] }),
  ];
}

/**
 * The operators between two values that only change the shape, as operators that do not: exporters write the patch count of
 * their trial image into shapes, and rows are rows whatever their count.
 */
function shapeless(graph: Graph, from: string, to: string): GraphNode[] {
  const behind = new Set([from]);
  const needed = new Set(ancestors(graph, to, from));
  const nodes: GraphNode[] = [];
  for (const node of graph.order) {
    if (!needed.has(node) || !node.inputs.some((input) => behind.has(input))) continue;
    for (const output of node.outputs) behind.add(output);
    if (MOVES.has(node.op) && behind.has(node.inputs[0]))
      nodes.push(newNode({ op: 'Identity', inputs: [node.inputs[0]], outputs: [node.outputs[0]] }));
  }
  return nodes;
}

/** Rows [rows, W] in the shape that the patches have, with W in place of D. */
function inShapeOfPatches(): GraphNode[] {
  const [shape, lead, target] = ['patches_shape', 'leading_shape', 'features_shape'].map((name) => `desap.${name}`);
  const constant = (name: string, values: number[]) =>
    newNode({ op: 'Constant', inputs: [], outputs: [name], attributes: { value: { t: int64(values) } } });
  return [
    constant(`${lead}.from`, [0]),
    constant(`${lead}.to`, [-1]),
    constant(`${target}.width`, [-1]),
    newNode({ op: 'Shape', inputs: [PATCHES], outputs: [shape] }),
    newNode({ op: 'Slice', inputs: [shape, `${lead}.from`, `${lead}.to`], outputs: [lead] }),
    newNode({ op: 'Concat', inputs: [lead, `${target}.width`], outputs: [target], attributes: { axis: { i: 0 } } }),
    newNode({ op: 'Reshape', inputs: [PROJECTED, target], outputs: [IMAGE_FEATURES] }),
  ];
}

function cast(value: string, as: string, type: number): GraphNode {
  return newNode({ op: 'Cast', inputs: [value], outputs: [as], attributes: { to: { i: type } } });
}

function int64(values: readonly number[]): StoredTensor {
  const bytes = new Uint8Array(BigInt64Array.from(values, BigInt).buffer);
  return { name: '', type: DataType.int64, dims: [values.length], data: { bytes } };
}
