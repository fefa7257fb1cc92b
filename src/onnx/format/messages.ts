import { DesapError } from '../../errors.js';
import {
  AttributeField,
  DimField,
  GraphField,
  NodeField,
  ShapeField,
  SparseField,
  TensorTypeField,
  TypeField,
  ValueField,
} from './proto.js';
import { readTensor, type StoredTensor } from './stored-tensor.js';
import { type ByteSource, type Field, fields, floats, integers, memorySource, payload, text } from './wire.js';

/** An attribute of a node; the fields that its type does not have are absent. */
export interface Attribute {
  readonly i?: number;
  readonly f?: number;
  readonly s?: string;
  readonly t?: StoredTensor;
  readonly ints?: readonly number[];
  /** The bytes of a GraphProto: the body of a Loop. */
  readonly g?: Uint8Array;
}

/** A NodeProto. */
export interface OnnxNode {
  readonly op: string;
  /** '' for the operators of ONNX itself. */
  readonly domain: string;
  readonly name: string;
  /** Value names; '' stands for an optional input that is left out. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: ReadonlyMap<string, Attribute>;
  /** Names that its subgraphs (If, Loop, Scan) read; some are their own. */
  readonly captures: readonly string[];
  /** Files that tensors in its attributes and subgraphs lie in, as external data names them. */
  readonly files: readonly string[];
  /** The message as it was, so that writing it again loses nothing. */
  readonly bytes: Uint8Array;
}

/** A ValueInfoProto: a graph input or output, or the recorded type of a value between. */
export interface OnnxValue {
  readonly name: string;
  /** TensorProto.DataType, 0 when it is not given. */
  readonly type: number;
  /** A string is a symbolic extent, null a shape that is not given. */
  readonly dims: readonly (number | string)[] | null;
  /** @internal */
  readonly bytes: Uint8Array;
}

/** Reads a NodeProto. */
export function readNode(name: string, bytes: Uint8Array): OnnxNode {
  const source = memorySource(name, bytes);
  const node = {
    op: '',
    domain: '',
    name: '',
    inputs: [] as string[],
    outputs: [] as string[],
    captures: [] as string[],
    files: [] as string[],
  };
  const attributes = new Map<string, Attribute>();
  for (const field of fields(source)) {
    switch (field.number) {
      case NodeField.input:
        node.inputs.push(text(source, field));
        break;
      case NodeField.output:
        node.outputs.push(text(source, field));
        break;
      case NodeField.name:
        node.name = text(source, field);
        break;
      case NodeField.opType:
        node.op = text(source, field);
        break;
      case NodeField.domain:
        node.domain = text(source, field);
        break;
      case NodeField.attribute:
        readAttribute(source, field, attributes, node);
        break;
    }
  }
  if (node.domain === 'ai.onnx') node.domain = '';
  return { ...node, attributes, bytes };
}

/** What a node has inside of its attributes. */
type Inside = Record<'captures' | 'files', string[]>;

function readAttribute(source: ByteSource, attribute: Field, into: Map<string, Attribute>, inside: Inside): void {
  let name = '';
  const ints: number[] = [];
  const value: { -readonly [K in keyof Attribute]: Attribute[K] } = {};
  for (const field of fields(source, attribute.start, attribute.end)) {
    switch (field.number) {
      case AttributeField.name:
        name = text(source, field);
        break;
      case AttributeField.f:
        [value.f] = floats(source, field);
        break;
      case AttributeField.i:
        value.i = field.value;
        break;
      case AttributeField.s:
        value.s = text(source, field);
        break;
      case AttributeField.t:
        value.t = readTensor(source, field.start, field.end);
        break;
      case AttributeField.ints:
        for (const value of integers(source, field)) ints.push(value);
        break;
      case AttributeField.g:
        // The node's own memory: it stays as it is.
        value.g = source.bytes(field.start, field.end - field.start);
        break;
    }
    readInside(source, field, inside, 0);
  }
  if (ints.length > 0) value.ints = ints;
  into.set(name, value);
}

/** More than any exporter nests; a bound against files made to overflow the stack. */
const MAX_NESTING = 32;

/** The files of the tensors in a field of an attribute; and every value name that nodes and outputs of its subgraphs mention. */
function readInside(source: ByteSource, field: Field, inside: Inside, depth: number): void {
  const { number } = field;
  if (number === AttributeField.t || number === AttributeField.tensors) readFile(source, field, inside);
  if (number === AttributeField.sparse || number === AttributeField.sparses) readSparse(source, field, inside);
  if (number === AttributeField.g || number === AttributeField.graphs) readBody(source, field, inside, depth);
}

function readBody(source: ByteSource, graph: Field, inside: Inside, depth: number): void {
  if (depth > MAX_NESTING)
    throw new DesapError('ERR_FILE', `${source.name}: got subgraphs nested more than ${MAX_NESTING} deep`);
  for (const field of fields(source, graph.start, graph.end)) {
    if (field.number === GraphField.output) inside.captures.push(readValue(source.name, payload(source, field)).name);
    if (field.number === GraphField.initializer) readFile(source, field, inside);
    if (field.number === GraphField.sparseInitializer) readSparse(source, field, inside);
    if (field.number !== GraphField.node) continue;
    for (const part of fields(source, field.start, field.end)) {
      if (part.number === NodeField.input) inside.captures.push(text(source, part));
      if (part.number !== NodeField.attribute) continue;
      for (const inner of fields(source, part.start, part.end)) readInside(source, inner, inside, depth + 1);
    }
  }
}

function readSparse(source: ByteSource, sparse: Field, inside: Inside): void {
  for (const field of fields(source, sparse.start, sparse.end))
    if (field.number === SparseField.values || field.number === SparseField.indices) readFile(source, field, inside);
}

function readFile(source: ByteSource, tensor: Field, { files }: Inside): void {
  const { data } = readTensor(source, tensor.start, tensor.end);
  if ('file' in data && data.file !== null) files.push(data.file);
}

/** Reads a ValueInfoProto. */
export function readValue(name: string, bytes: Uint8Array): OnnxValue {
  const source = memorySource(name, bytes);
  const value = { name: '', type: 0, dims: null as (number | string)[] | null };
  for (const field of fields(source)) {
    if (field.number === ValueField.name) value.name = text(source, field);
    if (field.number !== ValueField.type) continue;
    for (const kind of fields(source, field.start, field.end)) {
      if (kind.number !== TypeField.tensor) continue;
      for (const part of fields(source, kind.start, kind.end)) {
        if (part.number === TensorTypeField.elementType) value.type = part.value;
        if (part.number === TensorTypeField.shape) value.dims = readShape(source, part);
      }
    }
  }
  return { ...value, bytes };
}

function readShape(source: ByteSource, shape: Field): (number | string)[] {
  const dims: (number | string)[] = [];
  for (const field of fields(source, shape.start, shape.end)) {
    if (field.number !== ShapeField.dim) continue;
    let extent: number | string = '';
    for (const part of fields(source, field.start, field.end)) {
      if (part.number === DimField.value) extent = part.value;
      if (part.number === DimField.parameter) extent = text(source, part);
    }
    dims.push(extent);
  }
  return dims;
}
