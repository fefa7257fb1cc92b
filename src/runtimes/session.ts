import type { InferenceSession } from 'onnxruntime-common';
import { DesapError, type DesapErrorCode } from '../errors.js';
import { isFile } from '../files.js';
import { optional } from '../optional.js';
import { disableTelemetry } from '../telemetry.js';

disableTelemetry(); // before the first session

/**
 * The onnxruntime-node module.
 * @throws DesapError `ERR_MISSING_PACKAGE`
 */
export const loadOrt = () => optional(() => import('onnxruntime-node'), 'onnxruntime-node', 'running ONNX models');

/**
 * Session options with idle threads at rest. ONNX Runtime's threads otherwise spin for some time after each run; with several
 * sessions and a pruner in one process they take the cores from each other (measured on two cores: a tower of 4 ms took 25 ms).
 */
export function atRest(options: InferenceSession.SessionOptions = {}): InferenceSession.SessionOptions {
  const extra = options.extra as { session?: Record<string, unknown> } | undefined;
  return { ...options, extra: { ...extra, session: { intra_op: { allow_spinning: '0' }, ...extra?.session } } };
}

/**
 * Opens an ONNX file.
 * @throws DesapError `ERR_FILE` when it is missing or not a usable graph; `ERR_MISSING_PACKAGE`
 */
export async function openSession(path: string, options?: InferenceSession.SessionOptions): Promise<InferenceSession> {
  const ort = await loadOrt();
  if (!(await isFile(path))) throw new DesapError('ERR_FILE', `${path}: got no such file, wanted an ONNX model`);
  try {
    return await ort.InferenceSession.create(path, options);
  } catch (cause) {
    throw new DesapError('ERR_FILE', `${path}: ONNX Runtime cannot open it: ${(cause as Error).message}`, { cause });
  }
}

/**
 * Opens several things that have to be closed: all of them, or, when one fails, none.
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
      return part;
    });
  } catch (error) {
    for (const close of closers.reverse()) await close();
    throw error;
  }
}

/**
 * Why ONNX Runtime does not run a graph on an input: `argument` was given as `got`, `graph` is what was run, in words.
 * Its own message is part of the error's.
 */
export function runError(argument: string, got: string, graph: string, cause: Error): DesapError {
  const reason = cause.message.split('\n').join(' ');
  const error = (code: DesapErrorCode, what: string) =>
    new DesapError(code, `${argument}: got ${got}, ${what}: ${reason}`, { cause });
  if (/bad_alloc|allocat|out of memory/i.test(reason))
    return error('ERR_OUT_OF_MEMORY', `for which ${graph} has no memory`);
  if (/data type|dtype/i.test(reason)) return error('ERR_DTYPE', `a type that ${graph} does not take`);
  // A graph that fails in one of its operators was given extents that do not fit there.
  if (/dimension|shape|rank|axis|broadcast|Non-zero status code/i.test(reason))
    return error('ERR_SHAPE', `which ${graph} does not take`);
  return error('ERR_GRAPH', `and ${graph} does not run`);
}
