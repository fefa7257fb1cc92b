import type { Attribute } from './messages.js';
import { DataType } from './proto.js';
import { type GraphNode, newNode } from './write.js';

/** Makes nodes one after the other. Each call adds one and returns the value that it writes. */
export class Builder {
  readonly nodes: GraphNode[] = [];

  /** @param opset version of ONNX's own operators that the nodes are for */
  constructor(private readonly opset: number) {}

  /** @param as the name of the value, where it is to have a certain one */
  add(
    op: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, Attribute>> = {},
    as = `desap.value/${this.nodes.length}`,
  ): string {
    this.nodes.push(newNode({ op, inputs, outputs: [as], attributes }));
    return as;
  }

  /** Adds nodes that were made elsewhere. */
  include(nodes: readonly GraphNode[]): void {
    for (const node of nodes) this.nodes.push(node);
  }

  /** Gives a value another name. */
  name(value: string, as: string): string {
    return this.add('Identity', [value], {}, as);
  }

  integers(...values: number[]): string {
    const bytes = new Uint8Array(BigInt64Array.from(values, BigInt).buffer);
    const tensor = { name: '', type: DataType.int64, dims: [values.length], data: { bytes } };
    return this.add('Constant', [], { value: { t: tensor } });
  }

  floats(...values: number[]): string {
    const bytes = new Uint8Array(Float32Array.from(values).buffer);
    const tensor = { name: '', type: DataType.float, dims: [values.length], data: { bytes } };
    return this.add('Constant', [], { value: { t: tensor } });
  }

  float(value: string, as?: string): string {
    return this.cast(value, DataType.float, as);
  }

  cast(value: string, to: number, as?: string): string {
    return this.add('Cast', [value], { to: { i: to } }, as);
  }

  /** Extents of a value, by their axes (negative ones count from the end): int64 [axes]. */
  extents(value: string, ...axes: number[]): string {
    return this.add('Gather', [this.add('Shape', [value]), this.integers(...axes)], { axis: { i: 0 } });
  }

  concat(...values: string[]): string {
    return this.add('Concat', values, { axis: { i: 0 } });
  }

  /** A value in another shape: one value that holds it, or several that hold its parts. */
  reshape(value: string, ...shape: string[]): string {
    return this.add('Reshape', [value, shape.length === 1 ? shape[0] : this.concat(...shape)]);
  }

  transpose(value: string, ...perm: number[]): string {
    return this.add('Transpose', [value], { perm: { ints: perm } });
  }

  sum(first: string, ...others: string[]): string {
    return others.reduce((sum, value) => this.add('Add', [sum, value]), first);
  }

  /** The mean over one axis. */
  mean(value: string, axis: number, keepdims: 0 | 1): string {
    const AXES_ARE_INPUTS = 18;
    return this.opset < AXES_ARE_INPUTS
      ? this.add('ReduceMean', [value], { axes: { ints: [axis] }, keepdims: { i: keepdims } })
      : this.add('ReduceMean', [value, this.integers(axis)], { keepdims: { i: keepdims } });
  }
}
