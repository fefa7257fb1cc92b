/** Where this package lies on disk, also when a bundler has put its code into another file. */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

/** This file, or the bundle that it is part of. A bundle in CommonJS has no `import.meta.url`, but `__filename`. */
const HERE = fileUrl(import.meta.url) ?? fileUrl(typeof __filename === 'string' ? __filename : undefined);

/** Places to look for packages from, in this order: a bundler may have written a place that is not this machine's. */
const PLACES = [() => HERE, () => fileUrl(process.argv[1]), () => fileUrl(join(process.cwd(), 'index.js'))];

/** `require` of this package, for addons. */
export const nodeRequire = createRequire(HERE ?? process.execPath);

/** The folder of this package, or null where it runs from a bundle and no installed copy is found beside it. */
export function packageRoot(): string | null {
  const own = HERE && fileURLToPath(new URL('..', HERE));
  if (own !== undefined && isPackage(own)) return own;
  return resolveAnywhere('desap/package.json', (file) => join(file, '..'));
}

/** What tells a reader how a bundle finds the addon named by `variable`. */
export function bundleAdvice(variable: string): string {
  return (
    `this is a bundle (${HERE ? fileURLToPath(HERE) : 'of unknown place'}), which cannot hold a native addon: mark desap as external ` +
    `in your bundler and ship node_modules/desap beside the bundle, or set ${variable} to the path of the addon`
  );
}

/** The first place from which `request` is found, `near` before all others, as `use` makes it; null: none. */
export function resolveAnywhere<T>(request: string, use: (file: string) => T, near?: string): T | null {
  for (const place of [() => near, ...PLACES]) {
    try {
      const from = place();
      if (from !== undefined) return use(createRequire(from).resolve(request));
    } catch {
      // The next place may have it.
    }
  }
  return null;
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
