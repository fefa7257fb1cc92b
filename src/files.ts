/** Reading and writing files whole; every failure is an `ERR_FILE` that begins with the path. */
import { constants } from 'node:buffer';
import { open, readFile, rename, rm, stat } from 'node:fs/promises';
import { DesapError, mismatch } from './errors.js';

/** The bytes of a whole file. */
export async function readBytes(path: string): Promise<Uint8Array> {
  await refuseEndless(path);
  try {
    const { buffer, byteOffset, byteLength } = await readFile(path);
    return new Uint8Array(buffer, byteOffset, byteLength);
  } catch (cause) {
    throw new DesapError('ERR_FILE', `${path}: cannot be read: ${(cause as Error).message}`, { cause });
  }
}

/** A file of which parts are read. */
export interface OpenFile {
  /** Bytes. */
  readonly size: number;
  /** @throws DesapError `ERR_FILE` behind the end */
  readonly read: (at: number, length: number) => Promise<Uint8Array>;
}

/**
 * Reads parts of a file, which is closed again.
 * @throws DesapError `ERR_FILE`
 */
export async function readPart<T>(path: string, use: (file: OpenFile) => Promise<T>): Promise<T> {
  const fail = (cause: Error): never => {
    throw new DesapError('ERR_FILE', `${path}: cannot be read: ${cause.message}`, { cause });
  };
  await refuseEndless(path);
  const handle = await open(path).catch(fail);
  const read = async (at: number, length: number) => {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const { bytesRead } = await handle.read(bytes, done, length - done, at + done).catch(fail);
      if (bytesRead === 0) fail(new Error(`it ends at byte ${at + done}, ${at + length} were wanted`));
      done += bytesRead;
    }
    return bytes;
  };
  try {
    const { size } = await handle.stat();
    return await use({ size, read });
  } finally {
    await handle.close();
  }
}

/**
 * Refuses a pipe and a device: reading them may wait for ever, or never end.
 * @throws DesapError `ERR_FILE`
 */
export async function refuseEndless(path: string): Promise<void> {
  const entry = await stat(path).catch(() => null);
  if (entry === null || entry.isFile() || entry.isDirectory()) return;
  throw mismatch('ERR_FILE', path, 'a pipe, a socket or a device', 'a file');
}

/** The text of a whole UTF-8 file. */
export async function readText(path: string): Promise<string> {
  const bytes = await readBytes(path);
  try {
    return new TextDecoder().decode(bytes);
  } catch (cause) {
    const longest = `a text of at most ${constants.MAX_STRING_LENGTH} characters, the longest that Node has`;
    const { message } = mismatch('ERR_FILE', path, `${bytes.length} bytes`, longest);
    throw new DesapError('ERR_FILE', message, { cause });
  }
}

/** The object (or array) in a JSON file. */
export async function readJson<T extends object>(path: string): Promise<T> {
  const text = await readText(path);
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

/** Writes a file whole or not at all: into a neighbour first, then renamed over the target. */
export async function writeWhole(path: string, bytes: Uint8Array): Promise<void> {
  const neighbour = `${path}.${process.pid}.part`;
  try {
    const handle = await open(neighbour, 'w');
    try {
      await handle.writeFile(bytes);
    } finally {
      await handle.close();
    }
    await rename(neighbour, path);
  } catch (cause) {
    await rm(neighbour, { force: true }).catch(() => {});
    throw new DesapError('ERR_FILE', `${path}: cannot be written: ${(cause as Error).message}`, { cause });
  }
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
