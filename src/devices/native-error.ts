/** Errors of drivers, which are mostly those of the native addons, get this package's type and words. */
import { types } from 'node:util';
import { checkAborted, onAbort } from '../abort.js';
import { DesapError, type DesapErrorCode, notFinite } from '../errors.js';
import type { Driver } from './driver.js';

/** An error of native code: `argument` is the input at fault, `row` its first bad row or element. */
interface NativeError extends Error {
  readonly code?: string;
  readonly argument?: string;
  readonly row?: number;
  /** Which image of the call, where there are several. */
  readonly image?: number;
}

/** Makes a call of a driver; its error, thrown or rejected with, becomes a {@link DesapError}. */
export function typed<T>(call: () => T): T {
  try {
    const result = call();
    return types.isPromise(result) ? (settled(result) as T) : result;
  } catch (error) {
    throw desapError(error);
  }
}

/**
 * Makes a call of a driver that waits in its queue: one that is ended before it has begun is taken out.
 * @throws DesapError `ERR_ABORTED`, and as {@link typed}
 */
export function queued<T>(driver: Pick<Driver, 'cancel'>, call: () => T): T {
  checkAborted();
  return typed(() => {
    const result = call();
    if (types.isPromise(result)) {
      const forget = onAbort(() => driver.cancel(result));
      result.then(forget, forget);
    }
    return result;
  });
}

/** An async function, so that the error's stack names the functions that awaited it. */
async function settled<T>(result: Promise<T>): Promise<T> {
  try {
    return await result;
  } catch (error) {
    throw desapError(error);
  }
}

/** What V8 says of an array that it has no memory for: those of the reference. */
const NO_ROOM = /^(Invalid typed array length|Array buffer allocation failed)/;

/** The error as a {@link DesapError} whose message begins with the argument. */
export function desapError(error: unknown): unknown {
  if (!types.isNativeError(error) || error instanceof DesapError) return error;
  const { code, argument, row, image, message } = error as NativeError;
  if (NO_ROOM.test(message)) return new DesapError('ERR_OUT_OF_MEMORY', message, { cause: error });
  if (!code?.startsWith('ERR_')) return new DesapError('ERR_INTERNAL', `native addon: ${message}`, { cause: error });
  if (argument && row !== undefined) return notFinite(argument, row, image);
  return new DesapError(code as DesapErrorCode, argument ? `${argument}: ${message}` : message, { cause: error });
}
