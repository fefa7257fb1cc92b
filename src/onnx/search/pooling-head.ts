import { DesapError } from '../../errors.js';
import type { OnnxNode } from '../format/messages.js';
import { ancestors, describeNode, type Graph } from './graph.js';
import { type Linear, Linears, type Vector } from './linear.js';
import { type LayerNorm, Norms } from './norm.js';
import { type Factor, scoresBehind, softmaxAt } from './softmax.js';

/**
 * SigLIP's pooling head: an attention whose query no pixel has a part in, over the normalised rows h of the encoder, and a residual MLP.
 * `z = out(attention(probe, h))`, `pooled = z + fc2(gelu(fc1(norm(z))))`.
 */
export interface PoolingHead {
  readonly graph: Graph;
  readonly linears: Linears;
  /** The pooled rows, an output of the file. */
  readonly output: string;
  /** The norm behind the encoder; its result is h. */
  readonly postNorm: LayerNorm;
  /** The operands of the attention's products. */
  readonly query: string;
  readonly keys: string;
  readonly values: string;
  /** What products of the query with keys are multiplied by, besides what is in the operands. */
  readonly factors: readonly Factor[];
  /** H, where an operator says it. */
  readonly heads: number | null;
  readonly out: Linear;
  readonly norm: LayerNorm;
  readonly fc1: Linear;
  /** A bias that an operator behind fc1 adds. */
  readonly laterBias: Vector | null;
  readonly fc2: Linear;
}

/**
 * Finds the pooling head at the end of a vision tower.
 * @throws DesapError `ERR_GRAPH` with what was looked for, and the operator in the way
 */
export function findPoolingHead(graph: Graph): PoolingHead {
  const linears = new Linears(graph);
  const norms = new Norms(graph);
  const reasons: string[] = [];
  for (const { name } of graph.model.outputs) {
    const found = headBehind(graph, linears, norms, name);
    if (typeof found !== 'string') return found;
    reasons.push(`behind '${name}' ${found}`);
  }
  throw new DesapError(
    'ERR_GRAPH',
    `${graph.model.name}: looked for SigLIP's pooling head, a probe's attention with a residual MLP at the end; found ${reasons.join(', ')}`,
  );
}

/** The head whose result a value is, or what was found in its place. */
function headBehind(graph: Graph, linears: Linears, norms: Norms, output: string): PoolingHead | string {
  const sum = unpicked(graph, output);
  if (sum?.op !== 'Add') return sum === undefined ? 'no operator' : describeNode(sum);
  for (const [z, behind] of [sum.inputs, [...sum.inputs].reverse()]) {
    const fc2 = linears.behind(graph.unmoved(behind));
    const out = linears.behind(graph.unmoved(z));
    if (fc2 === undefined || out === undefined) continue;
    const mlp = mlpOf(graph, linears, norms, fc2);
    if (typeof mlp === 'string') return mlp;
    const { input } = mlp.norm;
    if (input === null || graph.unmoved(input) !== graph.unmoved(z)) return 'a norm of another value than the sum has';
    const attention = attentionBehind(graph, out.input);
    if (typeof attention === 'string') return attention;
    const { query, keys, values } = attention;
    if (graph.sourcesOf(query).floats) return 'an attention whose queries depend on the pixels';
    const [postNorm, same] = [keys, values].map((value) => normBehind(graph, norms, value));
    if (postNorm === null || postNorm !== same) return 'an attention that is not over the rows of one norm';
    return { graph, linears, output, postNorm, ...attention, out, ...mlp, fc2 };
  }
  return `${describeNode(sum)}, which is no sum of two linear layers`;
}

/** The node behind a value, past what picks or moves rows. */
function unpicked(graph: Graph, value: string): OnnxNode | undefined {
  let node = graph.producer(graph.unmoved(value));
  while (node?.op === 'Gather' || node?.op === 'Slice') node = graph.producer(graph.unmoved(node.inputs[0]));
  return node;
}

/** Operators of GELU that add a bias first. */
const BIASED = new Set(['FastGelu', 'BiasGelu']);

function mlpOf(
  graph: Graph,
  linears: Linears,
  norms: Norms,
  fc2: Linear,
): Pick<PoolingHead, 'norm' | 'fc1' | 'laterBias'> | string {
  const between = ancestors(graph, fc2.input);
  const firsts = between.flatMap((node) => linears.at(node) ?? []);
  // The nearest layer in front: the one that no other layer stands behind.
  const fc1 = firsts.sort((a, b) => graph.depth(b.output) - graph.depth(a.output))[0];
  if (fc1 === undefined) return 'no layer in front of the last one';
  const norm = norms.behind(graph.unmoved(fc1.input));
  if (norm === undefined) {
    const node = graph.producer(graph.unmoved(fc1.input));
    return `no layer norm in front of the last two layers${node ? ` (it comes from ${describeNode(node)})` : ''}`;
  }
  const gelu = graph.users(fc1.output).find(({ node }) => BIASED.has(node.op))?.node;
  const tensor = gelu?.inputs[1] ? graph.tensor(gelu.inputs[1]) : null;
  return { norm, fc1, laterBias: tensor && { tensor, part: null } };
}

type Core = Pick<PoolingHead, 'query' | 'keys' | 'values' | 'factors' | 'heads'>;

/** The attention whose result a value is. */
function attentionBehind(graph: Graph, value: string): Core | string {
  const node = graph.producer(graph.unmoved(value));
  if (node === undefined) return 'no attention in front of the output projection';
  if (node.op === 'MultiHeadAttention' || (node.op === 'Attention' && node.domain === '')) {
    const [query, keys, values] = node.inputs;
    const heads = node.attributes.get('num_heads')?.i ?? node.attributes.get('q_num_heads')?.i ?? null;
    const factors = [{ value: node.attributes.get('scale')?.f || null, divides: false }];
    return { query, keys, values, factors, heads };
  }
  const [weights, values] = node.inputs;
  const end = graph.producer(graph.unmoved(weights ?? ''));
  const softmax = end && softmaxAt(graph, end);
  const scores = softmax && scoresBehind(graph, softmax.input);
  if (!scores) return `${describeNode(node)} in front of the output projection, which is no attention`;
  const [query, keys] = scores.node.inputs;
  return { query, keys, values, factors: scores.factors, heads: null };
}

/** The nearest norm that a value is computed from. */
function normBehind(graph: Graph, norms: Norms, value: string): LayerNorm | null {
  for (let at = value; ; ) {
    const norm = norms.behind(at);
    if (norm !== undefined) return norm;
    const node = graph.producer(graph.origin(at));
    const next = node?.inputs.find((input) => graph.sourcesOf(input).floats);
    if (next === undefined) return null;
    at = next;
  }
}
