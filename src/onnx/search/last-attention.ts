import { DesapError } from '../../errors.js';
import type { OnnxNode } from '../format/messages.js';
import { ancestors, describeNode, Graph } from './graph.js';
import { bodyHas, unrolled } from './loop.js';
import { CARRIES, hasPixels } from './rotary.js';

/**
 * The order of an operand's axes: B sequences, H heads, L tokens, D numbers a head, W = H D. Axes in front of these are of
 * extent 1, and B may be left out.
 */
export type Axes = 'BHLD' | 'BHDL' | 'LBHD' | 'DBHL' | 'BLW';

/** A value that goes into an attention. */
export interface Operand {
  readonly value: string;
  readonly axes: Axes;
}

/** An attention, whichever operators it is written in. */
export interface Attention {
  readonly node: OnnxNode;
  readonly q: Operand;
  readonly k: Operand;
  readonly v: Operand;
  /** Its result, laid out like the queries, but with heads in front of tokens where these are apart. */
  readonly context: string;
  /** Heads, where the axes do not tell. */
  readonly heads: number | null;
  /** Whether tokens see a part of the sequence only: by a mask, by given lengths, or as the loop around slices it. */
  readonly isMasked: boolean;
}

/** A graph, which may be another one than the given, and the operator of its last attention in front of a value. */
export interface LastAttention {
  readonly graph: Graph;
  readonly node: OnnxNode;
}

/**
 * Finds the operator of the last attention in front of a value: a Softmax, or a fused operator. A Loop over segments around one is
 * written out.
 *
 * @throws DesapError `ERR_GRAPH` when there is none
 */
export function lastAttention(graph: Graph, value: string): LastAttention {
  const node = lastCandidate(graph, value);
  if (node === null)
    throw new DesapError(
      'ERR_GRAPH',
      `${graph.model.name}: looked for the attention of the last block; found no Softmax and no fused one`,
    );
  return node.op === 'Loop' ? lastAttention(new Graph(unrolled(graph, node)), value) : { graph, node };
}

/** How deep in the graph the last attention in front of a value lies; 0 without one, and where it is one of a learnt probe. */
export function attentionDepth(graph: Graph, value: string): number {
  const node = lastCandidate(graph, value);
  return node === null || isPooling(graph, node) ? 0 : graph.depth(node.outputs[0]);
}

/** Whether the image has no part in the queries of an attention: a head that pools all rows to one. */
function isPooling(graph: Graph, node: OnnxNode): boolean {
  if (node.op !== 'Softmax') return /Attention$/.test(node.op) && !hasPixels(graph, node.inputs[0]);
  const product = scoresBehind(graph, node.inputs[0]).node;
  return (product?.op === 'MatMul' || product?.op === 'FusedMatMul') && !hasPixels(graph, product.inputs[0]);
}

function lastCandidate(graph: Graph, value: string): OnnxNode | null {
  const attends = (node: OnnxNode) => node.op === 'Softmax' || /Attention$/.test(node.op);
  const depth = (node: OnnxNode) => graph.depth(node.outputs[0]);
  return ancestors(graph, value)
    .filter((node) => attends(node) || (node.captures.length > 0 && bodyHas(graph.model.name, node, attends)))
    .reduce<OnnxNode | null>((last, one) => (last !== null && depth(last) >= depth(one) ? last : one), null);
}

/**
 * Reads an attention of values that other operators make: two products around a Softmax, `MultiHeadAttention` and
 * `PackedMultiHeadAttention` of com.microsoft, or `Attention` of ONNX.
 *
 * @throws DesapError `ERR_GRAPH` with the operator in the way
 */
export function attentionAt({ graph, node }: LastAttention): Attention {
  const read = node.domain === '' || node.domain === 'com.microsoft' ? READERS[`${node.domain}:${node.op}`] : undefined;
  return (read ?? refuse)(graph, node);
}

type Read = (graph: Graph, node: OnnxNode) => Attention;

function refuse({ model }: Graph, node: OnnxNode, why = ''): never {
  const known = 'Softmax between two products, MultiHeadAttention, PackedMultiHeadAttention, or ONNX Attention';
  throw new DesapError(
    'ERR_GRAPH',
    `${model.name}: looked for the attention of the last block (${known}, also in a Loop); found ${describeNode(node)}${why}`,
  );
}

const READERS: Readonly<Record<string, Read | undefined>> = {
  ':Softmax': softmaxAttention,
  ':Attention': (graph, node) => {
    const { inputs, attributes } = node;
    if (attributes.get('is_causal')?.i === 1) refuse(graph, node, ', a causal one');
    if (inputs[4] || inputs[5]) refuse(graph, node, ' with a cache');
    const heads = attributes.get('q_num_heads')?.i ?? null;
    if ((attributes.get('kv_num_heads')?.i ?? heads) !== heads) refuse(graph, node, ' with shared keys');
    return fused(node, heads, heads === null ? 'BHLD' : 'BLW', Boolean(inputs[3] || inputs[6]));
  },
  'com.microsoft:MultiHeadAttention': (graph, node) => {
    const { inputs } = node;
    if (!inputs[1] || !inputs[2]) refuse(graph, node, ' with packed operands');
    if (inputs[6] || inputs[7]) refuse(graph, node, ' with a cache');
    return fused(node, headCount(graph, node), 'BLW', Boolean(inputs[4] || inputs[5]));
  },
  'com.microsoft:PackedMultiHeadAttention': (graph, node) => {
    if (!node.inputs[1] || !node.inputs[2]) refuse(graph, node, ' with packed operands');
    return fused(node, headCount(graph, node), 'BLW', true);
  },
};

function headCount(graph: Graph, node: OnnxNode): number {
  return node.attributes.get('num_heads')?.i ?? refuse(graph, node, ' without num_heads');
}

function fused(node: OnnxNode, heads: number | null, axes: Axes, isMasked: boolean): Attention {
  const [q, k, v] = node.inputs.map((value) => ({ value, axes }));
  return { node, q, k, v, context: node.outputs[0], heads, isMasked };
}

/** Scores, Softmax, and the product with the values, as MatMul or FusedMatMul. */
function softmaxAttention(graph: Graph, node: OnnxNode): Attention {
  const scores = scoresBehind(graph, node.inputs[0]);
  if (isProduct(graph, scores.node) === false) refuse(graph, scores.node ?? node, ' in front of a Softmax');
  const context = contextAhead(graph, node);
  if (context === null) refuse(graph, node, ' without a product with values behind it');
  const { inputs, attributes } = scores.node as OnnxNode;
  const left = (name: string) => attributes.get(name)?.i === 1;
  return {
    node,
    q: { value: inputs[0], axes: axesOf(left('transA'), left('transBatchA')) },
    k: { value: inputs[1], axes: axesOf(!left('transB'), left('transBatchB')) },
    v: {
      value: context.inputs[1],
      axes: axesOf(context.attributes.get('transB')?.i === 1, context.attributes.get('transBatchB')?.i === 1),
    },
    context: context.outputs[0],
    heads: null,
    isMasked: scores.isMasked,
  };
}

/** An operand of a product as it is stored: turned, or with the batch axes (heads) behind the first one. */
function axesOf(isTransposed: boolean, isBatchBehind: boolean): Axes {
  if (isBatchBehind) return isTransposed ? 'DBHL' : 'LBHD';
  return isTransposed ? 'BHDL' : 'BHLD';
}

/** A product of two values that the image has a part in. */
function isProduct(graph: Graph, node: OnnxNode | undefined): boolean {
  const isOperator = node?.op === 'MatMul' || node?.op === 'FusedMatMul';
  return isOperator && node.inputs.every((input) => hasPixels(graph, input));
}

/**
 * From the input of a Softmax back to the first node that is no scale, mask or move, and whether a mask was passed. Where the image has a
 * part in a mask too, as it may drop tiles of zeros, the product is on one of the sides.
 */
function scoresBehind(graph: Graph, value: string): { node: OnnxNode | undefined; isMasked: boolean } {
  const node = graph.producer(value);
  const own = node?.inputs.filter((input) => hasPixels(graph, input)) ?? [];
  const isPassed = node !== undefined && (SCALES_OR_MASKS.has(node.op) || CARRIES.has(node.op));
  if (!isPassed || own.length === 0) return { node, isMasked: false };
  const sides = own.map((input) => scoresBehind(graph, input));
  const found = sides.length === 1 ? sides[0] : sides.find((side) => isProduct(graph, side.node));
  const masks = node.op === 'Add' || node.op === 'Sub' || node.op === 'Where';
  return found === undefined ? { node, isMasked: false } : { ...found, isMasked: found.isMasked || masks };
}

const SCALES_OR_MASKS = new Set(['Mul', 'Div', 'Add', 'Sub', 'Where']);

/** The product that the weights of a Softmax are the first factor of, past what some exports put in for rows without keys. */
function contextAhead(graph: Graph, node: OnnxNode): OnnxNode | null {
  for (const { node: user, as } of graph.users(node.outputs[0])) {
    if (isProduct(graph, user) && user.inputs[0] === as) return user;
    const found = CARRIES.has(user.op) || user.op === 'Where' ? contextAhead(graph, user) : null;
    if (found !== null) return found;
  }
  return null;
}
