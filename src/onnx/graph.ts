import { DesapError } from '../errors.js';
import type { OnnxNode } from './messages.js';
import type { OnnxModel } from './model.js';
import { DataType, isFloat } from './proto.js';
import { elementCount, type StoredTensor, smallValues } from './stored-tensor.js';

/** Nodes whose output is their first input, element for element. */
const PASS = new Set(['Identity', 'Cast', 'Dropout']);

/** What a value is computed from: pixels (floating-point graph inputs) or token ids (integer ones). */
interface Sources {
  readonly floats: boolean;
  readonly integers: boolean;
}

const NOTHING: Sources = { floats: false, integers: false };

/**
 * A graph that can be walked both ways. Value names serve as keys only; nothing is concluded from what they say.
 */
export class Graph {
  /** The nodes, each after all that it reads from. */
  readonly order: readonly OnnxNode[];
  private readonly producers = new Map<string, OnnxNode>();
  private readonly readers = new Map<string, OnnxNode[]>();
  private readonly depths = new Map<OnnxNode, number>();
  private readonly sources = new Map<string, Sources>();
  private readonly constants = new Set<string>();

  /** @throws DesapError `ERR_GRAPH` when the nodes form a cycle or two nodes write the same value */
  constructor(readonly model: OnnxModel) {
    for (const node of model.nodes) {
      for (const output of node.outputs) {
        if (output === '') continue;
        if (this.producers.has(output))
          throw new DesapError('ERR_GRAPH', `${model.name}: got two nodes that write "${output}", wanted one`);
        this.producers.set(output, node);
      }
      for (const input of new Set(node.inputs)) {
        const readers = this.readers.get(input);
        if (readers === undefined) this.readers.set(input, [node]);
        else readers.push(node);
      }
    }
    this.order = sorted(model.name, model.nodes, (value) => this.producers.get(value));
    for (const name of model.initializers.keys()) this.constants.add(name);
    for (const { name, type } of model.inputs)
      this.sources.set(name, { floats: isFloat(type), integers: !isFloat(type) });
    for (const node of this.order) this.describe(node);
  }

  private describe(node: OnnxNode): void {
    const reads = [...node.inputs, ...node.captures].filter((value) => value !== '');
    const from = reads.map((value) => this.sources.get(value) ?? NOTHING);
    const sources = { floats: from.some((s) => s.floats), integers: from.some((s) => s.integers) };
    // Random numbers read nothing and are not constant; no exporter of an encoder writes them.
    const isConstant =
      node.op === 'Constant' || (reads.length > 0 && reads.every((value) => this.constants.has(value)));
    for (const output of node.outputs) {
      this.sources.set(output, sources);
      if (isConstant) this.constants.add(output);
    }
    this.depths.set(node, 1 + Math.max(0, ...reads.map((value) => this.depth(value))));
  }

  /** The node that writes a value; undefined for graph inputs and initialisers. */
  producer(value: string): OnnxNode | undefined {
    return this.producers.get(value);
  }

  /** The nodes that read a value. */
  consumers(value: string): readonly OnnxNode[] {
    return this.readers.get(value) ?? [];
  }

  /** Whether no graph input has a part in a value. */
  isConstant(value: string): boolean {
    return this.constants.has(value);
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
    let at = value;
    for (let node = this.producer(at); node !== undefined && PASS.has(node.op); node = this.producer(at))
      at = node.inputs[0];
    return at;
  }

  /** The nodes that read a value, also behind Identity, Cast and Dropout, each with the name under which it reads it. */
  users(value: string): { node: OnnxNode; as: string }[] {
    return this.consumers(value).flatMap((node) =>
      PASS.has(node.op) ? this.users(node.outputs[0]) : [{ node, as: value }],
    );
  }

  /** The tensor behind a constant value that nothing computes with, or null. */
  tensor(value: string): StoredTensor | null {
    const at = this.origin(value);
    const node = this.producer(at);
    if (node === undefined) return this.model.initializers.get(at) ?? null;
    return node.op === 'Constant' ? (node.attributes.get('value')?.t ?? null) : null;
  }

  /** The numbers of a small constant, also behind Unsqueeze, Squeeze, Reshape and a Concat of constants; or null. */
  numbers(value: string): number[] | null {
    const entries = this.entries(value);
    return entries?.every((entry) => entry !== null) ? (entries as number[]) : null;
  }

  /** Like {@link numbers}, with null for every entry that is computed at run time: the form of an exported target shape. */
  entries(value: string): (number | null)[] | null {
    const at = this.origin(value);
    const node = this.producer(at);
    const tensor = this.tensor(at);
    if (tensor !== null) return smallValues(tensor);
    if (node === undefined) return null;
    switch (node.op) {
      case 'Constant': {
        const { i, f, ints } =
          node.attributes.get('value_int') ??
          node.attributes.get('value_float') ??
          node.attributes.get('value_ints') ??
          {};
        return ints !== undefined ? [...ints] : i !== undefined ? [i] : f !== undefined ? [f] : null;
      }
      case 'Unsqueeze':
      case 'Squeeze':
      case 'Reshape':
        // A scalar made into a vector: one entry, known or not.
        return this.entries(node.inputs[0]) ?? (node.op === 'Unsqueeze' ? [null] : null);
      case 'Concat': {
        const parts = node.inputs.map((input) => this.entries(input) ?? [null]);
        return parts.flat();
      }
      default:
        return null;
    }
  }

  /**
   * The value of a scalar that is constant, or that depends on nothing but the last extent of some tensor: the form that
   * exported attention computes its scale in (Shape, Gather or Slice of the last extent, Cast, Sqrt, Div).
   *
   * @param lastExtent what that extent is
   * @returns null for anything else
   */
  scalar(value: string, lastExtent: number): number | null {
    const tensor = this.tensor(value);
    if (tensor !== null && elementCount(tensor) !== 1) return null;
    const known = this.numbers(value);
    if (known !== null) return known.length === 1 ? known[0] : null;
    const node = this.producer(this.origin(value));
    if (node === undefined) return null;
    const operand = (i: number) => this.scalar(node.inputs[i], lastExtent);
    const binary = (compute: (a: number, b: number) => number) => {
      const [a, b] = [operand(0), operand(1)];
      return a === null || b === null ? null : compute(a, b);
    };
    const unary = (compute: (a: number) => number) => {
      const a = operand(0);
      return a === null ? null : compute(a);
    };
    switch (node.op) {
      case 'Gather':
      case 'Slice': {
        const start = this.numbers(node.inputs[1])?.[0];
        const isLast = start === -1 || start === 3;
        return isLast && this.producer(this.origin(node.inputs[0]))?.op === 'Shape' ? lastExtent : null;
      }
      case 'Squeeze':
      case 'Unsqueeze':
      case 'Reshape':
        return operand(0);
      case 'Sqrt':
        return unary(Math.sqrt);
      case 'Reciprocal':
        return unary((a) => 1 / a);
      case 'Mul':
        return binary((a, b) => a * b);
      case 'Div':
        return binary((a, b) => a / b);
      case 'Pow':
        return binary((a, b) => a ** b);
      default:
        return null;
    }
  }

  /** The element type of a value (TensorProto.DataType), from what is recorded and from the operators on the way. */
  elementType(value: string): number {
    const { model } = this;
    for (let at = value; ; ) {
      const recorded =
        model.initializers.get(at)?.type ??
        model.inputs.find((input) => input.name === at)?.type ??
        model.outputs.find((output) => output.name === at)?.type ??
        model.valueTypes.get(at);
      if (recorded) return recorded;
      const node = this.producer(at);
      if (node === undefined) return DataType.float;
      if (node.op === 'Cast') return node.attributes.get('to')?.i ?? DataType.float;
      if (node.op === 'Shape' || node.op === 'ArgMax') return DataType.int64;
      if (node.op === 'MatMulInteger') return DataType.int32;
      if (node.op === 'Constant') return this.tensor(at)?.type ?? DataType.float;
      // A quantised weight takes the type of its scale; a condition says nothing about what it selects.
      at = node.inputs[node.op === 'DequantizeLinear' || node.op === 'Where' ? 1 : 0];
    }
  }
}

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

/** The nodes that a value is computed from. */
export function ancestors(graph: Graph, value: string): OnnxNode[] {
  const seen = new Set<OnnxNode>();
  const open = [value];
  for (let at = open.pop(); at !== undefined; at = open.pop()) {
    const node = graph.producer(at);
    if (node === undefined || seen.has(node)) continue;
    seen.add(node);
    open.push(...node.inputs);
  }
  return [...seen];
}
