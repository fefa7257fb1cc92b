import type { Graph } from './graph.js';
import { type Linear, type Linears, type Matrix, type Part, unquantized, type Vector } from './linear.js';
import type { OnnxNode } from './messages.js';
import type { Norm, Norms } from './norm.js';
import {
  ahead,
  contextAhead,
  type Factor,
  isAttentionSoftmax,
  SHAPERS,
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
}

/** One pre-norm self-attention layer: `x + out(attention(q, k, v of norm(x)))`. */
export interface Block {
  /** The hidden states that enter it. */
  readonly input: string;
  readonly norm: Norm;
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
}

/** What a walk from an attention operand back to its projection met. */
interface Operand {
  readonly projection: Projection;
  /** The value that is projected. */
  readonly input: string;
  readonly factors: readonly Factor[];
  readonly heads: HeadShape;
}

/** What target shapes say about the heads: their count, or the extent of one. */
interface HeadShape {
  readonly count: number | null;
  readonly extent: number | null;
}

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
    const block = readBlock(graph, linears, norms, softmax ?? node);
    if (typeof block === 'string') refused.push(block);
    else blocks.push(block);
  }
  blocks.sort((a, b) => a.depth - b.depth);
  return { blocks, cores, refused };
}

/** The fused operators that {@link fusedCore} reads. */
const FUSED = new Set(['Attention', 'MultiHeadAttention', 'QAttention']);

function readBlock(graph: Graph, linears: Linears, norms: Norms, at: Softmax | OnnxNode): Block | string {
  if ('op' in at && !FUSED.has(at.op))
    return `the operator ${at.op} is not one that is read: take an export that is not optimised for a GPU`;
  const core = 'op' in at ? fusedCore(graph, linears, at) : softmaxCore(graph, linears, at);
  if (core === null) return 'its queries, keys or values are no projections of the layer input';
  const { q, k, v } = core;
  const shared = graph.origin(q.input);
  if (shared !== graph.origin(k.input) || shared !== graph.origin(v.input))
    return 'its queries, keys and values project different values';
  const norm = norms.behind(shared);
  if (norm === undefined) return 'what it projects is not the result of a layer norm';
  // Its residual connection reads the same value, so even a fused norm hands it out.
  const { input } = norm;
  if (input === null) return 'what its layer norm normalises is used nowhere else';
  const out = linearAhead(graph, linears, core.context);
  if (out === null) return 'no linear layer follows it';
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
  };
}

function softmaxCore(graph: Graph, linears: Linears, { input, output }: Softmax): Core | null {
  const scores = scoresBehind(graph, input);
  const context = contextAhead(graph, output);
  if (scores === null || context === null) return null;
  const [q, k, v] = [scores.node.inputs[0], scores.node.inputs[1], context.inputs[1]].map((value) =>
    operandBehind(graph, linears, value),
  );
  if (q === null || k === null || v === null) return null;
  const factors = [...scores.factors, ...q.factors, ...k.factors];
  return { q, k, v, factors, heads: null, context: context.outputs[0] };
}

/** From an operand of an attention product back to the linear layer that makes it. */
function operandBehind(graph: Graph, linears: Linears, value: string): Operand | null {
  const factors: Factor[] = [];
  let heads: HeadShape = { count: null, extent: null };
  let part: Part | null = null;
  for (let at = value; ; ) {
    const linear = linears.behind(at);
    if (linear !== undefined) return { projection: projection(linear, part), input: linear.input, factors, heads };
    const source = graph.origin(at);
    const node = graph.producer(source);
    if (node === undefined) return null;
    const scaled = throughFactor(graph, node);
    if (scaled !== null) {
      factors.push(scaled.factor);
      at = scaled.next;
      continue;
    }
    if (node.op === 'Reshape') heads = mergeHeads(heads, graph.constants.entries(node.inputs[1]));
    else if (node.op === 'Split') part = { index: node.outputs.indexOf(source), count: node.outputs.length };
    else if (node.op === 'Gather') part = packedPart(graph, node);
    else if (!SHAPERS.has(node.op)) return null;
    if (node.op === 'Gather' && part === null) return null;
    at = node.inputs[0];
  }
}

/** The pick of queries, keys or values (0, 1, 2) from one packed projection. */
function packedPart(graph: Graph, gather: OnnxNode): Part | null {
  const indices = graph.constants.numbers(gather.inputs[1]);
  return indices?.length === 1 && indices[0] >= 0 && indices[0] < 3 ? { index: indices[0], count: 3 } : null;
}

function projection(linear: Linear, part: Part | null): Projection {
  const { weight, bias, alpha, beta, quantized, op } = linear;
  return { weight: weight && { ...weight, part }, bias: bias && { ...bias, part }, alpha, beta, quantized, op };
}

/** What a target shape adds: [batch, tokens, H, dh] or [batch * H, tokens, dh]. */
function mergeHeads(known: HeadShape, shape: readonly (number | null)[] | null): HeadShape {
  if (shape === null || shape.length < 3) return known;
  const positive = (entry: number | null) => (entry !== null && entry > 0 ? entry : null);
  const count = shape.length === 4 ? positive(shape[2]) : null;
  const extent = positive(shape[shape.length - 1]);
  // The first one met stands nearest to the attention: behind it, packed projections have shapes of their own.
  return { count: known.count ?? count, extent: known.extent ?? extent };
}

function headCount(width: number, { count, extent }: HeadShape): number | null {
  if (extent !== null && width % extent === 0) return width / extent;
  return count !== null && width % count === 0 ? count : null;
}

function product(graph: Graph, factors: readonly Factor[], headExtent: number): number | null {
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
function fusedCore(graph: Graph, linears: Linears, node: OnnxNode): Core | null {
  const { inputs, attributes } = node;
  const heads = attributes.get('num_heads')?.i ?? attributes.get('q_num_heads')?.i ?? null;
  const own: Factor = { value: attributes.get('scale')?.f || null, divides: false };
  const shape: HeadShape = { count: heads, extent: null };
  if (node.domain !== '' && node.op !== 'MultiHeadAttention') {
    const quantized = node.op === 'QAttention';
    const sizes = attributes.get('qkv_hidden_sizes')?.ints;
    const weight = graph.tensor(inputs[1]);
    const bias = inputs[2] ? graph.tensor(inputs[2]) : null;
    if (weight?.dims.length !== 2 || sizes?.some((size) => size !== sizes[0])) return null;
    const [q, k, v] = [0, 1, 2].map((index): Operand => {
      const part = { index, count: 3 };
      const packed: Matrix = { tensor: weight, layout: 'in-out', part };
      const own = { weight: quantized ? null : packed, bias: bias && { tensor: bias, part } };
      return {
        projection: { ...own, alpha: 1, beta: 1, quantized, op: node.op },
        input: quantized ? unquantized(graph, inputs[0]) : inputs[0],
        factors: [],
        heads: shape,
      };
    });
    return { q, k, v, factors: [own], heads, context: node.outputs[0] };
  }
  const [q, k, v] = inputs.slice(0, 3).map((value) => (value ? operandBehind(graph, linears, value) : null));
  if (!q || !k || !v) return null;
  const tensor = node.op === 'MultiHeadAttention' && inputs[3] ? graph.tensor(inputs[3]) : null;
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

/** The first linear layer that a value goes through, past operators that only move elements or quantise them. */
function linearAhead(graph: Graph, linears: Linears, value: string): Linear | null {
  const passed = new Set([...SHAPERS, 'DynamicQuantizeLinear', 'QuantizeLinear']);
  const node = ahead(
    graph,
    value,
    (user) => linears.at(user) !== undefined,
    ({ op }) => passed.has(op),
  );
  return node === null ? null : (linears.at(node) ?? null);
}
