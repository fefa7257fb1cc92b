import { realpathSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { types } from 'node:util';
import { DesapError, invalid, mismatch } from '../../errors.js';
import { limits } from '../../limits.js';
import type { NamingFile } from '../../named-files.js';
import { nonEmpty } from '../../tensor.js';
import { type OnnxNode, type OnnxValue, readNode, readValue } from './messages.js';
import { FunctionField, GraphField, ModelField, OpsetField } from './proto.js';
import { readTensor, type StoredTensor } from './stored-tensor.js';
import { type ByteSource, type Field, fields, memorySource, payload, text, withFileSource } from './wire.js';

/** The structure of an ONNX file: everything except large weights, which stay where they are. */
export interface OnnxModel {
  /** What error messages call it. */
  readonly name: string;
  /** @internal Where the file lies; null when the model was given as bytes. */
  readonly file: NamingFile | null;
  /** @internal The fields of the ModelProto beside the graph (versions, operator sets, functions, metadata), as they were. */
  readonly header: readonly Uint8Array[];
  /** @internal Files that tensors inside of its functions lie in: {@link OnnxNode.files} of their nodes. */
  readonly functionFiles: readonly string[];
  /** Version of ONNX's own operator set. */
  readonly opset: number;
  /** @internal */
  readonly nodes: readonly OnnxNode[];
  /** @internal */
  readonly initializers: ReadonlyMap<string, StoredTensor>;
  /** What must be fed: graph inputs that are not initialisers. */
  readonly inputs: readonly OnnxValue[];
  readonly outputs: readonly OnnxValue[];
  /** @internal What is recorded of values between. */
  readonly values: ReadonlyMap<string, OnnxValue>;
}

/** A model as functions take it: path, bytes, or one that was read before. */
export type ModelSource = string | Uint8Array | OnnxModel;

/**
 * Reads the structure of an ONNX model. A file of any size is walked through a small window; weights are not loaded.
 *
 * @param source path, bytes, or a model that was read before (returned as it is)
 * @param name what error messages call a model that is given as bytes, and what is no model; default: `model`, and `source`
 * @throws DesapError `ERR_FILE` when it cannot be read, is truncated, contradicts itself or is no ONNX model;
 *   `ERR_GRAPH` for sparse initialisers; `ERR_VALUE` for arguments that are none
 */
export function readModel(source: ModelSource, name?: string): OnnxModel {
  if (name !== undefined) nonEmpty('name', name, 'a name for messages');
  if (types.isUint8Array(source)) return parseModel(memorySource(name ?? 'model', source), null);
  if (wasRead(source)) return source;
  if (typeof source !== 'string' || source === '')
    throw invalid(
      'ERR_VALUE',
      name ?? 'source',
      source,
      'a path or the bytes of an ONNX model, or what readModel gave',
    );
  let path: string;
  try {
    path = realpathSync(source);
  } catch (cause) {
    throw new DesapError('ERR_FILE', `${source}: cannot be read: ${(cause as Error).message}`, { cause });
  }
  const file = { path, folder: dirname(resolve(source)) };
  return withFileSource(source, path, (bytes) => parseModel(bytes, file));
}

/** What {@link readModel} gave. */
const READ = new WeakSet<object>();

function wasRead(source: unknown): source is OnnxModel {
  return READ.has(source as object);
}

function parseModel(source: ByteSource, file: NamingFile | null): OnnxModel {
  if (source.size === 0) throw new DesapError('ERR_FILE', `${source.name}: not an ONNX model: got an empty file`);
  const header: Uint8Array[] = [];
  const functionFiles: string[] = [];
  const parts = new GraphParts(source);
  const { graphNodes: most } = limits();
  let irVersion = 0;
  let opset = 0;
  for (const field of fields(source)) {
    // A message field that occurs again is merged, which for a graph means: its lists go on.
    if (field.number === ModelField.graph) parts.add(field);
    else header.push(source.bytes(field.tag, field.end - field.tag).slice());
    if (header.length > most) throw tooMany(source.name, most, 'fields beside the graph');
    if (field.number === ModelField.functions) functionFiles.push(...filesOf(source, field));
    if (field.number === ModelField.irVersion) irVersion = field.value;
    if (field.number === ModelField.opsetImport) opset = Math.max(opset, onnxVersion(source, field));
  }
  const found = `IR version ${irVersion}, ONNX operator set ${opset}, ${parts.nodes.length} nodes, ${parts.outputs.length} outputs`;
  if (irVersion < 1 || opset < 1 || parts.nodes.length === 0 || parts.outputs.length === 0)
    throw new DesapError('ERR_FILE', `${source.name}: not an ONNX model: got ${found}; wanted at least one of each`);
  const { nodes, initializers, outputs, values } = parts;
  // Before IR version 4 every initialiser was listed as an input too.
  const inputs = parts.inputs.filter((value) => !initializers.has(value.name));
  const model = { name: source.name, file, header, functionFiles, opset, nodes, initializers, inputs, outputs, values };
  READ.add(model);
  return model;
}

/** Reads a GraphProto inside of a node. Its inputs are in their order; names that it does not write are those of the graph around. */
export function readSubgraph(
  name: string,
  bytes: Uint8Array,
): Pick<OnnxModel, 'nodes' | 'initializers' | 'inputs' | 'outputs'> {
  const parts = new GraphParts(memorySource(name, bytes));
  parts.add({ start: 0, end: bytes.length });
  return parts;
}

function filesOf(source: ByteSource, definition: Field): string[] {
  const files: string[] = [];
  for (const field of fields(source, definition.start, definition.end))
    if (field.number === FunctionField.node) files.push(...readNode(source.name, payload(source, field)).files);
  return files;
}

function tooMany(name: string, most: number, what: string): DesapError {
  return mismatch('ERR_FILE', name, `more than ${most} ${what}`, `at most ${most}`);
}

function onnxVersion(source: ByteSource, field: Field): number {
  let domain = '';
  let version = 0;
  for (const part of fields(source, field.start, field.end)) {
    if (part.number === OpsetField.domain) domain = text(source, part);
    if (part.number === OpsetField.version) version = part.value;
  }
  return domain === '' || domain === 'ai.onnx' ? version : 0;
}

/** Fields of a GraphProto, for messages. */
const NAMES: Readonly<Record<number, string>> = {
  [GraphField.node]: 'nodes',
  [GraphField.initializer]: 'initialisers',
  [GraphField.input]: 'inputs',
  [GraphField.output]: 'outputs',
  [GraphField.valueInfo]: 'recorded values',
};

/** The lists of a GraphProto, filled from one or more occurrences. */
class GraphParts {
  readonly nodes: OnnxNode[] = [];
  readonly initializers = new Map<string, StoredTensor>();
  readonly inputs: OnnxValue[] = [];
  readonly outputs: OnnxValue[] = [];
  readonly values = new Map<string, OnnxValue>();
  /** How many of each field there were. */
  private readonly counts = new Map<number, number>();

  constructor(private readonly source: ByteSource) {}

  add(graph: Pick<Field, 'start' | 'end'>): void {
    const { source } = this;
    const { graphNodes: most } = limits();
    for (const field of fields(source, graph.start, graph.end)) {
      const count = (this.counts.get(field.number) ?? 0) + 1;
      this.counts.set(field.number, count);
      if (count > most) throw tooMany(source.name, most, NAMES[field.number] ?? 'fields');
      switch (field.number) {
        case GraphField.node:
          this.nodes.push(readNode(source.name, payload(source, field)));
          break;
        case GraphField.initializer: {
          const tensor = readTensor(source, field.start, field.end);
          this.initializers.set(tensor.name, tensor);
          break;
        }
        case GraphField.input:
          this.inputs.push(readValue(source.name, payload(source, field)));
          break;
        case GraphField.output:
          this.outputs.push(readValue(source.name, payload(source, field)));
          break;
        case GraphField.valueInfo: {
          const value = readValue(source.name, payload(source, field));
          this.values.set(value.name, value);
          break;
        }
        case GraphField.sparseInitializer:
          throw new DesapError('ERR_GRAPH', `${source.name}: got sparse initialisers, wanted dense ones`);
      }
    }
  }
}
