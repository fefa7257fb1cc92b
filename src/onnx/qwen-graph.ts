import { DesapError } from '../errors.js';
import { attend } from './attend.js';
import { cut, type EditedGraph } from './edit.js';
import { Builder } from './format/builder.js';
import type { OnnxValue } from './format/messages.js';
import { type OnnxModel, readModel } from './format/model.js';
import { DataType, isFloat } from './format/proto.js';
import { renamed } from './format/write.js';
import { type Merger, readMerger } from './qwen-merger.js';
import { describeNode, Graph } from './search/graph.js';
import { attentionAt, lastAttention, type Operand } from './search/last-attention.js';
import { type Linear, Linears } from './search/linear.js';
import { CARRIES, moved, rotatedBehind } from './search/rotary.js';

/** What the tower graph hands out of M visual tokens, all in the grid's order. */
export const FEATURES = 'desap.features';
export const TASK_ROWS = 'desap.task_rows';
export const SALIENCY = 'desap.saliency';
/** Only where the features have further columns: those of the last block's merger. */
export const MAIN_FEATURES = 'desap.main_features';

/** The vision encoder of a Qwen-VL with what pruning needs as further outputs. Its weights stay where they are. */
export interface QwenTower extends EditedGraph {
  /** The input of the patches, [patches, C] float32. */
  readonly pixels: string;
  /** The file's input of the grid, [1, 3] int64; the graph may have no use for it. */
  readonly grid: string;
  /** How far its features may lie from the whole file's, relative to the largest magnitude. */
  readonly tolerance: number;
}

/**
 * Reads a Qwen-VL vision encoder by structure: the attention of its last block, and the merger behind it. The graph takes one image
 * and its grid (t, h, w), and hands out
 * - the file's own features [M, W], whatever else their rows hold;
 * - rows [M, W'] in the language model's space: the last block's decoupled attention (of its queries before their
 *   rotation, to themselves), through the output projection and the merger;
 * - the saliency [M, 1]: mean attention that the patches of a token receive from those of its frame;
 * - where the features have columns of earlier blocks beside them (packed deepstack): those of the last block, [M, W'].
 *
 * The last attention is computed anew, frame by frame, in place of the file's own: the features say whether it was read right.
 *
 * @param unit patches that are merged to one visual token
 * @throws DesapError `ERR_FILE`; `ERR_GRAPH` with what was looked for, and the operator in the way
 */
export function readQwenTower(path: string, unit: number): QwenTower {
  const read = new Graph(readModel(path));
  const { model } = read;
  const names = model.outputs.map((output) => output.name);
  if (names.length !== 1)
    throw new DesapError(
      'ERR_GRAPH',
      `${model.name}: got the outputs ${names.join(', ')}, wanted the features of the visual tokens only (deepstack features are taken as further columns of these)`,
    );
  const [pixels, grid] = inputsOf(model);

  const found = lastAttention(read, readMerger(read, new Linears(read)).rows);
  const { graph } = found;
  const attention = { ...attentionAt(found), ...(graph === read ? {} : { isMasked: true }) };
  const linears = new Linears(graph);
  const merger = readMerger(graph, linears);
  const [q, k] = [
    rotatedBehind(graph, linears, attention.q.value, 'queries'),
    rotatedBehind(graph, linears, attention.k.value, 'keys'),
  ];
  const out = projectionAhead(graph, linears, attention.context);

  const builder = new Builder(model.opset);
  // Frames follow one another in the sequence, also where windows reorder the patches of each.
  const extents = builder.reshape(grid.name, builder.integers(-1));
  const frames = builder.add('Slice', [extents, builder.integers(0), builder.integers(1)]);
  const attended = (queries: string, keys: Operand) =>
    attend(
      builder,
      graph,
      { ...attention, q: { ...attention.q, value: queries }, k: keys },
      attention.isMasked ? frames : null,
    );
  const turned = moved(q, q.turned, 'desap.queries', builder);
  const own = attended(turned, { ...attention.k, value: moved(k, k.turned, 'desap.keys', builder) });
  builder.name(own.context, attention.context);

  const plain = builder.reshape(q.plain, builder.add('Shape', [q.turned]));
  const queries = moved(q, plain, 'desap.plain', builder);
  const { context } = attended(queries, { ...attention.q, value: queries });
  const decoupled = projected(builder, graph, out, attention.context, context);
  const rows = builder.reshape(decoupled, builder.add('Shape', [merger.rows]));

  const received = builder.mean(builder.mean(own.weights, 2, 0), 1, 0);
  const groups = builder.reshape(received, builder.integers(-1, unit));
  const handedOut = {
    [FEATURES]: graph.model.outputs[0].name,
    [TASK_ROWS]: inOrder(builder, merger, mergedFrom(builder, graph, merger, rows), 'desap.task_order'),
    [SALIENCY]: inOrder(builder, merger, builder.mean(groups, 1, 1), 'desap.saliency_order'),
    ...(merger.isPacked ? { [MAIN_FEATURES]: inOrder(builder, merger, merger.merged, 'desap.main_order') } : {}),
  };
  for (const [name, value] of Object.entries(handedOut)) builder.float(value, name);
  return {
    ...cut(graph.model, { outputs: Object.keys(handedOut), nodes: builder.nodes }),
    tolerance: TOLERANCE[roundingOf(graph, linears, merger)],
    pixels: pixels.name,
    grid: grid.name,
  };
}

/** The patches in float32, and their grid in integers. */
function inputsOf({ name, inputs }: OnnxModel): [pixels: OnnxValue, grid: OnnxValue] {
  const [pixels, grid] = [inputs.filter(({ type }) => isFloat(type)), inputs.filter(({ type }) => !isFloat(type))];
  if (pixels.length === 1 && pixels[0].type === DataType.float && grid.length === 1) return [pixels[0], grid[0]];
  throw new DesapError(
    'ERR_GRAPH',
    `${name}: got the inputs ${inputs.map((input) => input.name).join(', ')}, wanted float32 patches and their integer grid`,
  );
}

/** Rounding of sums in another order: of float32, of float16, or of activations that are quantised at run time. */
const TOLERANCE = { float32: 1e-3, float16: 1e-2, quantized: 5e-2 } as const;

function roundingOf(graph: Graph, linears: Linears, { merged }: Merger): keyof typeof TOLERANCE {
  if (graph.order.some((node) => linears.at(node)?.quantized)) return 'quantized';
  return graph.elementType(merged) === DataType.float16 ? 'float16' : 'float32';
}

/** The linear layer that an attention's result goes through, past operators that move or quantise it. */
function projectionAhead(graph: Graph, linears: Linears, context: string): Linear {
  for (let at = context; ; ) {
    const users = graph.users(at).filter(({ node }) => node.op !== 'Shape');
    const [node] = users.map((user) => user.node);
    const linear = node && linears.at(node);
    if (linear) return linear;
    if (users.length !== 1 || !(CARRIES.has(node.op) || QUANTIZES.has(node.op)))
      throw new DesapError(
        'ERR_GRAPH',
        `${graph.model.name}: looked for the output projection of the last attention; found ${users.map((user) => describeNode(user.node)).join(', ') || 'an end'}`,
      );
    [at] = node.outputs;
  }
}

const QUANTIZES = new Set(['DynamicQuantizeLinear', 'QuantizeLinear']);

/** Another context through the output projection. */
function projected(builder: Builder, graph: Graph, out: Linear, context: string, other: string): string {
  const value = computedFrom(builder, graph, new Map([[context, other]]), out.output, 'desap.decoupled');
  return out.laterBias === null ? value : builder.sum(value, out.laterBias);
}

/** Other rows through the merger. */
function mergedFrom(builder: Builder, graph: Graph, { rows, zeros, absent, merged }: Merger, other: string): string {
  const typed = builder.cast(other, graph.elementType(rows));
  const zero = builder.add('Sub', [typed, typed]);
  const replaced: [string, string][] = [
    [rows, typed],
    ...zeros.map((value): [string, string] => [value, zero]),
    ...absent.map((value): [string, string] => [value, '']),
  ];
  return computedFrom(builder, graph, new Map(replaced), merged, 'desap.task');
}

/** Visual tokens in the grid's order. */
function inOrder(builder: Builder, { orders }: Merger, value: string, prefix: string): string {
  return orders.reduce((at, node, i) => {
    const [from, to] = [node.inputs[0], node.outputs[0]];
    const own = `${prefix}/${i}`;
    builder.include([renamed(node, (name) => (name === from ? at : name === to ? own : name))]);
    return own;
  }, value);
}

/** A value again, by copies of the nodes that compute it from some others, with these replaced. */
function computedFrom(
  builder: Builder,
  graph: Graph,
  replaced: ReadonlyMap<string, string>,
  value: string,
  prefix: string,
): string {
  const names = new Map(replaced);
  for (const node of graph.order) {
    const isMade = node.outputs.some((output) => replaced.has(output));
    if (isMade || !node.inputs.some((input) => names.has(input))) continue;
    for (const output of node.outputs) if (output !== '') names.set(output, `${prefix}/${output}`);
    builder.include([renamed(node, (name) => names.get(name) ?? name)]);
  }
  return names.get(value) as string;
}
