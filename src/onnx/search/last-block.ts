import { DesapError } from '../../errors.js';
import type { OnnxNode } from '../format/messages.js';
import { type Block, readBlock } from './attention.js';
import { MOVES } from './constants.js';
import { describeNode, type Graph } from './graph.js';
import { lastAttention, type Queries, queriesOf } from './last-attention.js';
import { Linears } from './linear.js';
import { type Norm, Norms } from './norm.js';
import { hasPixels, type Rotated, rotatedBehind } from './rotary.js';
import { takesFirst } from './slice.js';
import { softmaxAt } from './softmax.js';

/** The last block of an encoder: `h = x + out(attention(norm(x)))`, `y = h + mlp(norm(h))`. */
export interface LastBlock {
  /** The graph of the file; loops around its attention are written out. */
  readonly graph: Graph;
  readonly linears: Linears;
  readonly block: Block<Norm>;
  /** H. */
  readonly heads: number;
  /** How queries are rotated, as keys are, and how they go into the attention; null where they are not. */
  readonly rotation: { readonly q: Rotated; readonly queries: Queries } | null;
  readonly end: BlockEnd;
}

/** The sum that ends a block: y. */
export interface BlockEnd {
  /** An Add, or a fused norm that adds its first two inputs (and a bias) itself. */
  readonly node: OnnxNode;
  /** The value of the sum; null where a fused norm does not hand it out. */
  readonly value: string | null;
  readonly summands: readonly string[];
}

/** Fused norms of `input + skip + bias`: the index of the bias. Output 3 is the sum. */
export const SKIP_NORMS: Readonly<Record<string, number | undefined>> = {
  SkipLayerNormalization: 4,
  SkipSimplifiedLayerNormalization: 3,
};

/**
 * Finds the last block in front of a value by its structure.
 * @throws DesapError `ERR_GRAPH` with what was looked for, and the operator in the way
 */
export function findLastBlock(read: Graph, value: string): LastBlock {
  const found = lastAttention(read, value);
  const { graph, node } = found;
  const { name } = graph.model;
  // An operator that holds the projections itself has no values to look at.
  const isWhole = node.domain !== '' && (node.op === 'Attention' || node.op === 'QAttention');
  const queries = isWhole ? null : queriesOf(found);
  const linears = new Linears(graph);
  const norms = new Norms(graph);
  const block = readBlock(graph, linears, (one) => norms.anyBehind(one), softmaxAt(graph, node) ?? node, [
    'PackedMultiHeadAttention',
  ]);
  if (typeof block === 'string')
    throw new DesapError(
      'ERR_GRAPH',
      `${name}: looked for the last block, a norm and an attention of what it normalises; found ${describeNode(node)}: ${block}`,
    );
  const heads = queries?.heads ?? headCount(block);
  if (heads === null)
    throw new DesapError(
      'ERR_GRAPH',
      `${name}: looked for the head count in the shapes around the last attention (${describeNode(node)}); found none`,
    );
  return {
    graph,
    linears,
    block,
    heads,
    rotation: block.rotary ? rotationOf(graph, linears, node, queries) : null,
    end: endOf(graph, block),
  };
}

/** H, by the shapes around an attention, or by a scale of 1/sqrt(dh); null where neither says it. */
export function headCount(block: Block<Norm>): number | null {
  return block.heads ?? headsOfScale(block);
}

function headsOfScale({ scale, norm }: Block<Norm>): number | null {
  const known = [scale(1), scale(2)];
  const heads = known[0] === null || known[0] !== known[1] ? 0 : norm.weight.dims[0] * known[0] ** 2;
  return heads >= 1 && Math.abs(heads - Math.round(heads)) < 1e-3 ? Math.round(heads) : null;
}

function rotationOf(
  graph: Graph,
  linears: Linears,
  node: OnnxNode,
  queries: Queries | null,
): NonNullable<LastBlock['rotation']> {
  const refuse = (why: string) =>
    new DesapError(
      'ERR_GRAPH',
      `${graph.model.name}: looked for the rotation of queries and keys in front of the last attention; found ${describeNode(node)}, ${why}`,
    );
  if (queries === null) throw refuse('which rotates them itself');
  if (node.op.endsWith('MultiHeadAttention') && node.inputs[3]) throw refuse('with a bias behind the rotation');
  return { q: rotatedBehind(graph, linears, queries.value, 'queries'), queries };
}

/** From the output projection to the sum that ends the block. */
function endOf(graph: Graph, { out, input }: Block<Norm>): BlockEnd {
  const attended = nextSum(graph, out.output, (other) => hasPixels(graph, other));
  const { value, node } = attended.end ?? { value: null, node: null };
  if (value === null || node === null)
    throw new DesapError(
      'ERR_GRAPH',
      `${graph.model.name}: looked for the sum of the last attention and the block's input '${input}'; found ${attended.found}`,
    );
  // A fused norm writes both the sum and its norm.
  const behind = derivedFrom(graph, outputsOf(node));
  const { end, found } = nextSum(graph, value, (other) => behind.has(other));
  if (end !== null) return end;
  throw new DesapError(
    'ERR_GRAPH',
    `${graph.model.name}: looked for the sum that ends the last block, of '${value}' and its feed-forward layers; found ${found}`,
  );
}

/**
 * The first sum of a value and another of some kind, past operators that move it or scale it by a constant.
 * @returns the sum, or the operators that were found in its place
 */
function nextSum(
  graph: Graph,
  from: string,
  isOther: (value: string) => boolean,
): { end: BlockEnd | null; found: string } {
  const open = [from];
  const seen = new Set<string>();
  const found = new Set<string>();
  // The list grows while it is walked.
  for (const at of open) {
    if (seen.has(at)) continue;
    seen.add(at);
    for (const { node, as } of graph.users(at)) {
      const end = sumAt(node);
      const [a, b] = node.inputs;
      if (end !== null && (a === as || b === as) && isOther(a === as ? b : a)) return { end, found: '' };
      const isScaled = node.op === 'Mul' && graph.isConstant(a === as ? b : a);
      if (MOVES.has(node.op) || isScaled || takesFirst(graph, node)) open.push(node.outputs[0]);
      else if (node.op !== 'Shape') found.add(describeNode(node));
    }
  }
  return { end: null, found: [...found].join(', ') || 'nothing behind it' };
}

function sumAt(node: OnnxNode): BlockEnd | null {
  const { op, inputs, outputs } = node;
  if (op === 'Add') return { node, value: outputs[0], summands: inputs };
  const bias = SKIP_NORMS[op];
  if (bias === undefined) return null;
  const summands = [inputs[0], inputs[1], inputs[bias] ?? ''].filter((value) => value !== '');
  return { node, value: outputs[3] || null, summands };
}

/** The values that a node writes. */
export const outputsOf = ({ outputs }: OnnxNode): string[] => outputs.filter((value) => value !== '');

/** Everything that some values have a part in, these among it. */
export function derivedFrom(graph: Graph, values: readonly string[]): ReadonlySet<string> {
  const derived = new Set(values);
  for (const { inputs, captures, outputs } of graph.order)
    if ([...inputs, ...captures].some((value) => derived.has(value)))
      for (const output of outputs) if (output !== '') derived.add(output);
  return derived;
}
