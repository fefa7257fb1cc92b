import type { OnnxNode } from '../format/messages.js';
import { MOVES } from './constants.js';
import type { Graph } from './graph.js';

/** A scalar that multiplies or divides; null stands for 1/sqrt(dh), the default of the fused operators. */
export interface Factor {
  readonly value: string | number | null;
  readonly divides: boolean;
}

/** The values that go into a softmax and come out of it. */
export interface Softmax {
  readonly input: string;
  readonly output: string;
}

/** The softmax that ends with a node: a Softmax, or `exp(x - max(x)) / sum(exp(x - max(x)))` written out. */
export function softmaxAt(graph: Graph, node: OnnxNode): Softmax | null {
  const [output] = node.outputs;
  if (node.op === 'Softmax') return { input: node.inputs[0], output };
  if (node.op !== 'Div') return null;
  const [exp, sum] = node.inputs.map((value) => graph.producer(graph.origin(value)));
  if (exp?.op !== 'Exp' || sum?.op !== 'ReduceSum') return null;
  const difference = graph.producer(graph.origin(exp.inputs[0]));
  return difference?.op === 'Sub' ? { input: difference.inputs[0], output } : null;
}

/** Whether a softmax stands between two products of computed values. */
export function isAttentionSoftmax(graph: Graph, { input, output }: Softmax): boolean {
  return scoresBehind(graph, input) !== null && contextAhead(graph, output) !== null;
}

const isProduct = ({ op }: OnnxNode) => op === 'MatMul' || op === 'FusedMatMul';

/** From the input of a Softmax back to the product of queries and keys, past scale and mask. */
export function scoresBehind(graph: Graph, value: string): { node: OnnxNode; factors: readonly Factor[] } | null {
  const open: { at: string; factors: readonly Factor[] }[] = [{ at: value, factors: [] }];
  const seen = new Set<OnnxNode>();
  for (let path = open.pop(); path !== undefined; path = open.pop()) {
    const node = graph.producer(graph.origin(path.at));
    if (node === undefined || seen.has(node)) continue;
    seen.add(node);
    const { factors } = path;
    if (isProduct(node)) {
      if (node.inputs.slice(0, 2).some((input) => graph.isConstant(input))) continue;
      const alpha: Factor = { value: node.attributes.get('alpha')?.f ?? 1, divides: false };
      return { node, factors: [...factors, alpha] };
    }
    const scaled = throughFactor(graph, node);
    if (scaled !== null) open.push({ at: scaled.next, factors: [...factors, scaled.factor] });
    // One side is the mask; the product of queries and keys is on the other.
    else if (node.op === 'Add' || node.op === 'Sub') for (const at of node.inputs) open.push({ at, factors });
    else if (node.op === 'Where') for (const at of node.inputs.slice(1)) open.push({ at, factors });
    else if (MOVES.has(node.op)) open.push({ at: node.inputs[0], factors });
  }
  return null;
}

/** From the result of a Softmax to its product with the values. */
export function contextAhead(graph: Graph, value: string): OnnxNode | null {
  const isContext = (node: OnnxNode, as: string) =>
    isProduct(node) && node.inputs[0] === as && !graph.isConstant(node.inputs[1]);
  return ahead(graph, value, isContext, ({ op }) => MOVES.has(op) || op === 'Where');
}

/** The first node of a wanted kind that a value goes into, past nodes that let it through. */
export function ahead(
  graph: Graph,
  value: string,
  isWanted: (node: OnnxNode, as: string) => boolean,
  isPassed: (node: OnnxNode) => boolean,
): OnnxNode | null {
  const open = [value];
  const seen = new Set<OnnxNode>();
  // The list grows while it is walked.
  for (const at of open)
    for (const { node, as } of graph.users(at)) {
      if (isWanted(node, as)) return node;
      if (!isPassed(node) || seen.has(node)) continue;
      seen.add(node);
      open.push(node.outputs[0]);
    }
  return null;
}

/** A Mul or Div by a scalar: the value that is scaled and the factor. */
export function throughFactor(graph: Graph, node: OnnxNode): { next: string; factor: Factor } | null {
  if (node.op !== 'Mul' && node.op !== 'Div') return null;
  const [a, b] = node.inputs;
  // Whether it is a scalar does not depend on the extent that it is computed from.
  const isScalar = (value: string) => graph.constants.scalar(value, 1) !== null;
  if (isScalar(b)) return { next: a, factor: { value: b, divides: node.op === 'Div' } };
  return node.op === 'Mul' && isScalar(a) ? { next: b, factor: { value: a, divides: false } } : null;
}
