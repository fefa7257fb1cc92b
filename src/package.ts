/** Where this package and those beside it lie on disk, also when a bundler has put this code into another file. */
import { readFileSync } from 'node:fs';
import * as imported from 'node:module';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

/** Node's own module: vitest's vm pools and webpack hand out another one under its name. */
const { createRequire, Module } = process.getBuiltinModule?.('node:module') ?? imported;

/** This file, or the bundle that it is part of. A bundle in CommonJS has no `import.meta.url`, but `__filename`. */
const HERE = fileUrl(import.meta.url) ?? fileUrl(typeof __filename === 'string' ? __filename : undefined);

/** Places to look for packages from, in this order: a bundler may have written a place that is not this machine's. */
const PLACES = [() => HERE, () => fileUrl(process.argv[1]), () => fileUrl(join(process.cwd(), 'index.js'))];

/**
 * Node's `require`, for native addons and what belongs to them: no bundle can hold them, and a test's own realm cannot run them. It is a
 * module's method because Jest replaces `createRequire` by one that loads into that realm; Bun has no such method, and no realms.
 * @param file absolute path
 */
export function nodeRequire(file: string): unknown {
  const module = new Module(file);
  module.paths = []; // yarn's Plug'n'Play reads them
  return 'require' in module ? module.require(file) : createRequire(file)(file);
}

/** The file that a package is loaded from (by `require`), looked for from `near` before all other places; null: not installed. */
export function resolvePackage(request: string, near?: string): string | null {
  for (const place of [() => near, ...PLACES]) {
    try {
      const from = place();
      if (from !== undefined) return createRequire(from).resolve(request);
    } catch {
      // The next place may have it.
    }
  }
  return null;
}

/** The folder of this package, or null where it runs from a bundle and no installed copy is found beside it. */
export function packageRoot(): string | null {
  const own = HERE && fileURLToPath(new URL('..', HERE));
  if (own !== undefined && isPackage(own)) return own;
  const installed = resolvePackage('desap/package.json');
  return installed && join(installed, '..');
}

/** What to do about an addon that a bundle does not find; `variable` names its file. */
export function bundleAdvice(variable: string): string {
  return (
    `this is a bundle (${HERE ? fileURLToPath(HERE) : 'of unknown place'}), which cannot hold a native addon: mark desap as external ` +
    `in your bundler (Next.js: serverExternalPackages) and ship node_modules/desap beside the bundle, or set ${variable} to the ` +
    `path of the addon`
  );
}

function isPackage(folder: string): boolean {
  try {
    return JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')).name === 'desap';
  } catch {
    return false;
  }
}

/** A path or file URL as a file URL; undefined for anything else. */
function fileUrl(place: string | undefined): string | undefined {
  if (typeof place !== 'string' || place === '') return undefined;
  if (place.startsWith('file:')) return place;
  return /^[a-z][a-z+.-]+:/i.test(place) ? undefined : pathToFileURL(place).href;
}
