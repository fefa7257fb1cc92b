import { types } from 'node:util';

/** What went wrong, for programs. Every error that this package throws on purpose is a {@link DesapError} with one of these. */
export type DesapErrorCode =
  /** A tensor has the wrong rank or a wrong extent. */
  | 'ERR_SHAPE'
  /** A tensor has an element type that is not accepted there, or data that does not match its type. */
  | 'ERR_DTYPE'
  /** A number or a string is outside of what the option accepts. */
  | 'ERR_VALUE'
  /** A tensor holds NaN or Inf (or values whose square leaves float32). */
  | 'ERR_NOT_FINITE'
  /** The memory behind a typed array is gone, or shorter than its shape says (detached, transferred or resized buffer). */
  | 'ERR_DETACHED'
  /** The object was disposed. */
  | 'ERR_DISPOSED'
  /** A file is missing, truncated or not what its format says. */
  | 'ERR_FILE'
  /** An ONNX graph does not hold what was looked for. */
  | 'ERR_GRAPH'
  /** A head does not belong to the encoder that it is used with. */
  | 'ERR_HEAD_MISMATCH'
  /** An optional package is not installed. */
  | 'ERR_MISSING_PACKAGE'
  /** The requested device or instruction set is not available here. */
  | 'ERR_DEVICE_UNAVAILABLE'
  /** The device refused or broke off a call; the message has the driver's word for it. The next call may work. */
  | 'ERR_DEVICE_FAILED'
  /** The device, or what this process has on it, is dead: every later call on it says so too. Open another one. */
  | 'ERR_DEVICE_LOST'
  /** The call's signal ended it; `cause` is the signal's reason. */
  | 'ERR_ABORTED'
  /** A server's queue is full: the request was not taken. Try again later. */
  | 'ERR_BUSY'
  /** The worker that had the request died; another takes its place. The next call may work. */
  | 'ERR_WORKER_LOST'
  /** What a pool's continuation threw, in its own words. A `DesapError` keeps its own code. */
  | 'ERR_CONTINUATION'
  /** An allocation failed. */
  | 'ERR_OUT_OF_MEMORY'
  /** A broken invariant: a bug in this package. */
  | 'ERR_INTERNAL';

/** An error whose message names the argument, what it got and what it wanted, and whose `code` says which kind it is. */
export class DesapError extends Error {
  override readonly name = 'DesapError';
  constructor(
    readonly code: DesapErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** `argument: got X, wanted Y` as a {@link DesapError}, for a value as the caller gave it: strings are quoted. */
export function invalid(code: DesapErrorCode, argument: string, value: unknown, wanted: string): DesapError {
  return mismatch(code, argument, describe(value), wanted);
}

/** `argument: got X, wanted Y` as a {@link DesapError}, for what is said of a value: `6 elements`. */
export function mismatch(code: DesapErrorCode, argument: string, got: string, wanted: string): DesapError {
  return new DesapError(code, `${argument}: got ${got}, wanted ${wanted}`);
}

/** The error for an input that holds NaN or Inf; `row` is the first row (of a vector: the first element) at fault. */
export function notFinite(argument: string, row: number, image?: number): DesapError {
  const name = image === undefined ? argument : `${argument}[${image}]`;
  const error = mismatch(
    'ERR_NOT_FINITE',
    name,
    `NaN, Inf or a magnitude beyond float32 in row ${row}`,
    'finite values',
  );
  return Object.assign(error, { argument, row, image });
}

/** Runs a stage of one image of a call, which its data errors then name. */
export function ofImage<T>(image: number | undefined, stage: () => T): T {
  try {
    return stage();
  } catch (error) {
    const { argument, row } = error as { argument?: string; row?: number };
    throw argument === undefined || row === undefined ? error : notFinite(argument, row, image);
  }
}

/** Names to choose from, as a message says them: 'a' | 'b'. */
export function alternatives(names: readonly string[]): string {
  return names.map(describe).join(' | ');
}

/** Runs a stage, giving its data errors the caller's name for the input; `image` is which one of a call it is. */
export function naming<T>(argument: string, stage: () => T, image?: number): T {
  try {
    return stage();
  } catch (error) {
    const { row } = error as { row?: number };
    throw row === undefined ? error : notFinite(argument, row, image);
  }
}

/** Characters of a string, and entries of a list, that a message quotes. */
const LONGEST = 200;
const MOST_ENTRIES = 32;

/** A value as a message says it: strings are quoted, in lists too. Whatever the value does when it is looked at, nothing is thrown. */
export function describe(value: unknown): string {
  try {
    return described(value, []);
  } catch {
    return 'a value that fails when it is looked at';
  }
}

/** @param around the lists that the value is in */
function described(value: unknown, around: readonly unknown[]): string {
  if (typeof value === 'string') return `'${shortened(value)}'`;
  if (typeof value === 'function') return 'a function';
  if (typeof value !== 'object' || value === null) return String(value);
  if (types.isProxy(value)) return 'a Proxy';
  if (Array.isArray(value)) return listed(value, around);
  const { name } = (value as { constructor?: { name?: unknown } }).constructor ?? {};
  return typeof name === 'string' && name !== '' ? shortened(name) : 'an object';
}

function listed(list: readonly unknown[], around: readonly unknown[]): string {
  if (around.includes(list)) return '[...]';
  const entries = list.slice(0, MOST_ENTRIES).map((entry) => described(entry, [...around, list]));
  return `[${entries.join(', ')}${list.length > MOST_ENTRIES ? `, ... ${list.length} in all` : ''}]`;
}

function shortened(text: string): string {
  return text.length > LONGEST ? `${text.slice(0, LONGEST)}...` : text;
}

/** What was thrown, in words: anything can be. */
export function messageOf(thrown: unknown): string {
  try {
    // A DOMException, which ends most signals, is no native error.
    if (types.isNativeError(thrown) || thrown instanceof DOMException) return String(thrown.message);
  } catch {
    // It fails when it is looked at.
  }
  return describe(thrown);
}
