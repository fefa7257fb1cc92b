/** Writing files; every failure is an `ERR_FILE` that begins with the path. */
import { randomUUID } from 'node:crypto';
import type { Stats } from 'node:fs';
import { lstat, mkdir, open, realpath, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { DesapError, mismatch } from './errors.js';
import { kindOf } from './files.js';

/**
 * Writes a file whole or not at all: into a new file beside it, which is then renamed. What is there may be a file, also behind symbolic
 * links, which is replaced and keeps its permissions. Calls at one time are fine: the last one stays.
 *
 * @throws DesapError `ERR_FILE`, also where something else than a file is there: a device, a FIFO, a folder, a link to nothing
 */
export async function writeWhole(path: string, bytes: Uint8Array): Promise<void> {
  try {
    const { target, mode } = await targetOf(path);
    await replace(target, bytes, mode);
  } catch (cause) {
    if (cause instanceof DesapError) throw cause;
    throw new DesapError('ERR_FILE', `${path}: cannot be written: ${(cause as Error).message}`, { cause });
  }
}

/** The real path of what is written, and the permissions of the file that is there. */
async function targetOf(path: string): Promise<{ target: string; mode?: number }> {
  const entry = await unlessMissing(lstat(path));
  if (entry === null) return { target: path };
  const target = entry.isSymbolicLink() ? await unlessMissing(realpath(path)) : path;
  if (target === null) throw refusal(path, 'a link to nothing');
  const found = await stat(target);
  if (!found.isFile()) throw refusal(path, kindOf(found));
  return { target, mode: found.mode };
}

function refusal(path: string, got: string): DesapError {
  return mismatch('ERR_FILE', path, got, 'a file, or a path where nothing is, to write');
}

async function unlessMissing<T extends string | Stats>(entry: Promise<T>): Promise<T | null> {
  return entry.catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw error;
  });
}

async function replace(target: string, bytes: Uint8Array, mode?: number): Promise<void> {
  const neighbour = join(dirname(target), `.${randomUUID()}.part`);
  const handle = await open(neighbour, 'wx');
  try {
    try {
      if (mode !== undefined) await handle.chmod(mode);
      await handle.writeFile(bytes);
    } finally {
      await handle.close();
    }
    await rename(neighbour, target);
  } catch (error) {
    await rm(neighbour, { force: true }).catch(() => {});
    throw error;
  }
}

/** Makes a folder, and those around it, unless it is there. */
export async function makeFolder(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true }).catch((cause: Error) => {
    throw new DesapError('ERR_FILE', `${folder}: cannot be made: ${cause.message}`, { cause });
  });
}
