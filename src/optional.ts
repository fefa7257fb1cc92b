import { DesapError } from './errors.js';

/**
 * Imports an optional package, or says how to install it.
 * @throws DesapError `ERR_MISSING_PACKAGE` with the install line
 */
export async function optional<T>(load: () => Promise<T>, name: string, why: string): Promise<T> {
  try {
    return await load();
  } catch (cause) {
    const code = (cause as { code?: string }).code;
    if (code !== 'ERR_MODULE_NOT_FOUND' && code !== 'MODULE_NOT_FOUND') throw cause;
    throw missingPackage(name, why, cause);
  }
}

/** The error for an optional package that is not installed: what needs it, and the install line. */
export function missingPackage(name: string, why: string, cause?: unknown): DesapError {
  return new DesapError(
    'ERR_MISSING_PACKAGE',
    `${why} needs the optional package ${name}. Install it with: npm install ${name}`,
    { cause },
  );
}
