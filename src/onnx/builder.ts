import type { Attribute } from './format/messages.js';
import { DataType } from './format/proto.js';
import { type GraphNode, newNode } from './format/write.js';

/** Puts nodes of the package's own together; each call adds one and returns the value that it writes. */
export class Builder {
  readonly nodes: GraphNode[] = [];

  /** @param opset version of ONNX's own operators that the nodes are for */
  constructor(private readonly opset: number) {}

  add(op: string, inputs: readonly string[], attributes: Readonly<Record<string, Attribute>> = {}): string {
    const output = `desap.value/${this.nodes.length}`;
    this.nodes.push(newNode({ op, inputs, outputs: [output], attributes }));
    return output;
  }

  /** Puts in nodes that were made elsewhere. */
  include(nodes: readonly GraphNode[]): void {
    this.nodes.push(...nodes);
  }

  /** Gives a value a name of its own. */
  name(value: string, as: string): void {
    this.nodes.push(newNode({ op: 'Identity', inputs: [value], outputs: [as] }));
  }

  integers(...values: number[]): string {
    return this.add('Constant', [], { value_ints: { ints: values } });
  }

  float(value: string): string {
    return this.cast(value, DataType.float);
  }

  cast(value: string, to: number): string {
    return this.add('Cast', [value], { to: { i: to } });
  }

  /** Extents of a value, by their axes (negative ones count from the end): int64 [axes]. */
  extents(value: string, ...axes: number[]): string {
    return this.add('Gather', [this.add('Shape', [value]), this.integers(...axes)], { axis: { i: 0 } });
  }

  concat(...values: string[]): string {
    return this.add('Concat', values, { axis: { i: 0 } });
  }

  reshape(value: string, ...shape: string[]): string {
    return this.add('Reshape', [value, shape.length === 1 ? shape[0] : this.concat(...shape)]);
  }

  transpose(value: string, ...perm: number[]): string {
    return this.add('Transpose', [value], { perm: { ints: perm } });
  }

  /** The mean over one axis. */
  mean(value: string, axis: number, keepdims: 0 | 1): string {
    const AXES_ARE_INPUTS = 18;
    return this.opset < AXES_ARE_INPUTS
      ? this.add('ReduceMean', [value], { axes: { ints: [axis] }, keepdims: { i: keepdims } })
      : this.add('ReduceMean', [value, this.integers(axis)], { keepdims: { i: keepdims } });
  }
}
