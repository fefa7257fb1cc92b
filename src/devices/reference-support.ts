/** What the parts of the reference device share. */
import { types } from 'node:util';
import { mismatch } from '../errors.js';
import type { Encoding } from '../kernels/kernels.js';
import type { Matrix64, Numbers } from '../kernels/numeric.js';
import type { FloatMatrix } from '../tensor.js';
import type { MaybePromise } from './driver.js';

/** Float64 results as the float32 that every device returns. */
export const single = (x: Numbers) => Float32Array.from(x);

/** Settles like a native call: a value or an exception when synchronous, a promise otherwise. */
export function settle<T>(sync: boolean, compute: () => T): MaybePromise<T> {
  return sync ? compute() : new Promise((resolve) => resolve(compute()));
}

/**
 * Arguments of a call, whose memory is still there: reading one tensor may run code of the caller's that takes another one away.
 * @throws DesapError `ERR_DETACHED` with the argument
 */
export function present<T>(value: T, argument = ''): T {
  if (typeof value !== 'object' || value === null) return value;
  const { data, rows, cols } = value as Partial<FloatMatrix>;
  const length = types.isFloat32Array(value) ? value.length : 1;
  if (length === 0 || (data !== undefined && data.length !== (rows as number) * (cols as number)))
    throw mismatch('ERR_DETACHED', argument, 'memory that was detached or resized meanwhile', 'memory that stays');
  if (data === undefined && !ArrayBuffer.isView(value))
    for (const [name, inner] of Object.entries(value)) present(inner, argument === '' ? name : `${argument}.${name}`);
  return value;
}

/** Milliseconds of the stages of a call. */
export class Clock {
  #last = performance.now();
  /** Milliseconds since the last lap. */
  lap(): number {
    const now = performance.now();
    const elapsed = now - this.#last;
    this.#last = now;
    return elapsed;
  }
}

/** The two operands of the decoupled attention's product, eq. 2. */
export function operands(encoding: Encoding, q: Matrix64, k: Matrix64, v: Matrix64): [Matrix64, Matrix64] {
  const pairs: Record<Encoding, [Matrix64, Matrix64]> = { qq: [q, q], kk: [k, k], vv: [v, v], qk: [q, k] };
  return pairs[encoding];
}
