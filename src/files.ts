/**
 * Reading files. Only regular files are read, through symbolic links: a FIFO would wait for a writer, and a device need not end. Every
 * failure is an `ERR_FILE` that begins with the path.
 */
import { constants as LIMITS } from 'node:buffer';
import { closeSync, constants, fstatSync, openSync, type Stats } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';
import { DesapError, mismatch } from './errors.js';
import { limits } from './limits.js';

/** Opening does not wait, whatever there is; Windows has no such flag, and no FIFOs in folders. */
const READ = constants.O_RDONLY | (constants.O_NONBLOCK ?? 0);

/** What one read asks of the system at most. */
const MOST_AT_ONCE = 2 ** 30;

/** What an entry of a file system is, in words. */
export function kindOf(entry: Stats): string {
  if (entry.isDirectory()) return 'a folder';
  if (entry.isFIFO()) return 'a FIFO';
  if (entry.isSocket()) return 'a socket';
  return entry.isFile() ? 'a file' : 'a device';
}

/** @throws DesapError `ERR_FILE` */
export function requireRegular(path: string, entry: Stats): void {
  if (!entry.isFile()) throw mismatch('ERR_FILE', path, `something that is not a file (${kindOf(entry)})`, 'a file');
}

/**
 * Refuses what another program should not be given to read: a pipe or a device, which need not end. Nothing and folders pass.
 * @throws DesapError `ERR_FILE`
 */
export async function refuseEndless(path: string): Promise<void> {
  const entry = await stat(path).catch(() => null);
  if (entry !== null && !entry.isDirectory()) requireRegular(path, entry);
}

function unreadable(path: string, cause: unknown): DesapError {
  if (cause instanceof DesapError) return cause;
  return new DesapError('ERR_FILE', `${path}: cannot be read: ${(cause as Error).message}`, { cause });
}

/** A file of which parts are read. */
export interface OpenFile {
  /** Bytes. */
  readonly size: number;
  /** @throws DesapError `ERR_FILE` behind the end; `ERR_OUT_OF_MEMORY` */
  readonly read: (at: number, length: number) => Promise<Uint8Array>;
}

/**
 * Reads parts of a file, which is closed again.
 * @param name what error messages call it
 * @throws DesapError `ERR_FILE`
 */
export async function readPart<T>(path: string, use: (file: OpenFile) => Promise<T>, name = path): Promise<T> {
  const fail = (cause: unknown): never => {
    throw unreadable(name, cause);
  };
  const handle = await open(path, READ).catch(fail);
  try {
    const entry = await handle.stat().catch(fail);
    requireRegular(name, entry);
    return await use({ size: entry.size, read: (at, length) => readRange(handle, at, length, name, fail) });
  } finally {
    await handle.close();
  }
}

async function readRange(
  handle: FileHandle,
  at: number,
  length: number,
  name: string,
  fail: (cause: unknown) => never,
): Promise<Uint8Array> {
  const bytes = room(length, name);
  for (let done = 0; done < length; ) {
    const wanted = Math.min(length - done, MOST_AT_ONCE);
    const { bytesRead } = await handle.read(bytes, done, wanted, at + done).catch(fail);
    if (bytesRead === 0) fail(new Error(`it ends at byte ${at + done}, ${at + length} were wanted`));
    done += bytesRead;
  }
  return bytes;
}

function room(length: number, name: string): Uint8Array {
  try {
    return new Uint8Array(length);
  } catch (cause) {
    throw new DesapError('ERR_OUT_OF_MEMORY', `${name}: got no memory for ${length} bytes of it`, { cause });
  }
}

/**
 * Opens a file on the calling thread, and closes it again.
 * @param name what error messages call it
 * @throws DesapError `ERR_FILE`
 */
export function withFileSync<T>(path: string, use: (file: number, size: number) => T, name = path): T {
  let file: number;
  try {
    file = openSync(path, READ);
  } catch (cause) {
    throw unreadable(name, cause);
  }
  try {
    const entry = fstatSync(file);
    requireRegular(name, entry);
    return use(file, entry.size);
  } finally {
    closeSync(file);
  }
}

/**
 * The bytes of a whole file.
 * @param most bytes that it may have
 * @throws DesapError `ERR_FILE`, also for a larger one
 */
export async function readBytes(path: string, most = Number.POSITIVE_INFINITY): Promise<Uint8Array> {
  return readPart(path, async ({ size, read }) => {
    if (size > most) throw mismatch('ERR_FILE', path, `${size} bytes`, `at most ${most}`);
    return read(0, size);
  });
}

/** The text of a whole UTF-8 file. */
export async function readText(path: string, most?: number): Promise<string> {
  const bytes = await readBytes(path, most);
  try {
    return new TextDecoder().decode(bytes);
  } catch (cause) {
    const longest = `a text of at most ${LIMITS.MAX_STRING_LENGTH} characters, the longest that Node has`;
    const { message } = mismatch('ERR_FILE', path, `${bytes.length} bytes`, longest);
    throw new DesapError('ERR_FILE', message, { cause });
  }
}

/**
 * The object (or array) in a JSON file.
 * @param most bytes that it may have; default: the limit `jsonBytes`
 */
export async function readJson<T extends object>(path: string, most = limits().jsonBytes): Promise<T> {
  const text = await readText(path, most);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new DesapError('ERR_FILE', `${path}: is not JSON: ${(cause as Error).message}`, { cause });
  }
  if (typeof value === 'object' && value !== null) return value as T;
  throw new DesapError('ERR_FILE', `${path}: got JSON that is not an object, wanted one`);
}

/** The same, or null where there is no such file. */
export async function readJsonIfThere<T extends object>(path: string): Promise<T | null> {
  return (await isFile(path)) ? readJson<T>(path) : null;
}

/** Whether a path names an existing file. */
export async function isFile(path: string): Promise<boolean> {
  return stat(path).then(
    (entry) => entry.isFile(),
    () => false,
  );
}

/** Fails unless a model folder is there. */
export async function requireFolder(path: string, what: string): Promise<void> {
  const entry = await stat(path).catch(() => null);
  if (!entry?.isDirectory()) throw new DesapError('ERR_FILE', `${path}: got no such folder, wanted ${what}`);
}
