import { DesapError } from '../../errors.js';
import { cut, type EditedGraph, Graph, type Linear, newNode, type OnnxNode, readModel } from '../../onnx/index.js';
import { Linears } from '../../onnx/linear.js';
import { DataType } from '../../onnx/proto.js';
import { beforePicks, linearBehind } from '../../onnx/read-out.js';
import { toFloat } from '../../onnx/split.js';
import { type GraphNode, renamed } from '../../onnx/write.js';

/** What the tower graph hands out, all in the order in which the encoder computes (by windows, where it has them). */
export const HIDDEN = 'desap.hidden';
export const ATTENTION = 'desap.attention';
export const SALIENCY = 'desap.saliency';
/** For each visual token, the place of its group; absent where the encoder keeps the order. */
export const ORDER = 'desap.order';
/** Input and output of the merger graph. */
export const ROWS = 'desap.rows';
export const FEATURES = 'desap.features';

/** The vision encoder of a Qwen-VL in two parts that share its weights on disk. */
export interface QwenGraphs {
  /**
   * Image and grid to the hidden states behind the last block [L, D], the last block's decoupled attention of its queries before
   * their rotation, through the output projection [L, D], its saliency (mean attention that each patch receives) [L], and the order.
   */
  readonly tower: EditedGraph;
  /** Rows [L, D] through the merger: features [L / 4, W]. */
  readonly merger: EditedGraph;
}

/** Operators that move elements and change none. */
const MOVES = new Set(['Reshape', 'Transpose', 'Squeeze', 'Unsqueeze', 'Flatten', 'Cast', 'Identity']);
const SCORES = new Set([...MOVES, 'Add', 'Mul', 'Div', 'Where']);
const UNPACKS = new Set([...MOVES, 'Split', 'Slice', 'Gather']);
const NORM = new Set([
  ...[...MOVES, 'Add', 'Sub', 'Mul', 'Div', 'Pow', 'Sqrt', 'Reciprocal', 'ReduceMean'],
  ...['LayerNormalization', 'SimplifiedLayerNormalization', 'RMSNormalization'],
]);

/**
 * Reads a Qwen-VL vision encoder by structure: the attention of its last block, and the merger behind it.
 * @throws DesapError `ERR_FILE`; `ERR_GRAPH` with what was looked for
 */
export function readQwenGraphs(path: string): QwenGraphs {
  const graph = new Graph(readModel(path));
  const { model } = graph;
  const linears = new Linears(graph);
  const looked = (what: string) => new DesapError('ERR_GRAPH', `${model.name}: looked for ${what}; found none`);
  const one = (found: readonly OnnxNode[], what: string): OnnxNode => {
    if (found.length === 1) return found[0];
    throw new DesapError('ERR_GRAPH', `${model.name}: looked for ${what}; found ${found.length}`);
  };
  if (model.outputs.length !== 1) throw looked('a single output, the features of the visual tokens');

  const { order, merged, hidden } = readMerger(graph, linears, one, looked);
  const attends = (node: OnnxNode) => node.op === 'Softmax' && isProduct(graph, contextAhead(graph, node));
  const softmax = graph.order.filter(attends).reduce<OnnxNode | null>((last, node) => deeper(graph, last, node), null);
  if (softmax === null) throw looked('a Softmax between two products, the attention of the last block');
  const out = linearAhead(graph, linears, contextAhead(graph, softmax) as OnnxNode);
  if (out === null) throw looked('the output projection of the last attention');
  if (graph.depth(out.output) > graph.depth(hidden)) throw looked('the last attention in front of the merger');

  const product = one(
    before(graph, softmax.inputs[0], (node) => isProduct(graph, node), SCORES),
    'the product of queries and keys of the last attention',
  );
  const [q, k] = product.inputs.map((operand) => {
    const what = 'the rotation of the queries and keys of the last attention';
    return one(
      before(graph, operand, (node) => rotated(graph, node) !== null, SCORES),
      what,
    );
  });
  const queries = rotated(graph, q) as string;
  if (!comesFromLinear(graph, linears, queries)) throw looked('unscaled queries in front of their rotation');

  const decoupled = new Map([q, k].map((rotation) => [rotation.outputs[0], queries]));
  const copies = copyBehind(graph, decoupled);
  const copied = copies.names.get(out.output);
  if (copied === undefined) throw looked('the output projection behind the queries');
  const handedOut = order === null ? [] : [newNode({ op: 'Identity', inputs: [order], outputs: [ORDER] })];
  return {
    tower: cut(model, {
      outputs: [HIDDEN, ATTENTION, SALIENCY, ...(order === null ? [] : [ORDER])],
      nodes: [
        ...copies.nodes,
        ...handedOut,
        toFloat(hidden, HIDDEN),
        toFloat(copied, ATTENTION),
        ...meanOfRows(model.opset, softmax.outputs[0]),
      ],
    }),
    merger: cut(model, {
      inputs: [{ name: ROWS, type: DataType.float }],
      outputs: [FEATURES],
      nodes: [restored(graph, hidden), toFloat(merged, FEATURES)],
    }),
  };
}

type One = (found: readonly OnnxNode[], what: string) => OnnxNode;

/** Norm, two linear layers, and the order that is restored behind them. */
function readMerger(graph: Graph, linears: Linears, one: One, looked: (what: string) => DesapError) {
  const { value: merged, picks } = beforePicks(graph, graph.model.outputs[0].name);
  const reorders = picks.filter((node) => !MOVES.has(node.op));
  const isOrder = ({ op, attributes }: OnnxNode) => op === 'Gather' && (attributes.get('axis')?.i ?? 0) === 0;
  if (reorders.length > 1 || !reorders.every(isOrder)) throw looked('at most one reordering of the visual tokens');
  const second = linearBehind(graph, linears, merged);
  const first = second && linearBehind(graph, linears, second.input);
  if (!first) throw looked('a merger of two linear layers at the end of the graph');
  const isResidual = (node: OnnxNode) => node.op === 'Add' && node.inputs.every((input) => hasPixels(graph, input));
  const sum = one(before(graph, first.input, isResidual, NORM), 'the hidden states in front of the merger’s norm');
  return { order: reorders[0]?.inputs[1] ?? null, merged, hidden: sum.outputs[0] };
}

/** Whether the image has a part in a value; masks, rotations and orders come from the grid alone. */
function hasPixels(graph: Graph, value: string): boolean {
  return !graph.isConstant(value) && graph.sourcesOf(value).floats;
}

/** The first nodes of a kind on the ways back from a value through some operators. */
function before(graph: Graph, value: string, isGoal: (node: OnnxNode) => boolean, through: Set<string>): OnnxNode[] {
  const found = new Set<OnnxNode>();
  const seen = new Set<OnnxNode>();
  const open = [value];
  for (let at = open.pop(); at !== undefined; at = open.pop()) {
    const node = hasPixels(graph, at) ? graph.producer(at) : undefined;
    if (node === undefined || seen.has(node)) continue;
    seen.add(node);
    if (isGoal(node)) found.add(node);
    else if (through.has(node.op)) open.push(...(MOVES.has(node.op) ? node.inputs.slice(0, 1) : node.inputs));
  }
  return [...found];
}

/** A product of two values that the image has a part in. */
function isProduct(graph: Graph, node: OnnxNode | null): boolean {
  return node?.op === 'MatMul' && node.inputs.every((input) => hasPixels(graph, input));
}

/** The product that the weights of a Softmax are the first factor of, past what some exports put in for rows without keys. */
function contextAhead(graph: Graph, node: OnnxNode): OnnxNode | null {
  for (const { node: user, as } of graph.users(node.outputs[0])) {
    if (user.op === 'MatMul' && user.inputs[0] === as) return user;
    const found = MOVES.has(user.op) || user.op === 'Where' ? contextAhead(graph, user) : null;
    if (found !== null) return found;
  }
  return null;
}

function linearAhead(graph: Graph, linears: Linears, node: OnnxNode): Linear | null {
  for (const { node: user } of graph.users(node.outputs[0])) {
    const found = linears.at(user) ?? (MOVES.has(user.op) ? linearAhead(graph, linears, user) : null);
    if (found) return found;
  }
  return null;
}

function deeper(graph: Graph, a: OnnxNode | null, b: OnnxNode): OnnxNode {
  return a !== null && graph.depth(a.outputs[0]) >= graph.depth(b.outputs[0]) ? a : b;
}

/** What a rotary embedding `x cos + turned(x) sin` rotates: x, or null when the node is none. */
function rotated(graph: Graph, node: OnnxNode): string | null {
  if (node.op !== 'Add') return null;
  const factors = node.inputs.map((input) => {
    const factor = graph.producer(graph.origin(input));
    const own = factor?.op === 'Mul' ? factor.inputs.filter((value) => hasPixels(graph, value)) : [];
    return own.length === 1 ? own[0] : null;
  });
  const straight = factors.filter((value) => value !== null && graph.producer(graph.origin(value))?.op !== 'Concat');
  return factors.includes(null) || straight.length !== 1 ? null : straight[0];
}

function comesFromLinear(graph: Graph, linears: Linears, value: string): boolean {
  let at = value;
  while (linears.behind(at) === undefined) {
    const node = graph.producer(at);
    if (node === undefined || !UNPACKS.has(node.op)) return false;
    at = node.inputs[0];
  }
  return true;
}

/** Copies of all nodes that depend on some values, computed from other values in their place. */
function copyBehind(graph: Graph, replaced: ReadonlyMap<string, string>) {
  const names = new Map(replaced);
  const nodes: GraphNode[] = [];
  for (const node of graph.order) {
    if (!node.inputs.some((input) => names.has(input))) continue;
    for (const output of node.outputs) if (output !== '') names.set(output, `desap.decoupled/${output}`);
    nodes.push(renamed(node, (value) => names.get(value) ?? value));
  }
  return { names, nodes };
}

/** Attention [.., H, L, L] to its mean over queries, and then over heads. */
function meanOfRows(opset: number, weights: string): GraphNode[] {
  const AXES_ARE_INPUTS = 18;
  const axes = newNode({
    op: 'Constant',
    inputs: [],
    outputs: ['desap.axes'],
    attributes: { value_ints: { ints: [-2] } },
  });
  const mean = (from: string, to: string) =>
    opset < AXES_ARE_INPUTS
      ? newNode({
          op: 'ReduceMean',
          inputs: [from],
          outputs: [to],
          attributes: { axes: { ints: [-2] }, keepdims: { i: 0 } },
        })
      : newNode({ op: 'ReduceMean', inputs: [from, 'desap.axes'], outputs: [to], attributes: { keepdims: { i: 0 } } });
  const both = [mean(weights, 'desap.mean_of_queries'), mean('desap.mean_of_queries', 'desap.mean_of_heads')];
  return [axes, ...both, toFloat('desap.mean_of_heads', SALIENCY)];
}

/** The fed rows in the type that the graph has them in. */
function restored(graph: Graph, value: string): GraphNode {
  const to = graph.elementType(value);
  return newNode({ op: 'Cast', inputs: [ROWS], outputs: [value], attributes: { to: { i: to } } });
}
