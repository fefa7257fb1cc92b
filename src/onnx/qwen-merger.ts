import { DesapError } from '../errors.js';
import type { OnnxNode } from './format/messages.js';
import { describeNode, type Graph } from './search/graph.js';
import type { Linears } from './search/linear.js';
import { beforePicks, linearBehind } from './search/read-out.js';
import { CARRIES, hasPixels } from './search/rotary.js';

/** What a Qwen-VL does behind its last block: a norm, two linear layers on groups of patches, and the grid's order restored. */
export interface Merger {
  /**
   * Values to replace so that the norm is that of other rows: by the rows, by zeros, or by nothing. Fused norms add the last block's
   * residual themselves.
   */
  readonly rows: string;
  readonly zeros: readonly string[];
  readonly absent: readonly string[];
  /** The features of the visual tokens [M, W] as they are computed. */
  readonly merged: string;
  /** The nodes that put them into the grid's order, the first one first; each takes them as its first input. */
  readonly orders: readonly OnnxNode[];
  /** Whether the rows that the file hands out hold results of further mergers. */
  readonly isPacked: boolean;
}

const SHAPERS = new Set(['Reshape', 'Squeeze', 'Unsqueeze', 'Flatten', 'Cast', 'Identity', 'Dropout']);
const SKIP_NORMS = new Set(['SkipLayerNormalization', 'SkipSimplifiedLayerNormalization']);
const NORM = new Set([
  ...[...CARRIES, 'Add', 'Sub', 'Mul', 'Div', 'Pow', 'Sqrt', 'Reciprocal', 'ReduceMean'],
  ...['LayerNormalization', 'SimplifiedLayerNormalization', 'RMSNormalization'],
]);

/**
 * Finds the merger behind the last block. Where rows hold the results of several mergers side by side, as Qwen3-VL's packed
 * deepstack features do, it is the one behind the last block; the others belong to earlier ones.
 *
 * @throws DesapError `ERR_GRAPH` with the operator in the way
 */
export function readMerger(graph: Graph, linears: Linears): Merger {
  const [output] = graph.model.outputs;
  const whole = beforePicks(graph, output.name);
  const last = graph.producer(whole.value);
  // Axis 0 would join visual tokens.
  if (last?.op !== 'Concat' || last.attributes.get('axis')?.i === 0) return mergerAt(graph, linears, output.name, '');
  const mergers = last.inputs.map((value) =>
    mergerAt(
      graph,
      linears,
      value,
      `, one of the values that ${describeNode(last)} puts side by side (deepstack features?)`,
    ),
  );
  const [deepest] = [...mergers].sort((a, b) => graph.depth(b.rows) - graph.depth(a.rows));
  return { ...deepest, orders: [...deepest.orders, ...ordersOf(graph, whole.picks)], isPacked: mergers.length > 1 };
}

function mergerAt(graph: Graph, linears: Linears, value: string, where: string): Merger {
  const refuse = (wanted: string, found: OnnxNode | undefined) =>
    new DesapError(
      'ERR_GRAPH',
      `${graph.model.name}: looked for ${wanted}${where}; found ${found ? describeNode(found) : 'a graph input'}`,
    );
  const { value: merged, picks } = beforePicks(graph, value);
  const second = linearBehind(graph, linears, merged);
  const first = second && linearBehind(graph, linears, second.input);
  if (!first) {
    const wanted = 'a merger of two linear layers at the end of the graph';
    throw refuse(wanted, operatorBehind(graph, linears, second?.input ?? merged));
  }
  const { node, stop } = normBehind(graph, first.input);
  if (node === null) throw refuse('the hidden states in front of the merger’s norm', stop);
  const orders = ordersOf(graph, picks);
  const found = { merged, orders, isPacked: false };
  if (!SKIP_NORMS.has(node.op)) return { ...found, rows: node.outputs[0], zeros: [], absent: [] };
  // Of SkipLayerNormalization: input, skip, gamma, beta, bias; of the simplified one: input, skip, gamma, bias.
  const [rows, skip] = node.inputs;
  const bias = node.inputs[node.op === 'SkipLayerNormalization' ? 4 : 3];
  return { ...found, rows, zeros: [skip], absent: bias ? [bias] : [] };
}

/** What an activation function is made of. */
const ACTIVATES = new Set([
  ...['Add', 'Sub', 'Mul', 'Div', 'Pow', 'Erf', 'Tanh', 'Sigmoid', 'Gelu', 'FastGelu', 'QuickGelu', 'BiasGelu'],
  ...SHAPERS,
]);

/** The operator that a value comes from, behind an activation function. */
function operatorBehind(graph: Graph, linears: Linears, value: string): OnnxNode | undefined {
  let at = value;
  for (let node = graph.producer(at); node !== undefined; node = graph.producer(at)) {
    const [deepest] = node.inputs
      .filter((input) => hasPixels(graph, input))
      .sort((a, b) => graph.depth(b) - graph.depth(a));
    if (linears.behind(at) !== undefined || !ACTIVATES.has(node.op) || deepest === undefined) return node;
    at = deepest;
  }
  return undefined;
}

/** The residual sum that a norm works on, or the norm that adds it; else the node where the search ended. */
function normBehind(graph: Graph, value: string): { node: OnnxNode | null; stop: OnnxNode | undefined } {
  const isResidual = (node: OnnxNode) =>
    SKIP_NORMS.has(node.op) || (node.op === 'Add' && node.inputs.every((input) => hasPixels(graph, input)));
  const found = new Set<OnnxNode>();
  const seen = new Set<OnnxNode>();
  const open = [value];
  let stop: OnnxNode | undefined;
  for (let at = open.pop(); at !== undefined; at = open.pop()) {
    const node = hasPixels(graph, at) ? graph.producer(at) : undefined;
    if (node === undefined || seen.has(node)) continue;
    seen.add(node);
    if (isResidual(node)) found.add(node);
    else if (NORM.has(node.op)) open.push(...(CARRIES.has(node.op) ? node.inputs.slice(0, 1) : node.inputs));
    else stop = node;
  }
  const [node, ...others] = found;
  return stop !== undefined || others.length > 0
    ? { node: null, stop: stop ?? others[0] }
    : { node: node ?? null, stop };
}

/** The reorderings among operators that pick rows, in the order of the computation. */
function ordersOf(graph: Graph, picks: readonly OnnxNode[]): OnnxNode[] {
  const orders = picks.filter(({ op }) => !SHAPERS.has(op)).reverse();
  for (const node of orders) {
    const isRows = node.op === 'Gather' ? (node.attributes.get('axis')?.i ?? 0) === 0 : node.op === 'GatherND';
    if (!isRows || node.attributes.get('batch_dims')?.i || hasPixels(graph, node.inputs[1]))
      throw new DesapError(
        'ERR_GRAPH',
        `${graph.model.name}: looked for the order of the visual tokens (Gather on axis 0, or GatherND); found ${describeNode(node)}`,
      );
  }
  return orders;
}
