import { dirname, relative, resolve, sep } from 'node:path';
import { types } from 'node:util';
import type { InferenceSession } from 'onnxruntime-common';
import { type Abortable, checkAborted, opening, signalOf } from '../abort.js';
import { DesapError, invalid, mismatch } from '../errors.js';
import { fields, reading } from '../options.js';
import { object } from '../tensor.js';
import type { OnnxModel } from './format/model.js';
import { type GraphNode, type WritableTensor, writeModel, writeValue } from './format/write.js';
import { sorted } from './search/graph.js';
import { dataFile, type FileRange, fileRange } from './weights.js';

/** The onnxruntime-node module, as far as this package uses it. */
export type OrtModule = Pick<typeof import('onnxruntime-common'), 'InferenceSession' | 'Tensor'>;

/**
 * A module that sessions can be opened with.
 * @throws DesapError `ERR_VALUE` for anything else
 */
export function checkOrt(ort: OrtModule): OrtModule {
  const isOrt = reading(
    'ort',
    () => typeof ort?.InferenceSession?.create === 'function' && typeof ort.Tensor === 'function',
  );
  if (isOrt) return ort;
  throw invalid('ERR_VALUE', 'ort', ort, 'the onnxruntime-node module');
}

/**
 * Session options as they are now, none by default.
 * @throws DesapError `ERR_VALUE` for what is no object
 */
export function checkSession(
  session: InferenceSession.SessionOptions = {},
  argument = 'session',
): InferenceSession.SessionOptions {
  object(argument, session, 'session options of ONNX Runtime');
  return reading(argument, () => ({ ...session }));
}

/** A graph that exists in memory only. Its large weights stay in the files that they came from. */
export interface EditedGraph {
  /** A ModelProto. */
  readonly bytes: Uint8Array;
  /** The folder that its external data is relative to; null when it holds all weights itself. */
  readonly folder: string | null;
  /** What error messages call it. */
  readonly name: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
}

/** What to keep of a graph. */
export interface Cut {
  /** Values to feed instead of computing them, with their element type (TensorProto.DataType). Their shape is left open. */
  readonly inputs?: readonly { readonly name: string; readonly type: number }[];
  /** Values to hand out. Their shape is left open. */
  readonly outputs: readonly string[];
  /** Nodes to add. One that writes a value of the model takes the place of the node that wrote it. */
  readonly nodes?: readonly GraphNode[];
}

/**
 * Cuts the nodes between some values out of a model: a small ModelProto whose weights are references (external data by
 * file, offset and length) into the user's own files. Nothing is written to disk, and no weight is copied, except for a
 * model that was given as bytes.
 *
 * @throws DesapError `ERR_GRAPH` when a value does not exist, or a node that stays as it is names a file that links lead to; `ERR_FILE` when
 *   an external data file is missing
 */
export function cut(model: OnnxModel, { inputs = [], outputs, nodes = [] }: Cut): EditedGraph {
  const fed = new Map(inputs.map((input) => [input.name, writeValue(input.name, input.type)]));
  const producers = new Map<string, GraphNode>();
  for (const node of [...model.nodes, ...nodes]) for (const output of node.outputs) producers.set(output, node);
  const producer = (value: string) => (fed.has(value) || value === '' ? undefined : producers.get(value));
  const graphInputs = new Map(model.inputs.map((input) => [input.name, input.bytes]));
  for (const value of outputs)
    if (producer(value) === undefined)
      throw new DesapError('ERR_GRAPH', `${model.name}: looked for a node that writes '${value}'; found none`);

  // Rows that are fed may be of any number.
  const isWhole = inputs.every(({ name }) => graphInputs.has(name));
  const own = new Set<GraphNode>(model.nodes);
  const kept = sorted(
    model.name,
    outputs.flatMap((value) => producer(value) ?? []),
    producer,
  );
  const tensors: WritableTensor[] = [];
  const ranges: { name: string; range: FileRange }[] = [];
  const needed = new Map<string, Uint8Array>();
  const leaves = new Set(
    kept.flatMap(({ inputs, captures }) => [...inputs, ...captures]).filter((value) => producer(value) === undefined),
  );
  for (const value of leaves) {
    const input = fed.get(value) ?? graphInputs.get(value);
    const tensor = model.initializers.get(value);
    if (input !== undefined) needed.set(value, input);
    else if (tensor === undefined)
      continue; // an optional input that is left out, or a name inside of a subgraph
    else if ('bytes' in tensor.data) tensors.push({ ...tensor, data: tensor.data });
    else ranges.push({ name: value, range: fileRange(model, tensor) });
  }
  // What nodes hold stays as it is, the names of files in it too: onnxruntime has to look where the model does.
  const inside = new Map(
    [...kept, { files: model.functionFiles }].flatMap(({ files }) =>
      files.map((file) => [file, dataFile(model, 'a tensor inside of a node', file)]),
    ),
  );
  const beside = inside.size > 0 ? [model.file!.path] : [];
  const folder = commonFolder([...ranges.map(({ range }) => range.path), ...inside.values(), ...beside]);
  for (const [file, path] of inside)
    if (resolve(folder!, file) !== path)
      throw mismatch(
        'ERR_GRAPH',
        `${model.name}: a tensor inside of a node`,
        `external data '${file}', which is ${path}`,
        `${resolve(folder!, file)}: weights and model in one folder, without links`,
      );
  for (const { name, range } of ranges) {
    const { path, offset, length } = range;
    const location = relative(folder ?? '', path)
      .split(sep)
      .join('/');
    const { type, dims } = model.initializers.get(name)!;
    tensors.push({ name, type, dims, data: { location, offset, length } });
  }
  const bytes = writeModel({
    header: model.header,
    nodes: kept,
    initializers: tensors,
    inputs: [...needed.values()],
    outputs: outputs.map((value) => writeValue(value)),
    values: isWhole ? kept.flatMap((node) => (own.has(node) ? recorded(model, node, outputs) : [])) : [],
  });
  return { bytes, folder, name: model.name, inputs: [...needed.keys()], outputs };
}

/**
 * What a model records of the values that a node writes. ONNX Runtime optimises by shapes, not all of which it works out itself: graphs
 * without them have made it crash.
 */
function recorded({ values }: OnnxModel, node: GraphNode, outputs: readonly string[]): Uint8Array[] {
  return node.outputs.flatMap((name) => (outputs.includes(name) ? [] : (values.get(name)?.bytes ?? [])));
}

/** The deepest folder that holds all files, or null when there is none to hold. */
function commonFolder(paths: readonly string[]): string | null {
  const folders = [...new Set(paths.map((path) => dirname(path)))];
  if (folders.length === 0) return null;
  return folders.reduce((common, folder) => {
    let shared = common;
    while (folder !== shared && !folder.startsWith(shared.endsWith(sep) ? shared : shared + sep))
      shared = dirname(shared);
    return shared;
  });
}

/**
 * A whole model with further values among its outputs. The weights are references, see {@link cut}.
 *
 * @param values values inside of the model, or written by one of `nodes`
 * @param nodes nodes to add
 */
export function expose(model: OnnxModel, values: readonly string[], nodes: readonly GraphNode[] = []): EditedGraph {
  const outputs = new Set([...model.outputs.map((output) => output.name), ...values]);
  return cut(model, { outputs: [...outputs], nodes });
}

/** What onnxruntime-node reads of `extra`. */
type SessionExtra = { readonly session?: Record<string, unknown> };

/**
 * Session options with idle threads at rest. ONNX Runtime's threads otherwise spin for some time after each run; with several
 * sessions and a pruner in one process they take the cores from each other (measured on two cores: a tower of 4 ms took 25 ms). All
 * sessions of this package have them; this is for a session of your own beside these.
 *
 * ```ts
 * const decoder = await InferenceSession.create('decoder_model_merged.onnx', atRest({ intraOpNumThreads: 2 }));
 * ```
 *
 * @param options what `extra.session` says of spinning stays
 * @throws DesapError `ERR_VALUE` for what is no object
 */
export function atRest(options?: InferenceSession.SessionOptions): InferenceSession.SessionOptions {
  const own = checkSession(options, 'options');
  const extra = own.extra as SessionExtra | undefined;
  return { ...own, extra: { ...extra, session: { intra_op: { allow_spinning: '0' }, ...extra?.session } } };
}

const EDITED = 'a graph, as towerGraph and projectorGraph give it';

/**
 * Opens an edited graph, with threads that rest between runs unless `extra.session` says other. The caller releases the session.
 *
 * @param ort the onnxruntime-node module
 * @param options session options of the caller; the folder of the weights is added to `extra.session`
 * @param call `signal` ends it: `ERR_ABORTED`, once no session is open
 * @throws DesapError `ERR_GRAPH` when onnxruntime does not accept the graph, with its reason; `ERR_VALUE` for other arguments than these
 */
export async function openGraph(
  ort: OrtModule,
  graph: EditedGraph,
  options?: InferenceSession.SessionOptions,
  call?: Abortable,
): Promise<InferenceSession> {
  return opening(
    signalOf('call', call),
    () => open(ort, graph, options),
    (session) => session.release(),
  );
}

async function open(
  ort: OrtModule,
  graph: EditedGraph,
  options: InferenceSession.SessionOptions | undefined,
): Promise<InferenceSession> {
  const { InferenceSession } = checkOrt(ort);
  const { bytes, folder, name } = fields('graph', object('graph', graph, EDITED), ['bytes', 'folder', 'name']);
  if (!types.isUint8Array(bytes)) throw invalid('ERR_VALUE', 'graph', graph, EDITED);
  const { extra, ...own } = atRest(options);
  const place = folder === null ? {} : { model_external_initializers_file_folder_path: folder };
  checkAborted();
  try {
    return await InferenceSession.create(bytes, {
      ...own,
      extra: { ...extra, session: { ...(extra as SessionExtra).session, ...place } },
    });
  } catch (cause) {
    throw new DesapError('ERR_GRAPH', `${name}: onnxruntime does not open a part of it: ${(cause as Error).message}`, {
      cause,
    });
  }
}
