import type { InferenceSession } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import { isFile } from '../files.js';
import { optional } from '../optional.js';

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
