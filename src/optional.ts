import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { DesapError } from './errors.js';
import { resolvePackage } from './package.js';
import { warnOnce } from './warn.js';

/**
 * The optional packages, and the oldest version of each that is tested. The package's manifest takes any version, so that no
 * project's own version of one stops an installation; an older one is told when it is used.
 */
const TESTED_FROM = {
  '@huggingface/tokenizers': '0.2.0',
  '@huggingface/transformers': '4.3.0',
  'onnxruntime-node': '1.21.0',
  piscina: '5.1.0',
  sharp: '0.34.0',
} as const;

/** The name of an optional package. */
export type OptionalPackage = keyof typeof TESTED_FROM;

/**
 * Imports an optional package, or says how to install it. Warns (`DESAP_OLD_PACKAGE`) of one that is older than those tested.
 * @throws DesapError `ERR_MISSING_PACKAGE` with the install line
 */
export async function optional<T>(load: () => Promise<T>, name: OptionalPackage, why: string): Promise<T> {
  try {
    const loaded = await load();
    warnIfOld(name);
    return loaded;
  } catch (cause) {
    const code = (cause as { code?: string }).code;
    if (code !== 'ERR_MODULE_NOT_FOUND' && code !== 'MODULE_NOT_FOUND') throw cause;
    throw missingPackage(name, why, cause);
  }
}

/** The error for an optional package that is not installed: what needs it, and the install line. */
export function missingPackage(name: OptionalPackage, why: string, cause?: unknown): DesapError {
  return new DesapError(
    'ERR_MISSING_PACKAGE',
    `${why} needs the optional package ${name}. Install it with: npm install ${name}`,
    { cause },
  );
}

/** Warns once of an installed package that is older than those tested, looked for from where it is loaded. */
export function warnIfOld(name: OptionalPackage): void {
  const version = installedVersion(name);
  if (version === null || !isOlder(version, TESTED_FROM[name])) return;
  warnOnce(
    'DESAP_OLD_PACKAGE',
    `${name} ${version} is older than those desap is tested with: ${TESTED_FROM[name]} and later. Update it with: npm install ${name}@latest`,
    name,
  );
}

/** The version in the package.json above the file that Node loads; null where there is none (a bundle). */
function installedVersion(name: string): string | null {
  const file = resolvePackage(name);
  for (let folder = file && dirname(file); folder && folder !== dirname(folder); folder = dirname(folder)) {
    try {
      const manifest = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
      if (manifest.name === name) return manifest.version;
    } catch {
      // The next folder up may have it.
    }
  }
  return null;
}

/** Whether a version's numbers come before another's. */
export function isOlder(version: string, than: string): boolean {
  const [a, b] = [version, than].map((text) => text.split(/[.+-]/, 3).map(Number));
  const at = a.findIndex((number, i) => number !== b[i]);
  return at >= 0 && a[at] < b[at];
}
