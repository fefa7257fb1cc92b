import { DesapError } from '../../errors.js';
import { type OnnxNode, readNode } from '../format/messages.js';
import { type OnnxModel, readSubgraph } from '../format/model.js';
import type { StoredTensor } from '../format/stored-tensor.js';
import { newNode, renamed } from '../format/write.js';
import type { Graph } from './graph.js';

/** Of a node's subgraph: whether some node in it is of a kind. */
export function bodyHas(name: string, node: OnnxNode, isKind: (node: OnnxNode) => boolean): boolean {
  return [...node.attributes.values()].some(
    ({ g }) =>
      g !== undefined && readSubgraph(name, g).nodes.some((inner) => isKind(inner) || bodyHas(name, inner, isKind)),
  );
}

/**
 * A model with one Loop written out as if it ran once, over the whole sequence. Exporters put the attention of packed sequences in such
 * a loop: each step slices a segment out of queries, keys and values, attends, and appends the result. Without the slices
 * and the appending, the body is the same attention over everything; which rows may see each other is then up to the reader.
 *
 * @throws DesapError `ERR_GRAPH` when the loop does something else
 */
export function unrolled(graph: Graph, loop: OnnxNode): OnnxModel {
  const { model } = graph;
  const refuse = (node: OnnxNode) =>
    new DesapError(
      'ERR_GRAPH',
      `${model.name}: looked for a Loop that takes slices of a sequence and appends its results; found ${node.op} '${node.name || node.outputs[0]}' in it`,
    );
  const bytes = loop.attributes.get('body')?.g;
  if (loop.op !== 'Loop' || bytes === undefined) throw refuse(loop);
  const body = readSubgraph(model.name, bytes);
  const [, , ...carried] = body.inputs.map((input) => input.name);

  /** What a value is called outside: that of which it is a slice, or a name of its own. */
  const names = new Map<string, string>();
  for (const name of body.initializers.keys()) names.set(name, `desap.loop/${name}`);
  const outside = (name: string) => names.get(name) ?? name;
  /** Values that differ from step to step and mean nothing without the loop: counters, bounds, and what was appended so far. */
  const stepped = new Set(body.inputs.map((input) => input.name));
  const appended = new Set(carried);
  const pixels = new Set<string>();
  const hasPixels = (name: string) => pixels.has(name) || graph.sourcesOf(name).floats;
  const kept: OnnxNode[] = [];
  for (const node of body.nodes) {
    const [first, ...others] = node.inputs;
    const [output] = node.outputs;
    const whole = wholeOf(graph, node, { stepped, appended, outside, hasPixels });
    if (whole !== null) {
      names.set(output, whole);
    } else if (!node.inputs.some((input) => stepped.has(input))) {
      if (node.captures.length > 0) throw refuse(node);
      for (const value of node.outputs) if (value !== '') names.set(value, `desap.loop/${value}`);
      if (first !== undefined && hasPixels(outside(first)))
        for (const value of node.outputs) pixels.add(outside(value));
      kept.push(readNode(model.name, renamed(node, outside).bytes));
    } else {
      for (const value of node.outputs) stepped.add(value);
      if (node.op === 'Identity' && appended.has(first) && others.length === 0) appended.add(output);
    }
  }

  const results = new Map<string, string>();
  for (const [i, { name }] of body.outputs.slice(1, 1 + carried.length).entries())
    if (!stepped.has(name)) results.set(loop.outputs[i], outside(name));
  const nodes = model.nodes.flatMap((node): OnnxNode[] => {
    if (node === loop) return [];
    if (node.op !== 'ConcatFromSequence' || !results.has(node.inputs[0])) return [node];
    return [identity(model.name, results.get(node.inputs[0]) as string, node.outputs[0])];
  });
  for (const [output, value] of results) kept.push(identity(model.name, value, output));
  const written = new Set(kept.flatMap((node) => node.outputs));
  if (loop.outputs.some((output) => graph.consumers(output).length > 0 && !written.has(output))) throw refuse(loop);

  const initializers = new Map<string, StoredTensor>(model.initializers);
  for (const [name, tensor] of body.initializers) initializers.set(outside(name), { ...tensor, name: outside(name) });
  return { ...model, nodes: [...nodes, ...kept], initializers };
}

interface Step {
  readonly stepped: ReadonlySet<string>;
  readonly appended: ReadonlySet<string>;
  readonly outside: (name: string) => string;
  /** Whether a value outside holds something of the image: bounds are sliced too. */
  readonly hasPixels: (outside: string) => boolean;
}

/** For a node that takes a step's segment or appends a step's result: the value outside that it is a part of; otherwise null. */
function wholeOf(
  graph: Graph,
  { op, inputs }: OnnxNode,
  { stepped, appended, outside, hasPixels }: Step,
): string | null {
  const [first, ...others] = inputs;
  const takes = !stepped.has(first) && others.some((input) => stepped.has(input));
  if (op === 'Slice' && takes && hasPixels(outside(first))) return outside(first);
  if (op === 'SequenceAt' && takes) {
    const split = graph.producer(outside(first));
    return split?.op === 'SplitToSequence' ? split.inputs[0] : null;
  }
  const added = inputs.filter((input) => !stepped.has(input));
  const appends = op === 'Concat' || op === 'SequenceInsert';
  return appends && inputs.some((input) => appended.has(input)) && added.length === 1 ? outside(added[0]) : null;
}

function identity(name: string, from: string, to: string): OnnxNode {
  return readNode(name, newNode({ op: 'Identity', inputs: [from], outputs: [to] }).bytes);
}
