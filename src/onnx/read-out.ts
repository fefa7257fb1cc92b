import type { Graph } from './graph.js';
import type { Linear, Linears } from './linear.js';
import type { OnnxNode } from './messages.js';
import type { Norm, Norms } from './norm.js';

/** Operators that pick rows or change the shape, and leave each row as it is. */
const PICKS = new Set([
  'Slice',
  'Gather',
  'GatherND',
  'GatherElements',
  'Squeeze',
  'Unsqueeze',
  'Reshape',
  'Flatten',
  'Identity',
  'Cast',
  'Dropout',
]);

/** A value as it was before rows were picked, and the operators in between, the last one first. */
export interface Picked {
  readonly value: string;
  readonly picks: readonly OnnxNode[];
}

/** Walks back past operators that pick rows. */
export function beforePicks(graph: Graph, value: string): Picked {
  const picks: OnnxNode[] = [];
  let at = value;
  for (let node = graph.producer(at); node !== undefined && PICKS.has(node.op); node = graph.producer(at)) {
    picks.push(node);
    at = node.inputs[0];
  }
  return { value: at, picks };
}

/** Operators that work on each element by itself: what an activation function, or a division by a length, is made of. */
const ELEMENTWISE = new Set([
  ...[
    'Add',
    'Sub',
    'Mul',
    'Div',
    'Pow',
    'Sqrt',
    'Erf',
    'Tanh',
    'Sigmoid',
    'Relu',
    'LeakyRelu',
    'HardSigmoid',
    'HardSwish',
    'Clip',
    'Exp',
  ],
  ...[
    'Gelu',
    'FastGelu',
    'QuickGelu',
    'BiasGelu',
    'Swish',
    'Identity',
    'Cast',
    'Dropout',
    'ReduceL2',
    'ReduceSum',
    'Max',
    'Abs',
    'Expand',
  ],
]);

/** The one linear layer that a value is an elementwise function of, or null. */
export function linearBehind(graph: Graph, linears: Linears, value: string): Linear | null {
  let found: Linear | null = null;
  const seen = new Set<string>();
  const open = [value];
  for (let at = open.pop(); at !== undefined; at = open.pop()) {
    if (at === '' || seen.has(at) || graph.isConstant(at)) continue;
    seen.add(at);
    const linear = linears.behind(at);
    const node = graph.producer(at);
    if (linear !== undefined) {
      if (found !== null && found !== linear) return null;
      found = linear;
    } else if (node !== undefined && ELEMENTWISE.has(node.op)) open.push(...node.inputs);
    // A shape says nothing about elements; any other operator makes it no elementwise function.
    else if (node?.op !== 'Shape') return null;
  }
  return found;
}

/** The read-out of a CLIP tower: a projection of a norm of one picked row, the norm before or after the pick. */
export interface ReadOut {
  readonly norm: Norm;
  readonly projection: Linear;
  /** Operators that pick the row, the last one first. */
  readonly picks: readonly OnnxNode[];
  /** Whether the norm sees all rows (and the row is picked from its result). */
  readonly normFirst: boolean;
}

/** Looks for a read-out that ends in one of the graph's outputs. */
export function findReadOut(graph: Graph, linears: Linears, norms: Norms, output: string): ReadOut | null {
  const projection = linearBehind(graph, linears, beforePicks(graph, output).value);
  if (projection === null) return null;
  const picked = beforePicks(graph, projection.input);
  const norm = norms.behind(picked.value);
  if (norm === undefined) return null;
  const before = norm.input === null ? { picks: [] } : beforePicks(graph, norm.input);
  const picks = [...picked.picks, ...before.picks];
  const isPick = ({ op }: OnnxNode) => op.startsWith('Gather') || op === 'Slice';
  return picks.some(isPick) ? { norm, projection, picks, normFirst: picked.picks.some(isPick) } : null;
}
