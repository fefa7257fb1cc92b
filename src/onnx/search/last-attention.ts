import { DesapError } from '../../errors.js';
import type { OnnxNode } from '../format/messages.js';
import { ancestors, describeNode, Graph } from './graph.js';
import { bodyHas, unrolled } from './loop.js';
import { hasPixels } from './rotary.js';
import { scoresBehind, softmaxAt } from './softmax.js';

/**
 * The order of an operand's axes: B sequences, H heads, L tokens, D numbers a head, W = H D. Axes in front of these are of
 * extent 1, and B may be left out.
 */
export type Axes = 'BHLD' | 'BHDL' | 'LBHD' | 'DBHL' | 'BLW';

/** The queries that go into an attention. */
export interface Queries {
  readonly value: string;
  readonly axes: Axes;
  /** Heads, where the axes do not tell. */
  readonly heads: number | null;
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

function lastCandidate(graph: Graph, value: string): OnnxNode | null {
  const attends = (node: OnnxNode) => node.op === 'Softmax' || /Attention$/.test(node.op);
  const depth = (node: OnnxNode) => graph.depth(node.outputs[0]);
  return ancestors(graph, value)
    .filter((node) => attends(node) || (node.captures.length > 0 && bodyHas(graph.model.name, node, attends)))
    .reduce<OnnxNode | null>((last, one) => (last !== null && depth(last) >= depth(one) ? last : one), null);
}

/** Whether the image has no part in the queries of an attention: a head that pools all rows to one. */
function isPooling(graph: Graph, node: OnnxNode): boolean {
  if (node.op !== 'Softmax') return /Attention$/.test(node.op) && !hasPixels(graph, node.inputs[0]);
  const scores = scoresBehind(graph, node.inputs[0]);
  return scores !== null && !hasPixels(graph, scores.node.inputs[0]);
}

/**
 * Reads the queries of an attention of values that other operators make: two products around a Softmax, `MultiHeadAttention` and
 * `PackedMultiHeadAttention` of com.microsoft, or `Attention` of ONNX.
 *
 * @throws DesapError `ERR_GRAPH` with the operator in the way
 */
export function queriesOf({ graph, node }: LastAttention): Queries {
  const read = node.domain === '' || node.domain === 'com.microsoft' ? READERS[`${node.domain}:${node.op}`] : undefined;
  return (read ?? refuse)(graph, node);
}

type Read = (graph: Graph, node: OnnxNode) => Queries;

function refuse({ model }: Graph, node: OnnxNode, why = ''): never {
  const known = 'Softmax between two products, MultiHeadAttention, PackedMultiHeadAttention, or ONNX Attention';
  throw new DesapError(
    'ERR_GRAPH',
    `${model.name}: looked for the attention of the last block (${known}, also in a Loop); found ${describeNode(node)}${why}`,
  );
}

const READERS: Readonly<Record<string, Read | undefined>> = {
  ':Softmax': (graph, node) => {
    const softmax = softmaxAt(graph, node);
    const scores = softmax && scoresBehind(graph, softmax.input);
    if (!scores) return refuse(graph, node, ' behind no product of queries and keys');
    const { inputs, attributes } = scores.node;
    const isOn = (name: string) => attributes.get(name)?.i === 1;
    return { value: inputs[0], axes: axesOf(isOn('transA'), isOn('transBatchA')), heads: null };
  },
  ':Attention': (graph, node) => {
    const { inputs, attributes } = node;
    if (attributes.get('is_causal')?.i === 1) refuse(graph, node, ', a causal one');
    if (inputs[4] || inputs[5]) refuse(graph, node, ' with a cache');
    const heads = attributes.get('q_num_heads')?.i ?? null;
    if ((attributes.get('kv_num_heads')?.i ?? heads) !== heads) refuse(graph, node, ' with shared keys');
    return { value: inputs[0], axes: heads === null ? 'BHLD' : 'BLW', heads };
  },
  'com.microsoft:MultiHeadAttention': (graph, node) => {
    if (node.inputs[6] || node.inputs[7]) refuse(graph, node, ' with a cache');
    return apart(graph, node);
  },
  'com.microsoft:PackedMultiHeadAttention': apart,
};

/** Queries, keys and values [B, L, W] of com.microsoft's operators. */
function apart(graph: Graph, node: OnnxNode): Queries {
  const { inputs, attributes } = node;
  if (!inputs[1] || !inputs[2]) refuse(graph, node, ' with packed operands');
  const heads = attributes.get('num_heads')?.i ?? refuse(graph, node, ' without num_heads');
  return { value: inputs[0], axes: 'BLW', heads };
}

/** An operand of a product as it is stored: turned, or with the batch axes (heads) behind the first one. */
function axesOf(isTransposed: boolean, isBatchBehind: boolean): Axes {
  if (isBatchBehind) return isTransposed ? 'DBHL' : 'LBHD';
  return isTransposed ? 'BHDL' : 'BHLD';
}
