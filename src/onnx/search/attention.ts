import type { OnnxNode } from '../format/messages.js';
import { MOVES } from './constants.js';
import { describeNode, type Graph } from './graph.js';
import { type Linear, type Linears, type Matrix, outputs, type Part, unquantized, type Vector } from './linear.js';
import type { LayerNorm, Norm, Norms } from './norm.js';
import { rotatedBy } from './rotary.js';
import { slicesOf, takesFirst } from './slice.js';
import {
  ahead,
  contextAhead,
  type Factor,
  isAttentionSoftmax,
  type Softmax,
  scoresBehind,
  softmaxAt,
  throughFactor,
} from './softmax.js';

/** The projection of a layer's normalised input to queries, keys or values. */
export interface Projection {
  readonly weight: Matrix | null;
  readonly bias: Vector | null;
  readonly alpha: number;
  readonly beta: number;
  readonly quantized: boolean;
  /** The operator that multiplies. */
  readonly op: string;
  /** The layer, or the attention operator that holds the weight itself, and which of its outputs these are. */
  readonly layer: { readonly of: Linear | OnnxNode; readonly part: Part | null };
}

/** One pre-norm self-attention layer: `x + out(attention(q, k, v of norm(x)))`. */
export interface Block<N extends Norm = LayerNorm> {
  /** The hidden states that enter it. */
  readonly input: string;
  readonly norm: N;
  readonly q: Projection;
  readonly k: Projection;
  readonly v: Projection;
  /** The output projection. */
  readonly out: Linear;
  /** H; null when the graph does not say it. */
  readonly heads: number | null;
  /** What the graph multiplies query-key products with, given dh; null when it cannot be told. */
  readonly scale: (headExtent: number) => number | null;
  /** Place in the graph: a later layer has a larger depth. */
  readonly depth: number;
  /** Whether queries and keys are rotated. */
  readonly rotary: boolean;
}

/** What a walk from an attention operand back to its projection met. */
interface Operand {
  readonly projection: Projection;
  /** The value that is projected. */
  readonly input: string;
  readonly factors: readonly Factor[];
  readonly heads: HeadShape;
  readonly rotary: boolean;
}

/** What target shapes say about the heads: the extent of one, or extents one of which is their count. */
interface HeadShape {
  readonly counts: readonly number[];
  readonly extent: number | null;
}

const NO_SHAPE: HeadShape = { counts: [], extent: null };

/** An attention core: the values that go in and come out, before projections are looked for. */
interface Core {
  readonly q: Operand;
  readonly k: Operand;
  readonly v: Operand;
  readonly factors: readonly Factor[];
  readonly heads: number | null;
  readonly context: string;
}

/** How many attention cores were seen, and why those that are no layer of an encoder were left out. */
export interface BlockSearch {
  /** In the order of the computation. */
  readonly blocks: readonly Block[];
  readonly cores: number;
  readonly refused: readonly string[];
}

/** Finds the pre-norm self-attention layers of a graph. */
export function findBlocks(graph: Graph, linears: Linears, norms: Norms): BlockSearch {
  const blocks: Block[] = [];
  const refused: string[] = [];
  let cores = 0;
  for (const node of graph.order) {
    const softmax = softmaxAt(graph, node);
    const isCore = softmax === null ? node.op.endsWith('Attention') : isAttentionSoftmax(graph, softmax);
    if (!isCore) continue;
    cores++;
    const block = readBlock(graph, linears, (value) => norms.behind(value), softmax ?? node);
    if (typeof block === 'string') refused.push(block);
    else if (block.rotary) refused.push('its queries and keys are rotated');
    else blocks.push(block);
  }
  blocks.sort((a, b) => a.depth - b.depth);
  return { blocks, cores, refused };
}

/** The fused operators that {@link fusedCore} reads. */
const FUSED = new Set(['Attention', 'MultiHeadAttention', 'QAttention']);

/**
 * Reads the layer around an attention.
 *
 * @param normBehind the norm whose result a value is, of a kind that the layer may have
 * @param at the attention: its softmax, or one operator
 * @param further operators that are read besides those that run everywhere
 * @returns the layer, or why it is none
 */
export function readBlock<N extends Norm>(
  graph: Graph,
  linears: Linears,
  normBehind: (value: string) => N | undefined,
  at: Softmax | OnnxNode,
  further: readonly string[] = [],
): Block<N> | string {
  if ('op' in at && !FUSED.has(at.op) && !further.includes(at.op))
    return `the operator ${at.op} is not one that is read: take an export that is not optimised for a GPU`;
  const core = 'op' in at ? fusedCore(graph, linears, at) : softmaxCore(graph, linears, at);
  if (typeof core === 'string') return core;
  const { q, k, v } = core;
  // Layers that take [N, batch, D] turn what the norm writes first.
  const shared = graph.unmoved(q.input);
  if (shared !== graph.unmoved(k.input) || shared !== graph.unmoved(v.input))
    return 'its queries, keys and values project different values';
  const norm = normBehind(shared);
  if (norm === undefined) return `what it projects is not the result of a layer norm${writtenBy(graph, shared)}`;
  // Its residual connection reads the same value, so even a fused norm hands it out.
  const { input } = norm;
  if (input === null) return 'what its layer norm normalises is used nowhere else';
  if (q.rotary !== k.rotary || v.rotary) return 'not its queries and keys are rotated, but others';
  const out = linearAhead(graph, linears, core.context);
  if (out === null) return `no linear layer follows it${writtenBy(graph, core.context)}`;
  const width = norm.weight.dims[0];
  const heads = core.heads ?? headCount(width, q.heads) ?? headCount(width, k.heads) ?? headCount(width, v.heads);
  const scale = (headExtent: number) => product(graph, core.factors, headExtent);
  return {
    input,
    norm,
    q: q.projection,
    k: k.projection,
    v: v.projection,
    out,
    heads,
    scale,
    depth: graph.depth(out.output),
    rotary: q.rotary || k.rotary,
  };
}

/** " (from the operator ...)", for messages. */
function writtenBy(graph: Graph, value: string): string {
  const node = graph.producer(value);
  return node === undefined ? '' : ` (it comes from ${describeNode(node)})`;
}

function softmaxCore(graph: Graph, linears: Linears, { input, output }: Softmax): Core | string {
  const scores = scoresBehind(graph, input);
  const context = contextAhead(graph, output);
  if (scores === null || context === null) return 'its softmax stands between no two products';
  const operands = operandsBehind(graph, linears, [...scores.node.inputs.slice(0, 2), context.inputs[1]]);
  if (typeof operands === 'string') return operands;
  const { q, k, v } = operands;
  const factors = [...scores.factors, ...q.factors, ...k.factors];
  return { q, k, v, factors, heads: null, context: context.outputs[0] };
}

/** Queries, keys and values, each back to its projection; or what stood in the way. */
function operandsBehind(
  graph: Graph,
  linears: Linears,
  values: readonly string[],
): Record<'q' | 'k' | 'v', Operand> | string {
  const [q, k, v] = ['queries', 'keys', 'values'].map((what, i) => {
    const operand = values[i] ? operandBehind(graph, linears, values[i]) : null;
    if (operand === null) return `it has no ${what} of its own`;
    return 'projection' in operand
      ? operand
      : `its ${what} are no projection of the layer input: ${describeNode(operand)} makes them`;
  });
  for (const operand of [q, k, v]) if (typeof operand === 'string') return operand;
  return { q, k, v } as Record<'q' | 'k' | 'v', Operand>;
}

/** Walks back from an operand of an attention product to its linear layer; else gives the node in the way, or null at a graph input. */
function operandBehind(graph: Graph, linears: Linears, value: string): Operand | OnnxNode | null {
  const factors: Factor[] = [];
  let heads = NO_SHAPE;
  let part: Part | Range | null = null;
  let bias: Vector | null = null;
  let rotary = false;
  for (let at = value; ; ) {
    const linear = linears.behind(at);
    const source = graph.origin(at);
    const node = graph.producer(source);
    if (linear !== undefined) {
      const made = projection(linear, part, bias);
      return made === null ? (node as OnnxNode) : { projection: made, input: linear.input, factors, heads, rotary };
    }
    if (node === undefined) return null;
    const scaled = throughFactor(graph, node);
    const added = constantAdded(graph, node);
    const own = partOf(graph, node, source);
    const plain = rotary || scaled !== null || added !== null ? null : rotatedBy(graph, node);
    if (plain !== null) {
      rotary = true;
      at = plain;
    } else if (scaled !== null && bias === null) {
      factors.push(scaled.factor);
      at = scaled.next;
    } else if (added !== null && bias === null) {
      bias = added.bias;
      at = added.next;
    } else if (own !== null && part === null) {
      part = own;
      at = node.inputs[0];
    } else if (MOVES.has(node.op) || slicesOf(graph, node)?.length === 0) {
      if (node.op === 'Reshape') heads = nearest(heads, headShape(graph, node.inputs[1], part !== null));
      at = node.inputs[0];
    } else return node;
  }
}

/** Outputs of a packed projection from one on and up to another. */
interface Range {
  readonly start: number;
  readonly end: number;
}

/** The pick of queries, keys or values from one packed projection, by the operator that makes it. */
function partOf(graph: Graph, node: OnnxNode, output: string): Part | Range | null {
  if (node.op === 'Split') {
    const sizes =
      node.attributes.get('split')?.ints ?? (node.inputs[1] ? graph.constants.numbers(node.inputs[1]) : null);
    const isEven = sizes === null || sizes.every((size) => size === sizes[0]);
    return isEven && node.outputs.length > 1
      ? { index: node.outputs.indexOf(output), count: node.outputs.length }
      : null;
  }
  if (node.op === 'Gather') {
    const indices = graph.constants.numbers(node.inputs[1]);
    return indices?.length === 1 ? third(indices[0]) : null;
  }
  const ranges = slicesOf(graph, node);
  if (ranges?.length !== 1 || ranges[0].step !== 1) return null;
  // One of three (torch.unbind), or a range of channels.
  const [{ start, end }] = ranges;
  return end - start === 1 || start === -1 ? third(start) : start >= 0 && end > start ? { start, end } : null;
}

/** The `index`-th of three, counted from the end when it is negative. */
function third(index: number): Part | null {
  const at = index < 0 ? index + 3 : index;
  return at >= 0 && at < 3 ? { index: at, count: 3 } : null;
}

/** A vector that is added: its elements in the order of the projection's outputs, whatever axes stand between. */
function constantAdded(graph: Graph, node: OnnxNode): { bias: Vector; next: string } | null {
  if (node.op !== 'Add') return null;
  for (const [constant, next] of [node.inputs, [...node.inputs].reverse()]) {
    const tensor = graph.isConstant(constant) && !graph.isConstant(next) ? graph.tensor(constant) : null;
    if (tensor !== null) return { bias: { tensor, part: null }, next };
  }
  return null;
}

/** A projection out of a linear layer; null when its parts do not fit together. */
function projection(linear: Linear, picked: Part | Range | null, later: Vector | null): Projection | null {
  const { weight, alpha, beta, quantized, op } = linear;
  if (later !== null && linear.bias !== null) return null;
  let part = picked;
  if (part !== null && 'end' in part) {
    // How many parts there are takes the layer's outputs, which a quantised weight does not show: queries, keys, values.
    const total = weight === null ? null : outputs(weight);
    const size = (total === null ? part.end : Math.min(part.end, total)) - part.start;
    const [index, count] = [part.start / size, total === null ? 3 : total / size];
    if (!Number.isInteger(index) || !Number.isInteger(count)) return null;
    part = { index, count };
  }
  const bias = later ?? (linear.bias && { ...linear.bias, part });
  const own = weight && { ...weight, part };
  return { weight: own, bias, alpha, beta: later === null ? beta : 1, quantized, op, layer: { of: linear, part } };
}

/**
 * What a target shape says: [batch, tokens, H, dh], [batch, H, tokens, dh], [batch * H, tokens, dh]; or, where queries, keys and values
 * are packed, one of these with a 3 among its extents.
 */
function headShape(graph: Graph, target: string, isPacked: boolean): HeadShape {
  const shape = graph.constants.entries(target);
  if (shape === null || shape.length < 3) return NO_SHAPE;
  const positive = (entry: number | null) => (entry !== null && entry > 0 ? [entry] : []);
  const [extent = null] = positive(shape[shape.length - 1]);
  const share = extent === null ? graph.constants.lastShare(target) : null;
  if (share !== null) return { counts: [share], extent: null };
  const counts = shape.slice(1, -1).flatMap(positive);
  if (!isPacked) return { counts: shape.length === 4 ? counts : [], extent };
  // A width may be a multiple of 3 as well as of H.
  const three = shape[0] === 3 ? -1 : counts.indexOf(3);
  return { counts: shape.length <= 5 ? counts.filter((_, i) => i !== three) : [], extent };
}

/** Of two shapes, the one nearer to the attention counts: farther back, packed projections have shapes of their own. */
function nearest(known: HeadShape, next: HeadShape): HeadShape {
  return {
    counts: known.counts.length > 0 ? known.counts : next.counts,
    extent: known.extent ?? next.extent,
  };
}

function headCount(width: number, { counts, extent }: HeadShape): number | null {
  if (extent !== null && width % extent === 0 && extent < width) return width / extent;
  const fitting = [...new Set(counts)].filter((count) => width % count === 0);
  return fitting.length === 1 ? fitting[0] : null;
}

/** What factors come to, given dh; null when one cannot be told. */
export function product(graph: Graph, factors: readonly Factor[], headExtent: number): number | null {
  let total = 1;
  for (const { value, divides } of factors) {
    const factor =
      typeof value === 'string' ? graph.constants.scalar(value, headExtent) : (value ?? headExtent ** -0.5);
    if (factor === null) return null;
    total = divides ? total / factor : total * factor;
  }
  return total;
}

/** The fused operators: com.microsoft.MultiHeadAttention, Attention and QAttention, and Attention of ONNX operator set 23. */
function fusedCore(graph: Graph, linears: Linears, node: OnnxNode): Core | string {
  const { inputs, attributes } = node;
  const heads = attributes.get('num_heads')?.i ?? attributes.get('q_num_heads')?.i ?? null;
  const own: Factor = { value: attributes.get('scale')?.f || null, divides: false };
  const shape: HeadShape = { counts: heads === null ? [] : [heads], extent: null };
  const isApart = node.op === 'MultiHeadAttention' || node.op === 'PackedMultiHeadAttention';
  if (node.domain !== '' && !isApart) {
    const quantized = node.op === 'QAttention';
    const sizes = attributes.get('qkv_hidden_sizes')?.ints;
    const weight = graph.tensor(inputs[1]);
    const bias = inputs[2] ? graph.tensor(inputs[2]) : null;
    if (weight?.dims.length !== 2 || sizes?.some((size) => size !== sizes[0]))
      return `${describeNode(node)} has no constant packed weight of equal parts`;
    const [q, k, v] = [0, 1, 2].map((index): Operand => {
      const part = { index, count: 3 };
      const packed: Matrix = { tensor: weight, order: 'in-out', part };
      const own = { weight: quantized ? null : packed, bias: bias && { tensor: bias, part } };
      return {
        projection: { ...own, alpha: 1, beta: 1, quantized, op: node.op, layer: { of: node, part } },
        input: quantized ? unquantized(graph, inputs[0]) : inputs[0],
        factors: [],
        heads: shape,
        rotary: attributes.get('do_rotary')?.i === 1,
      };
    });
    return { q, k, v, factors: [own], heads, context: node.outputs[0] };
  }
  const operands = operandsBehind(graph, linears, inputs);
  if (typeof operands === 'string') return operands;
  const { q, k, v } = operands;
  const tensor = isApart && inputs[3] ? graph.tensor(inputs[3]) : null;
  const biased = (operand: Operand, index: number): Operand =>
    tensor === null
      ? operand
      : { ...operand, projection: { ...operand.projection, bias: { tensor, part: { index, count: 3 } } } };
  return {
    q: biased(q, 0),
    k: biased(k, 1),
    v: biased(v, 2),
    factors: [own, ...q.factors, ...k.factors],
    heads,
    context: node.outputs[0],
  };
}

/** The first linear layer that a value goes through, past operators that only move elements, take the one sequence of a batch or quantise. */
function linearAhead(graph: Graph, linears: Linears, value: string): Linear | null {
  const passed = new Set([...MOVES, 'DynamicQuantizeLinear', 'QuantizeLinear']);
  const node = ahead(
    graph,
    value,
    (user) => linears.at(user) !== undefined,
    (user) => passed.has(user.op) || takesFirst(graph, user),
  );
  return node === null ? null : (linears.at(node) ?? null);
}
