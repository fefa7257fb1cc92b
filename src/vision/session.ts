import { types } from 'node:util';
import type { InferenceSession } from 'onnxruntime-common';
import { checkAborted } from '../abort.js';
import { DesapError, type DesapErrorCode } from '../errors.js';
import { isFile } from '../files.js';
import type { OrtModule } from '../onnx/edit.js';
import { checkExternalData } from '../onnx/format/external.js';
import { ortModule } from '../ort.js';
import { Tensor } from '../tensor.js';

export { atRest } from '../onnx/edit.js';

/**
 * Opens an ONNX file.
 *
 * @param given the onnxruntime-node module; default: the installed one
 * @throws DesapError `ERR_FILE` when it is missing or not a usable graph; `ERR_MISSING_PACKAGE`
 */
export async function openSession(
  path: string,
  options?: InferenceSession.SessionOptions,
  given?: OrtModule,
): Promise<InferenceSession> {
  const ort = await ortModule(given);
  if (!(await isFile(path))) throw new DesapError('ERR_FILE', `${path}: got no such file, wanted an ONNX model`);
  checkExternalData(path);
  checkAborted();
  try {
    return await ort.InferenceSession.create(path, options);
  } catch (cause) {
    throw new DesapError('ERR_FILE', `${path}: ONNX Runtime cannot open it: ${(cause as Error).message}`, { cause });
  }
}

/**
 * Opens several things that have to be closed: all of them, or, when one fails or the opening is aborted, none.
 *
 * @param open opens them; hands each to `opened` together with what closes it
 */
export async function allOrNone<T>(
  open: (opened: <P>(part: P, close: (part: P) => unknown) => P) => Promise<T>,
): Promise<T> {
  const closers: (() => unknown)[] = [];
  try {
    return await open((part, close) => {
      closers.push(() => close(part));
      checkAborted();
      return part;
    });
  } catch (error) {
    for (const close of closers.reverse()) await close();
    throw error;
  }
}

/** Options of a run that may fail, and is then not complained about. */
export const TENTATIVE = { logSeverityLevel: 4 } as const;

/** Names for messages: the argument that the caller gave, and the graph that runs on it. */
export interface RunNames {
  readonly argument: string;
  readonly graph: string;
  /** Whether it may fail: ONNX Runtime does not complain then. */
  readonly isTentative?: boolean;
}

/**
 * Runs a session; `fetches` are the outputs that are wanted: tensors that it writes them into, or null.
 * @throws DesapError `ERR_ABORTED`; `ERR_SHAPE`, `ERR_DTYPE` for inputs that the graph does not take, `ERR_OUT_OF_MEMORY`, `ERR_GRAPH` for any other
 *   failure, with ONNX Runtime's own words
 */
export async function runSession(
  session: InferenceSession,
  { argument, graph, isTentative = false }: RunNames,
  feeds: Record<string, Tensor>,
  fetches?: Record<string, Tensor | null>,
): Promise<Record<string, Tensor>> {
  checkAborted();
  try {
    const options = isTentative ? TENTATIVE : {};
    const own = Object.fromEntries(Object.entries(feeds).map(([name, tensor]) => [name, unshared(tensor)]));
    return (await (fetches ? session.run(own, fetches, options) : session.run(own, options))) as Record<string, Tensor>;
  } catch (cause) {
    const inputs = Object.values(feeds).map(({ type, dims }) => `${type} [${dims.join(', ')}]`);
    throw runError(argument, inputs[0], graph, cause as Error);
  }
}

/** ONNX Runtime takes no shared memory: a copy of it. */
function unshared(tensor: Tensor): Tensor {
  if (tensor.location !== 'cpu' || !types.isSharedArrayBuffer((tensor.data as Float32Array).buffer)) return tensor;
  return new Tensor(tensor.type as 'float32', (tensor.data as Float32Array).slice(), tensor.dims);
}

function runError(argument: string, got: string, graph: string, cause: Error): DesapError {
  const reason = cause.message.split('\n').join(' ');
  const error = (code: DesapErrorCode, what: string) =>
    new DesapError(code, `${argument}: got ${got}, ${what}: ${reason}`, { cause });
  if (/bad_alloc|allocat|out of memory/i.test(reason))
    return error('ERR_OUT_OF_MEMORY', `for which ${graph} has no memory`);
  if (/data type|dtype/i.test(reason)) return error('ERR_DTYPE', `which is not the type that ${graph} takes`);
  // A graph that fails in one of its operators was given extents that do not fit there.
  if (/dimension|shape|rank|axis|broadcast|Non-zero status code/i.test(reason))
    return error('ERR_SHAPE', `which ${graph} does not take`);
  return error('ERR_GRAPH', `and ${graph} does not run`);
}
