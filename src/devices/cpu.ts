/** The CPU device: finds and loads its addon. */
import { availableParallelism } from 'node:os';
import { resolve } from 'node:path';
import { alternatives, DesapError, invalid } from '../errors.js';
import { bundleAdvice, nodeRequire, packageRoot } from '../package.js';
import type { CpuAddon } from './addon.js';
import { cpuAddonFile, platformName, prebuiltPlatforms } from './addon-file.js';
import type { Driver, Precision } from './driver.js';
import { typed } from './native-error.js';

/** More threads than this serve no image. */
const MAXIMUM_THREADS = 256;
const DEFAULT_THREADS = 16;
let loaded: CpuAddon | undefined;

/**
 * The CPU addon: the file that DESAP_CPU_ADDON names, else the one built here (native/build/Release), else the prebuilt one of
 * this platform.
 * @throws DesapError `ERR_DEVICE_UNAVAILABLE` that says whether no addon was found or why it did not load
 */
export function loadCpuAddon(): CpuAddon {
  loaded ??= loadAddon(packageRoot());
  return loaded;
}

/** The CPU addon of the package at `root`; null: there is no package, this runs from a bundle. */
export function loadAddon(root: string | null): CpuAddon {
  const file = process.env.DESAP_CPU_ADDON ? resolve(process.env.DESAP_CPU_ADDON) : addonFile(root);
  try {
    return nodeRequire(file) as CpuAddon;
  } catch (cause) {
    throw new DesapError(
      'ERR_DEVICE_UNAVAILABLE',
      `cpu: the native addon ${file} does not load: ${(cause as Error).message.split('\n')[0]}${root === null ? '' : `; ${buildAdvice(root)}`}`,
      { cause },
    );
  }
}

function addonFile(root: string | null): string {
  if (root === null)
    throw new DesapError('ERR_DEVICE_UNAVAILABLE', `cpu: no native addon: ${bundleAdvice('DESAP_CPU_ADDON')}`);
  const file = cpuAddonFile(root);
  if (file !== null) return file;
  const there = prebuiltPlatforms(root).join(', ') || 'none';
  throw new DesapError(
    'ERR_DEVICE_UNAVAILABLE',
    `cpu: no native addon for ${platformName()} in ${root} (prebuilt ones: ${there}); ${buildAdvice(root)}`,
  );
}

/** How to compile the addon of the package at `root`. */
function buildAdvice(root: string): string {
  return `compile it with: npm run build:native in ${root} (needs g++ or clang, make, Python and the package node-addon-api)`;
}

/**
 * Opens the CPU device.
 *
 * @param options `threads`: 1 to 256, default the available ones, at most 16; `isa`: default the best of this machine;
 *   `precision`: `bf16` takes effect where the instruction set multiplies such numbers; everything else is `fp32`
 * @throws DesapError `ERR_VALUE`, `ERR_DEVICE_UNAVAILABLE`, `ERR_OUT_OF_MEMORY`
 */
export function createCpuDriver(options: { threads?: number; isa?: string; precision?: Precision } = {}): Driver {
  const addon = loadCpuAddon();
  const { threads = Math.min(availableParallelism(), DEFAULT_THREADS), isa = addon.isas[0] } = options;
  if (!Number.isInteger(threads) || threads < 1 || threads > MAXIMUM_THREADS)
    throw invalid('ERR_VALUE', 'threads', threads, `an integer from 1 to ${MAXIMUM_THREADS}`);
  if (!addon.isas.includes(isa))
    throw invalid('ERR_DEVICE_UNAVAILABLE', 'isa', isa, `one that this machine runs: ${alternatives(addon.isas)}`);
  const precision = options.precision === 'bf16' && addon.bfloat16Isas.includes(isa) ? 'bf16' : 'fp32';
  return typed(() => new addon.Context({ threads, isa, precision }));
}
