import type { OnnxNode } from '../format/messages.js';
import { MOVES, PASS } from './constants.js';
import type { Graph } from './graph.js';
import type { Linear, Linears } from './linear.js';
import type { LayerNorm, Norms } from './norm.js';
import { throughFactor } from './softmax.js';

/** Operators that pick rows, or take images apart. */
const ROWS = new Set(['Slice', 'Gather', 'GatherND', 'GatherElements', 'Split', 'SplitToSequence', 'SequenceAt']);

/** Operators that put together what was taken apart. */
const JOINS = new Set(['Concat', 'SequenceConstruct', 'ConcatFromSequence']);

/** A value as it was before rows were picked, and the operators in between, the last one first. */
export interface Picked {
  readonly value: string;
  readonly picks: readonly OnnxNode[];
}

/** Walks back past operators that pick rows or change the shape, and leave each row as it is. */
export function beforePicks(graph: Graph, value: string): Picked {
  const picks: OnnxNode[] = [];
  let at = value;
  for (let node = graph.producer(at); node !== undefined; node = graph.producer(at)) {
    const isRejoined = JOINS.has(node.op) && comesApart(graph, node);
    if (!isRejoined && !ROWS.has(node.op) && !MOVES.has(node.op) && !PASS.has(node.op)) break;
    if (node.op === 'Expand') break;
    picks.push(node);
    at = node.inputs[0];
  }
  return { value: at, picks };
}

/** Whether a node joins the images of a batch that one node took apart, or joins nothing at all. */
function comesApart(graph: Graph, { inputs }: OnnxNode): boolean {
  const from = inputs.map((input) => {
    const node = graph.producer(graph.unmoved(input));
    return node?.op === 'SequenceAt' ? graph.producer(node.inputs[0]) : node;
  });
  return inputs.length === 1 || from.every((node) => node?.op.startsWith('Split') && node === from[0]);
}

/** Operators that work on each element by itself: what an activation function, or a division by a length, is made of. */
const ELEMENTWISE = new Set([
  ...['Add', 'Sub', 'Mul', 'Div', 'Pow', 'Sqrt', 'Erf', 'Tanh', 'Sigmoid', 'Relu', 'LeakyRelu', 'HardSigmoid'],
  ...['HardSwish', 'Clip', 'Exp', 'Gelu', 'FastGelu', 'QuickGelu', 'BiasGelu', 'Swish', 'Max', 'Abs'],
  ...PASS,
]);

/** The one linear layer that a value is an elementwise function of, in whatever shape, or null. */
export function linearBehind(graph: Graph, linears: Linears, value: string): Linear | null {
  let found: Linear | null = null;
  const seen = new Set<string>();
  const open = [value];
  for (let at = open.pop(); at !== undefined; at = open.pop()) {
    // A shape says nothing about elements.
    if (at === '' || seen.has(at) || !dependsOnData(graph, at)) continue;
    seen.add(at);
    const linear = linears.behind(at);
    const node = graph.producer(at);
    if (linear !== undefined) {
      if (found !== null && found !== linear) return null;
      found = linear;
    } else if (node !== undefined && MOVES.has(node.op)) open.push(node.inputs[0]);
    else if (node !== undefined && ELEMENTWISE.has(node.op)) for (const input of node.inputs) open.push(input);
    else return null;
  }
  return found;
}

function dependsOnData(graph: Graph, value: string): boolean {
  const { floats, integers } = graph.sourcesOf(value);
  return floats || integers;
}

/** The read-out of a CLIP tower: a projection of a norm of one picked row, the norm before or after the pick. */
export interface ReadOut {
  readonly norm: LayerNorm;
  readonly projection: Linear;
  /** Operators that pick the row, the last one first. */
  readonly picks: readonly OnnxNode[];
  /** Whether the norm sees all rows (and the row is picked from its result). */
  readonly normFirst: boolean;
}

/** Looks for a read-out behind a graph output. It may be divided by its length, which changes no cosine. */
export function findReadOut(graph: Graph, linears: Linears, norms: Norms, output: string): ReadOut | OnnxNode | null {
  const projection = linearBehind(graph, linears, beforeLength(graph, output)) ?? null;
  if (projection === null) return null;
  const picked = beforePicks(graph, projection.input);
  const norm = norms.behind(picked.value);
  if (norm === undefined) return null;
  const before = norm.input === null ? { picks: [] } : beforePicks(graph, norm.input);
  const picks = [...picked.picks, ...before.picks];
  const isPick = ({ op }: OnnxNode) => op.startsWith('Gather') || op === 'Slice' || op === 'Split';
  if (!picks.some(isPick)) return null;
  const end = beforeLength(graph, output);
  if (linears.behind(end) === undefined) return graph.producer(end) ?? null;
  return { norm, projection, picks, normFirst: picked.picks.some(isPick) };
}

/** A value as it was before it was divided by its length or by a number, or its one row was picked. */
function beforeLength(graph: Graph, value: string): string {
  for (let at = value; ; ) {
    at = beforePicks(graph, at).value;
    const node = graph.producer(at);
    if (node === undefined) return at;
    const scaled = throughFactor(graph, node);
    const [x, y] = node.inputs;
    if (scaled !== null && isPositive(graph, scaled.factor.value)) at = scaled.next;
    else if (node.op === 'LpNormalization') at = x;
    else if ((node.op === 'Div' || node.op === 'Mul') && isLengthOf(graph, y, x)) at = x;
    else if (node.op === 'Mul' && isLengthOf(graph, x, y)) at = y;
    else return at;
  }
}

function isPositive(graph: Graph, factor: string | number | null): boolean {
  return typeof factor === 'string' && (graph.constants.scalar(factor, 1) ?? 0) > 0;
}

/** What a length, or its reciprocal, is made of. */
const LENGTH = new Set([
  ...[
    'ReduceL2',
    'ReduceSum',
    'ReduceSumSquare',
    'Sqrt',
    'Reciprocal',
    'Pow',
    'Mul',
    'Abs',
    'Max',
    'Clip',
    'Add',
    'Div',
  ],
  ...MOVES,
  ...PASS,
]);

/** Whether a value is the length of another: every way back to that one goes through a sum. */
function isLengthOf(graph: Graph, value: string, of: string): boolean {
  const vector = graph.origin(of);
  const open = [{ at: value, isSum: false }];
  const seen = new Set<string>();
  for (let path = open.pop(); path !== undefined; path = open.pop()) {
    const at = graph.origin(path.at);
    const { isSum } = path;
    if (at === vector && !isSum) return false;
    if (at === vector || at === '' || seen.has(`${at} ${isSum}`) || !dependsOnData(graph, at)) continue;
    seen.add(`${at} ${isSum}`);
    const node = graph.producer(at);
    if (node === undefined || !LENGTH.has(node.op)) return false;
    const inputs = MOVES.has(node.op) ? node.inputs.slice(0, 1) : node.inputs;
    for (const input of inputs) open.push({ at: input, isSum: isSum || node.op.startsWith('Reduce') });
  }
  return seen.size > 0;
}
