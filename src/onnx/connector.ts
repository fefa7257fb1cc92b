import { DesapError } from '../errors.js';
import { cut, type EditedGraph } from './edit.js';
import type { Builder } from './format/builder.js';
import type { OnnxNode } from './format/messages.js';
import { DataType, isFloat } from './format/proto.js';
import { renamed } from './format/write.js';
import { MOVES, PASS } from './search/constants.js';
import { describeNode, type Graph } from './search/graph.js';
import { type BlockEnd, derivedFrom, outputsOf, SKIP_NORMS } from './search/last-block.js';
import { beforePicks } from './search/read-out.js';
import { hasPixels } from './search/rotary.js';

/** What stands between the last block of an encoder and its features. */
export interface Connector {
  /** The value of the features that come from the last block alone. */
  readonly value: string;
  /** Operators that put it into the order of the features; they take it as their first input, one after the other. */
  readonly orders: readonly OnnxNode[];
  /** Whether the features have columns of earlier blocks beside those of the last one. */
  readonly packed: boolean;
  /** Values that it takes besides the rows of the last block, such as shapes and indices. */
  readonly crossing: readonly string[];
}

/**
 * Reads what makes the features out of the rows that end the last block. What it computes is not understood: it is run on other rows.
 *
 * @param output the value of the features
 * @throws DesapError `ERR_GRAPH` when the features hold more than the last block and cannot be told apart
 */
export function readConnector(graph: Graph, end: BlockEnd, output: string): Connector {
  const derived = derivedFrom(graph, outputsOf(end.node));
  const { value, orders } = lastColumns(graph, derived, output);
  const { nodes, crossing } = between(graph, outputsOf(end.node), [value], orders);
  for (const one of crossing)
    if (hasPixels(graph, one) && isFloat(graph.elementType(one)))
      throw new DesapError(
        'ERR_GRAPH',
        `${graph.model.name}: looked for features that come from the last block alone; found '${one}' of earlier states among what ${readerOf(nodes, one)} reads`,
      );
  return { value, orders, packed: value !== output, crossing };
}

/**
 * The part of a graph between some values and others: the nodes there, and what they read besides, such as shapes and indices.
 *
 * @param from values that are handed in
 * @param to values that are made of them
 * @param further nodes that belong to the part
 */
export function between(
  graph: Graph,
  from: readonly string[],
  to: readonly string[],
  further: readonly OnnxNode[] = [],
): { readonly nodes: readonly OnnxNode[]; readonly crossing: readonly string[] } {
  const derived = derivedFrom(graph, from);
  const isGiven = (value: string) => graph.producer(value) !== undefined || graph.isInput(value);
  const nodes = new Set<OnnxNode>();
  const crossing = new Set<string>();
  const seen = new Set(from);
  const open = [...to];
  const visit = (node: OnnxNode) => {
    nodes.add(node);
    for (const input of [...node.inputs, ...node.captures]) open.push(input);
  };
  for (const node of further) visit(node);
  for (let value = open.pop(); value !== undefined; value = open.pop()) {
    if (seen.has(value)) continue;
    seen.add(value);
    if (derived.has(value)) visit(graph.producer(value) as OnnxNode);
    else if (isGiven(value) && !graph.isConstant(value)) crossing.add(value);
  }
  return { nodes: [...nodes], crossing: [...crossing] };
}

function readerOf(nodes: readonly OnnxNode[], value: string): string {
  const node = nodes.find(({ inputs, captures }) => inputs.includes(value) || captures.includes(value));
  return node === undefined ? 'the graph' : describeNode(node);
}

const isOrder = ({ op }: OnnxNode) => !MOVES.has(op) && !PASS.has(op);

/**
 * The columns of the last block in the features, where rows hold results of several blocks side by side (packed deepstack); otherwise
 * the features as they are.
 */
function lastColumns(graph: Graph, derived: ReadonlySet<string>, output: string): Pick<Connector, 'value' | 'orders'> {
  const whole = beforePicks(graph, output);
  const last = graph.producer(whole.value);
  const mine = last?.inputs.filter((input) => derived.has(input)) ?? [];
  // Axis 0 would join visual tokens.
  const isPacked = last?.op === 'Concat' && last.attributes.get('axis')?.i !== 0 && last.inputs.length > mine.length;
  if (!isPacked || !last.inputs.every((input) => hasPixels(graph, input))) return { value: output, orders: [] };
  if (mine.length !== 1)
    throw new DesapError(
      'ERR_GRAPH',
      `${graph.model.name}: looked for one value of the last block among those that ${describeNode(last)} puts side by side; found ${mine.length}`,
    );
  return { value: mine[0], orders: whole.picks.filter(isOrder).reverse() };
}

/** Sends a value through copies of operators that put its rows into another order. */
export function inOrder(builder: Builder, orders: readonly OnnxNode[], value: string, prefix: string): string {
  return orders.reduce((at, node, i) => {
    const [from, to] = [node.inputs[0], node.outputs[0]];
    const own = `${prefix}/${i}`;
    builder.include([renamed(node, (name) => (name === from ? at : name === to ? own : name))]);
    return own;
  }, value);
}

/**
 * The operators at the end of a graph that put visual tokens into another order, the first one first: picks of rows by indices in
 * which the image has no part. Picks of one row, and of those that a mask leaves, are none.
 *
 * @throws DesapError `ERR_GRAPH` for a pick along another axis
 */
export function ordersBefore(graph: Graph, { value, orders }: Connector): OnnxNode[] {
  const picks = beforePicks(graph, value).picks.filter((node) => isReordering(graph, node));
  const found = [...picks.reverse(), ...orders.filter((node) => isReordering(graph, node))];
  for (const node of found) {
    const isRows = node.op === 'GatherND' || (node.op === 'Gather' && (node.attributes.get('axis')?.i ?? 0) === 0);
    if (!isRows || node.attributes.get('batch_dims')?.i || hasPixels(graph, node.inputs[1]))
      throw new DesapError(
        'ERR_GRAPH',
        `${graph.model.name}: looked for the order of the visual tokens (Gather on axis 0, or GatherND); found ${describeNode(node)}`,
      );
  }
  return found;
}

function isReordering(graph: Graph, { op, inputs }: OnnxNode): boolean {
  if (!op.startsWith('Gather')) return false;
  const constant = graph.tensor(inputs[1]);
  if (constant !== null) return constant.dims.reduce((product, extent) => product * extent, 1) > 1;
  return graph.producer(graph.unmoved(inputs[1]))?.op !== 'NonZero';
}

/** Numbers of visual tokens in the encoder's order, through what reorders them. */
export function orderOf(builder: Builder, orders: readonly OnnxNode[], as: string): string {
  const count = builder.reshape(builder.extents(orders[0].inputs[0], 0), builder.integers());
  const [zero, one] = [0, 1].map((value) => builder.reshape(builder.integers(value), builder.integers()));
  const numbers = builder.add('Range', [zero, count, one]);
  return builder.name(inOrder(builder, orders, numbers, 'desap.numbers'), as);
}

/**
 * The part of a graph behind the last block as a graph of its own.
 *
 * @param orders what reorders visual tokens, see {@link ordersBefore}
 * @param names its inputs, the rows and then one for each crossing value; its output; and, where there are orders, that of
 *   {@link orderOf}
 */
export function connectorGraph(
  graph: Graph,
  {
    end,
    connector,
    orders,
    builder,
    names,
  }: {
    end: BlockEnd;
    connector: Connector;
    orders: readonly OnnxNode[];
    builder: Builder;
    names: { rows: string; crossing: readonly string[]; output: string; order: string };
  },
): EditedGraph {
  const { node, value } = end;
  const type = graph.elementType(node.inputs[0]);
  const rows = builder.cast(names.rows, type);
  const bias = SKIP_NORMS[node.op];
  if (bias === undefined) builder.name(rows, value as string);
  else {
    const [first, second] = node.inputs;
    const zeros = builder.add('Sub', [rows, rows]);
    const own = (input: string) =>
      input === first ? rows : input === second ? zeros : input === node.inputs[bias] ? '' : input;
    builder.include([renamed(node, own)]);
  }
  for (const [i, name] of names.crossing.entries()) builder.name(name, connector.crossing[i]);
  builder.float(inOrder(builder, connector.orders, connector.value, 'desap.order'), names.output);
  const order = orders.length > 0 ? [orderOf(builder, orders, names.order)] : [];
  const crossing = names.crossing.map((name, i) => ({ name, type: graph.elementType(connector.crossing[i]) }));
  return cut(graph.model, {
    inputs: [{ name: names.rows, type: DataType.float }, ...crossing],
    outputs: [names.output, ...order],
    nodes: builder.nodes,
  });
}
