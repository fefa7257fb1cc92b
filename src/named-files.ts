/** Files that another file names: external data of a model, shards of a checkpoint. They lie in the folder of the one that names them. */
import { realpathSync, statSync } from 'node:fs';
import { dirname, join, sep } from 'node:path';
import { DesapError, mismatch } from './errors.js';
import { kindOf } from './files.js';
import { limits } from './limits.js';

/** A file that names others. */
export interface NamingFile {
  /** Its real path, symbolic links followed. */
  readonly path: string;
  /** The folder that it was found in, which the names are relative to: download caches link every file one by one. */
  readonly folder: string;
}

/** Whether a name is that of a file in the same folder or below it: the same rule as onnx and onnxruntime have. */
export function isInside(name: unknown): name is string {
  if (typeof name !== 'string' || name === '' || name.includes('\0')) return false;
  return !/^([a-z]:|[\\/])/i.test(name) && !name.split(/[\\/]/).includes('..');
}

/**
 * The real path of a file that another one names. Links lead to the folder itself, to where the naming file's own link leads, or into the
 * same `blobs`, as in Hugging Face's cache; elsewhere only with `limits({ linksOut: true })`.
 *
 * @param what begins the messages
 * @throws DesapError `ERR_FILE` for one that is missing, no file, or elsewhere
 */
export function namedFile(what: string, by: NamingFile, name: string): string {
  let path: string;
  let homes: string[];
  try {
    path = realpathSync(join(by.folder, name));
    homes = [realpathSync(by.folder), dirname(by.path), ...blobsOf(by.path)];
  } catch (cause) {
    throw new DesapError('ERR_FILE', `${what}: '${name}' cannot be read: ${(cause as Error).message}`, { cause });
  }
  if (!limits().linksOut && !homes.some((home) => path.startsWith(home.endsWith(sep) ? home : home + sep)))
    throw mismatch(
      'ERR_FILE',
      what,
      `'${name}', a link to ${path}`,
      `a file in ${homes.join(' or ')} (or limits({ linksOut: true }))`,
    );
  const entry = statSync(path);
  if (!entry.isFile()) throw mismatch('ERR_FILE', what, `'${name}', which is ${kindOf(entry)}`, 'a file');
  return path;
}

/** The folder `blobs` that a path lies in, where it does. */
function blobsOf(path: string): string[] {
  const end = path.lastIndexOf(`${sep}blobs${sep}`);
  return end < 0 ? [] : [path.slice(0, end + sep.length + 'blobs'.length)];
}
