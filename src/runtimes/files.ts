import { readFile, stat } from 'node:fs/promises';
import { DesapError } from '../errors.js';

/**
 * A JSON file.
 * @throws DesapError `ERR_FILE` when it is missing or not JSON
 */
export async function readJson<T>(path: string): Promise<T> {
  try {
    return JSON.parse(await readFile(path, 'utf8'));
  } catch (cause) {
    const reason = cause instanceof SyntaxError ? 'is not JSON' : 'cannot be read';
    throw new DesapError('ERR_FILE', `${path}: ${reason}: ${(cause as Error).message}`, { cause });
  }
}

/** Whether a path names an existing file. */
export async function isFile(path: string): Promise<boolean> {
  return stat(path).then(
    (entry) => entry.isFile(),
    () => false,
  );
}

/**
 * Checks that a model folder is there.
 * @throws DesapError `ERR_FILE`
 */
export async function requireFolder(path: string, what: string): Promise<void> {
  const entry = await stat(path).catch(() => null);
  if (!entry?.isDirectory()) throw new DesapError('ERR_FILE', `${path}: got no such folder, wanted ${what}`);
}
