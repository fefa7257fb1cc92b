import { DesapError } from '../../errors.js';
import type { OnnxNode } from '../format/messages.js';
import type { OnnxModel } from '../format/model.js';
import { DataType, isFloat } from '../format/proto.js';
import type { StoredTensor } from '../format/stored-tensor.js';
import { Constants, MOVES, PASS } from './constants.js';

/** What a value is computed from: pixels (floating-point graph inputs) or token ids (integer ones). */
interface Sources {
  readonly floats: boolean;
  readonly integers: boolean;
}

const NOTHING: Sources = { floats: false, integers: false };

/** Operators whose result depends on the shape of their input only. */
const MEASURES: ReadonlySet<string> = new Set(['Shape', 'Size']);

/**
 * A graph that can be walked both ways. Value names serve as keys only; nothing is concluded from what they say.
 */
export class Graph {
  /** The nodes, each after all that it reads from. */
  readonly order: readonly OnnxNode[];
  private readonly producers = new Map<string, OnnxNode>();
  private readonly readers = new Map<string, OnnxNode[]>();
  /** Axes, target shapes and scales. */
  readonly constants: Constants;
  private readonly depths = new Map<OnnxNode, number>();
  private readonly sources = new Map<string, Sources>();
  /** Where values that are no operator's own come from, by {@link origin} and {@link unmoved}. */
  private readonly origins = new Map<string, string>();
  private readonly moved = new Map<string, string>();
  private readonly fixed = new Set<string>();

  /** @throws DesapError `ERR_GRAPH` when the nodes form a cycle or two nodes write the same value */
  constructor(readonly model: OnnxModel) {
    for (const node of model.nodes) {
      for (const output of node.outputs) {
        if (output === '') continue;
        if (this.producers.has(output))
          throw new DesapError('ERR_GRAPH', `${model.name}: got two nodes that write '${output}', wanted one`);
        this.producers.set(output, node);
      }
      for (const input of new Set(node.inputs)) {
        const readers = this.readers.get(input);
        if (readers === undefined) this.readers.set(input, [node]);
        else readers.push(node);
      }
    }
    this.order = sorted(model.name, model.nodes, (value) => this.producers.get(value));
    for (const name of model.initializers.keys()) this.fixed.add(name);
    for (const { name, type } of model.inputs)
      this.sources.set(name, { floats: isFloat(type), integers: !isFloat(type) });
    for (const node of this.order) this.describe(node);
    this.constants = new Constants(model.initializers.values(), this.order);
  }

  private describe(node: OnnxNode): void {
    const reads = read(node);
    // How many pixels or ids there are says nothing of what they are.
    const from = MEASURES.has(node.op) ? [] : reads.map((value) => this.sources.get(value) ?? NOTHING);
    const sources = { floats: from.some((s) => s.floats), integers: from.some((s) => s.integers) };
    // Random numbers read nothing and are not constant; no exporter of an encoder writes them.
    const isConstant = node.op === 'Constant' || (reads.length > 0 && reads.every((value) => this.fixed.has(value)));
    for (const output of node.outputs) {
      this.sources.set(output, sources);
      if (isConstant) this.fixed.add(output);
    }
    this.depths.set(node, 1 + reads.reduce((most, value) => Math.max(most, this.depth(value)), 0));
    for (const output of node.outputs) this.follow(node, output);
  }

  /** The node that writes a value; undefined for graph inputs and initialisers. */
  producer(value: string): OnnxNode | undefined {
    return this.producers.get(value);
  }

  /** The nodes that read a value. */
  consumers(value: string): readonly OnnxNode[] {
    return this.readers.get(value) ?? [];
  }

  /** Whether a value is an input of the graph. */
  isInput(value: string): boolean {
    return this.model.inputs.some((input) => input.name === value);
  }

  /** Whether no graph input has a part in a value. */
  isConstant(value: string): boolean {
    return this.fixed.has(value);
  }

  /** Whether pixels, or token ids, have a part in a value. */
  sourcesOf(value: string): Sources {
    return this.sources.get(value) ?? NOTHING;
  }

  /** Nodes on the longest way from a graph input to a value. */
  depth(value: string): number {
    const node = this.producers.get(value);
    return node === undefined ? 0 : (this.depths.get(node) ?? 0);
  }

  /** A value as it was before Identity, Cast and Dropout. */
  origin(value: string): string {
    return this.origins.get(value) ?? value;
  }

  /** A value as it was before its elements were only moved, repeated or cast. */
  unmoved(value: string): string {
    const origin = this.origin(value);
    return this.moved.get(origin) ?? origin;
  }

  /** Remembers where a value comes from. Nodes come in their order: what they read is known, so that no walk is walked again. */
  private follow({ op, inputs: [first] }: OnnxNode, output: string): void {
    if (PASS.has(op)) this.origins.set(output, this.origin(first));
    if (MOVES.has(op)) this.moved.set(output, this.unmoved(first));
  }

  /** The nodes that read a value, also behind Identity, Cast and Dropout, each with the name under which it reads it. */
  users(value: string): { node: OnnxNode; as: string }[] {
    const found: { node: OnnxNode; as: string }[] = [];
    const open = [value];
    for (let at = open.pop(); at !== undefined; at = open.pop())
      for (const node of this.consumers(at)) {
        if (PASS.has(node.op)) {
          if (node.inputs[0] === at) open.push(node.outputs[0]);
        } else found.push({ node, as: at });
      }
    return found;
  }

  /** The tensor behind a constant value that nothing computes with, or null. */
  tensor(value: string): StoredTensor | null {
    const at = this.origin(value);
    const node = this.producer(at);
    if (node === undefined) return this.model.initializers.get(at) ?? null;
    return node.op === 'Constant' ? (node.attributes.get('value')?.t ?? null) : null;
  }

  /** The element type of a value (TensorProto.DataType), from what is recorded and from the operators on the way. */
  elementType(value: string): number {
    const { model } = this;
    for (let at = value; ; ) {
      const recorded =
        model.initializers.get(at)?.type ??
        model.inputs.find((input) => input.name === at)?.type ??
        model.outputs.find((output) => output.name === at)?.type ??
        model.values.get(at)?.type;
      if (recorded) return recorded;
      const node = this.producer(at);
      if (node === undefined) return DataType.float;
      if (node.op === 'Cast') return node.attributes.get('to')?.i ?? DataType.float;
      if (COUNTS.has(node.op) || (node.op === 'TopK' && node.outputs[1] === at)) return DataType.int64;
      if (ASKS.has(node.op)) return DataType.bool;
      if (node.op === 'MatMulInteger' || node.op === 'ConvInteger') return DataType.int32;
      if (node.op === 'Constant') return this.tensor(at)?.type ?? typeOfNumbers(node);
      if (node.op === 'ConstantOfShape') return node.attributes.get('value')?.t?.type ?? DataType.float;
      at = node.inputs[TYPED_BY[node.op] ?? 0];
    }
  }
}

/** The type of a constant that is written as plain numbers. */
function typeOfNumbers({ attributes }: OnnxNode): number {
  return attributes.has('value_int') || attributes.has('value_ints') ? DataType.int64 : DataType.float;
}

/** Operators whose result is of type int64, whatever they are given. */
const COUNTS: ReadonlySet<string> = new Set(['Shape', 'Size', 'NonZero', 'ArgMax', 'ArgMin']);

/** Operators whose result is of type bool. */
const ASKS: ReadonlySet<string> = new Set([
  ...['Equal', 'Less', 'LessOrEqual', 'Greater', 'GreaterOrEqual', 'And', 'Or', 'Xor', 'Not', 'IsNaN', 'IsInf'],
]);

/** The input that an operator's result has its type from: scales for quantised values, what is selected for a condition. */
const TYPED_BY: Readonly<Record<string, number>> = {
  DequantizeLinear: 1,
  Where: 1,
  CastLike: 1,
  MatMulIntegerToFloat: 2,
  GatherBlockQuantized: 2,
  QAttention: 3,
};

/** The values that have a part in what a node computes: CastLike takes no more than a type from its second input. */
function read(node: OnnxNode): string[] {
  const inputs = node.op === 'CastLike' ? node.inputs.slice(0, 1) : [...node.inputs, ...node.captures];
  return inputs.filter((value) => value !== '');
}

/** A node in words, for messages: its operator and its name, or what it writes. */
export const describeNode = ({ op, name, outputs }: OnnxNode): string => `${op} '${name || outputs[0]}'`;

/** Nodes in topological order, with all that they read from (depth first, without recursion: graphs are deep). */
export function sorted<N extends Pick<OnnxNode, 'inputs' | 'captures'>>(
  name: string,
  roots: readonly N[],
  producer: (value: string) => N | undefined,
): N[] {
  const order: N[] = [];
  const state = new Map<N, 'open' | 'done'>();
  const stack = [...roots].reverse();
  while (stack.length > 0) {
    const node = stack[stack.length - 1];
    if (state.has(node)) {
      stack.pop();
      if (state.get(node) === 'open') order.push(node);
      state.set(node, 'done');
      continue;
    }
    state.set(node, 'open');
    for (const value of [...node.inputs, ...node.captures]) {
      const before = producer(value);
      if (before === undefined || state.get(before) === 'done') continue;
      if (state.get(before) === 'open')
        throw new DesapError('ERR_GRAPH', `${name}: got nodes that read from each other in a circle, wanted none`);
      stack.push(before);
    }
  }
  return order;
}

/** The nodes that a value is computed from; with `from`, those that another value and constants do not make already. */
export function ancestors(graph: Graph, value: string, from?: string): OnnxNode[] {
  const seen = new Set<OnnxNode>();
  const open = [value];
  for (let at = open.pop(); at !== undefined; at = open.pop()) {
    const node = at === from ? undefined : graph.producer(at);
    if (node === undefined || seen.has(node)) continue;
    seen.add(node);
    for (const input of [...node.inputs, ...node.captures]) open.push(input);
  }
  return [...seen];
}
