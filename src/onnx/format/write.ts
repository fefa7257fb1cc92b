import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';
import { mismatch } from '../../errors.js';
import type { Attribute, OnnxNode } from './messages.js';
import {
  AttributeField,
  AttributeType,
  EntryField,
  GraphField,
  ModelField,
  NodeField,
  TensorField,
  TensorTypeField,
  TypeField,
  ValueField,
} from './proto.js';
import { fields, memorySource } from './wire.js';

/** A tensor as it is written: its bytes, or where in an external data file they lie. */
export interface WritableTensor {
  readonly name: string;
  readonly type: number;
  readonly dims: readonly number[];
  readonly data:
    | { readonly bytes: Uint8Array }
    | { readonly location: string; readonly offset: number; readonly length: number };
}

/** A node to make; attributes as {@link Attribute} has them. */
export interface NewNode {
  readonly op: string;
  readonly domain?: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes?: Readonly<Record<string, Attribute>>;
}

/** A graph to write; nodes in the order of the computation. */
export interface WritableGraph {
  readonly header: readonly Uint8Array[];
  readonly nodes: readonly Pick<GraphNode, 'bytes'>[];
  readonly initializers: readonly WritableTensor[];
  readonly inputs: readonly Uint8Array[];
  readonly outputs: readonly Uint8Array[];
  /** What is known of values between. */
  readonly values?: readonly Uint8Array[];
}

const writer = () => new BinaryWriter();
const message = (w: BinaryWriter, field: number, bytes: Uint8Array) =>
  w.tag(field, WireType.LengthDelimited).bytes(bytes);
const text = (w: BinaryWriter, field: number, value: string) => w.tag(field, WireType.LengthDelimited).string(value);
/** Numbers that a file states may be any: element types of its inputs, of its casts. */
function integer(w: BinaryWriter, field: number, value: number): BinaryWriter {
  if (!Number.isSafeInteger(value))
    throw mismatch('ERR_FILE', 'an integer of the model', `about ${value}`, 'one of at most 53 bits');
  return w.tag(field, WireType.Varint).int64(value);
}

/** The bytes of a ModelProto. */
export function writeModel({ header, nodes, initializers, inputs, outputs, values = [] }: WritableGraph): Uint8Array {
  const graph = writer();
  for (const { bytes } of nodes) message(graph, GraphField.node, bytes);
  text(graph, GraphField.name, 'desap');
  for (const tensor of initializers) message(graph, GraphField.initializer, writeTensor(tensor));
  for (const input of inputs) message(graph, GraphField.input, input);
  for (const output of outputs) message(graph, GraphField.output, output);
  for (const value of values) message(graph, GraphField.valueInfo, value);
  const model = writer();
  for (const field of header) model.raw(field);
  return message(model, ModelField.graph, graph.finish()).finish();
}

/** A node with its message, as far as writing and sorting need it. */
export type GraphNode = Pick<OnnxNode, 'inputs' | 'outputs' | 'captures' | 'files' | 'bytes'>;

/** Makes a node. */
export function newNode(node: NewNode): GraphNode {
  const { inputs, outputs } = node;
  return { inputs, outputs, captures: [], files: [], bytes: writeNode(node) };
}

function writeNode({ op, domain, inputs, outputs, attributes }: NewNode): Uint8Array {
  const node = writer();
  for (const input of inputs) text(node, NodeField.input, input);
  for (const output of outputs) text(node, NodeField.output, output);
  text(node, NodeField.opType, op);
  for (const [name, attribute] of Object.entries(attributes ?? {}))
    message(node, NodeField.attribute, writeAttribute(name, attribute));
  if (domain) text(node, NodeField.domain, domain);
  return node.finish();
}

function writeAttribute(name: string, { i, f, s, t, ints, g }: Attribute): Uint8Array {
  const attribute = text(writer(), AttributeField.name, name);
  const type = (code: number) => integer(attribute, AttributeField.type, code);
  if (i !== undefined) integer(type(AttributeType.int), AttributeField.i, i);
  if (f !== undefined) type(AttributeType.float).tag(AttributeField.f, WireType.Bit32).float(f);
  if (s !== undefined) text(type(AttributeType.string), AttributeField.s, s);
  if (ints !== undefined) {
    type(AttributeType.ints);
    for (const value of ints) integer(attribute, AttributeField.ints, value);
  }
  if (t !== undefined && 'bytes' in t.data)
    message(type(AttributeType.tensor), AttributeField.t, writeTensor({ ...t, data: t.data }));
  if (g !== undefined) message(type(AttributeType.graph), AttributeField.g, g);
  return attribute.finish();
}

/** A node under other value names, without its own name, which must be unique. Everything else stays as it was. */
export function renamed(node: OnnxNode, rename: (value: string) => string): GraphNode {
  const source = memorySource(node.name, node.bytes);
  const copy = writer();
  let input = 0;
  let output = 0;
  for (const field of fields(source)) {
    if (field.number === NodeField.input) text(copy, NodeField.input, rename(node.inputs[input++]));
    else if (field.number === NodeField.output) text(copy, NodeField.output, rename(node.outputs[output++]));
    else if (field.number !== NodeField.name) copy.raw(node.bytes.subarray(field.tag, field.end));
  }
  const { captures, files } = node;
  return { inputs: node.inputs.map(rename), outputs: node.outputs.map(rename), captures, files, bytes: copy.finish() };
}

function writeTensor({ name, type, dims, data }: WritableTensor): Uint8Array {
  const tensor = writer();
  for (const extent of dims) integer(tensor, TensorField.dims, extent);
  integer(tensor, TensorField.dataType, type);
  text(tensor, TensorField.name, name);
  if ('bytes' in data) return message(tensor, TensorField.rawData, data.bytes).finish();
  for (const [key, value] of Object.entries(data)) {
    const entry = text(text(writer(), EntryField.key, key), EntryField.value, String(value));
    message(tensor, TensorField.externalData, entry.finish());
  }
  return integer(tensor, TensorField.dataLocation, 1).finish();
}

/** The bytes of a ValueInfoProto without a shape: every extent stays free. A graph output needs no type either. */
export function writeValue(name: string, type?: number): Uint8Array {
  const value = text(writer(), ValueField.name, name);
  if (type === undefined) return value.finish();
  const tensor = integer(writer(), TensorTypeField.elementType, type).finish();
  return message(value, ValueField.type, message(writer(), TypeField.tensor, tensor).finish()).finish();
}
