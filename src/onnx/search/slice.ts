import type { OnnxNode } from '../format/messages.js';
import type { Graph } from './graph.js';

/** What a Slice takes along one axis: from `start` up to `end`, which may be far behind the last element. */
export interface SliceRange {
  readonly axis: number;
  readonly start: number;
  readonly end: number;
  readonly step: number;
}

/** Exporters write "up to the end" as the largest number that some integer type has. */
const END = 2 ** 31 - 1;

/** What a Slice takes; the axes that it leaves whole are left out. Null when the node is no Slice by constant numbers. */
export function slicesOf(graph: Graph, node: OnnxNode): readonly SliceRange[] | null {
  if (node.op !== 'Slice') return null;
  const numbers = (name: string, input: number) =>
    node.attributes.get(name)?.ints ?? (node.inputs[input] ? graph.constants.numbers(node.inputs[input]) : null);
  const [starts, ends] = [numbers('starts', 1), numbers('ends', 2)];
  if (!starts || !ends) return null;
  const axes = numbers('axes', 3) ?? (node.inputs[3] ? null : [...starts.keys()]);
  const steps = numbers('steps', 4) ?? (node.inputs[4] ? null : starts.map(() => 1));
  if (!axes || !steps) return null;
  const ranges = starts.map((start, i) => ({ axis: axes[i], start, end: ends[i], step: steps[i] }));
  return ranges.filter(({ start, end, step }) => !(step === 1 && (start === 0 || start <= -END) && end >= END));
}

/** Whether a node takes the first along axis 0: the one sequence of a batch, as exporters write `[0]`. */
export function takesFirst(graph: Graph, node: OnnxNode): boolean {
  const { op, attributes, inputs } = node;
  if (op === 'Gather') return !attributes.get('axis')?.i && graph.constants.numbers(inputs[1])?.join() === '0';
  const [range, ...others] = slicesOf(graph, node) ?? [];
  return others.length === 0 && range?.axis === 0 && range.start === 0 && range.end === 1 && range.step === 1;
}
