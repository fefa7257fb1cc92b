/** A model taken apart into plain lists, so that tests can write it again in the forms that other exporters use. */
import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';
import type { Attribute } from '../../src/onnx/format/messages.js';
import { type OnnxModel, readModel } from '../../src/onnx/format/model.js';
import { DataType } from '../../src/onnx/format/proto.js';
import { newNode, type WritableTensor, writeModel, writeValue } from '../../src/onnx/format/write.js';

export interface Node {
  op: string;
  domain?: string;
  name?: string;
  inputs: string[];
  outputs: string[];
  attributes: Record<string, Attribute>;
}

export interface Value {
  name: string;
  type: number;
  dims: readonly (number | string)[] | null;
}

export class Editable {
  nodes: Node[] = [];
  tensors = new Map<string, WritableTensor>();
  inputs: Value[] = [];
  outputs: string[] = [];
  opset = 17;
  private count = 0;

  /** Reads a model with all its weights. */
  static async from(bytes: Uint8Array): Promise<Editable> {
    const model: OnnxModel = readModel(bytes);
    const graph = new Editable();
    graph.nodes = model.nodes.map(({ op, domain, inputs, outputs, attributes }) => ({
      op,
      domain,
      inputs: [...inputs],
      outputs: [...outputs],
      attributes: Object.fromEntries(attributes),
    }));
    for (const [name, { type, dims, data }] of model.initializers) {
      if (!('bytes' in data)) throw new Error('not in memory');
      graph.tensors.set(name, { name, type, dims, data });
    }
    graph.inputs = model.inputs.map(({ name, type, dims }) => ({ name, type, dims }));
    graph.outputs = model.outputs.map((output) => output.name);
    graph.opset = model.opset;
    return graph;
  }

  fresh(what = 'new'): string {
    return `${what}_${this.count++}`;
  }

  /** Adds a node in front of the node at `index` (default: at the end); returns its output. */
  add(
    op: string,
    inputs: string[],
    attributes: Record<string, Attribute> = {},
    options: Partial<Node> & { at?: number } = {},
  ): string {
    const { at = this.nodes.length, outputs = [this.fresh(op)], domain } = options;
    this.nodes.splice(at, 0, { op, domain, inputs, outputs, attributes });
    return outputs[0];
  }

  /** Adds an initialiser of float32 values. */
  floats(values: ArrayLike<number>, dims: number[]): string {
    return this.tensor('floats', DataType.float, dims, Float32Array.from(values));
  }

  /** Adds an initialiser of 8-bit values. */
  octets(values: Uint8Array, dims: number[]): string {
    return this.tensor('octets', DataType.uint8, dims, values);
  }

  /** Adds an initialiser of int64 values. */
  integers(values: number[], dims = [values.length]): string {
    return this.tensor('integers', DataType.int64, dims, BigInt64Array.from(values, BigInt));
  }

  private tensor(what: string, type: number, dims: number[], { buffer }: { buffer: ArrayBufferLike }): string {
    const name = this.fresh(what);
    this.tensors.set(name, { name, type, dims, data: { bytes: new Uint8Array(buffer) } });
    return name;
  }

  /** The float32 values of an initialiser. */
  values(name: string): Float32Array {
    const { data } = this.tensors.get(name)!;
    if (!('bytes' in data)) throw new Error('not in memory');
    return new Float32Array(data.bytes.slice().buffer);
  }

  producer(value: string): Node | undefined {
    return this.nodes.find((node) => node.outputs.includes(value));
  }

  /** Lets everything that reads one value read another, except the nodes in `except`. */
  redirect(from: string, to: string, except: Node[] = []): void {
    for (const node of this.nodes)
      if (!except.includes(node)) node.inputs = node.inputs.map((input) => (input === from ? to : input));
    this.outputs = this.outputs.map((output) => (output === from ? to : output));
  }

  /** Gives every value another name. */
  rename(name: (value: string) => string): void {
    for (const node of this.nodes) {
      node.inputs = node.inputs.map(name);
      node.outputs = node.outputs.map(name);
    }
    this.tensors = new Map([...this.tensors].map(([key, tensor]) => [name(key), { ...tensor, name: name(key) }]));
    this.inputs = this.inputs.map((input) => ({ ...input, name: name(input.name) }));
    this.outputs = this.outputs.map(name);
  }

  /** Replaces a node by others that write the same value. */
  replace(node: Node, build: (at: () => number) => string): void {
    const output = node.outputs[0];
    const at = () => this.nodes.indexOf(node);
    const result = build(at);
    this.producer(result)!.outputs[0] = output;
    this.nodes.splice(at(), 1);
  }

  /** Takes out what no output depends on, as every optimiser does. */
  prune(): void {
    const nodes = new Set<Node>();
    const open = [...this.outputs];
    const producers = new Map(this.nodes.flatMap((node) => node.outputs.map((output) => [output, node])));
    for (let at = open.pop(); at !== undefined; at = open.pop()) {
      const node = at === '' ? undefined : producers.get(at);
      if (node === undefined || nodes.has(node)) continue;
      nodes.add(node);
      open.push(...node.inputs);
    }
    this.nodes = this.nodes.filter((node) => nodes.has(node));
    const read = new Set(this.nodes.flatMap((node) => node.inputs));
    this.tensors = new Map([...this.tensors].filter(([name]) => read.has(name)));
  }

  /** The bytes of the model. */
  bytes(): Uint8Array {
    return writeModel({
      header: [
        new BinaryWriter().tag(1, WireType.Varint).int64(8).finish(),
        opset('', this.opset),
        opset('com.microsoft', 1),
      ],
      nodes: this.nodes.map((node) => named(node)),
      initializers: [...this.tensors.values()],
      inputs: this.inputs.map((input) =>
        input.dims === null ? writeValue(input.name, input.type) : typedValue(input),
      ),
      outputs: this.outputs.map((output) => writeValue(output)),
    });
  }
}

/** A node with its own name, which the package itself never writes. */
function named(node: Node): { bytes: Uint8Array } {
  const { bytes } = newNode(node);
  if (node.name === undefined) return { bytes };
  return { bytes: new BinaryWriter().raw(bytes).tag(3, WireType.LengthDelimited).string(node.name).finish() };
}

function opset(domain: string, version: number): Uint8Array {
  const w = new BinaryWriter().tag(8, WireType.LengthDelimited).fork();
  w.tag(1, WireType.LengthDelimited).string(domain).tag(2, WireType.Varint).int64(version);
  return w.join().finish();
}

/** A ValueInfoProto with all extents. */
export function typedValue({ name, type, dims }: Value): Uint8Array {
  const w = new BinaryWriter().tag(1, WireType.LengthDelimited).string(name);
  w.tag(2, WireType.LengthDelimited).fork().tag(1, WireType.LengthDelimited).fork();
  w.tag(1, WireType.Varint).int64(type).tag(2, WireType.LengthDelimited).fork();
  for (const dim of dims ?? []) {
    w.tag(1, WireType.LengthDelimited).fork();
    if (typeof dim === 'number') w.tag(1, WireType.Varint).int64(dim);
    else w.tag(2, WireType.LengthDelimited).string(dim);
    w.join();
  }
  return w.join().join().join().finish();
}
