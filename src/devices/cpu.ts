/** The CPU device: finds and loads its addon. */
import { existsSync, readdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import { alternatives, DesapError, invalid } from '../errors.js';
import { bundleAdvice, nodeRequire, packageRoot, resolvePackage } from '../package.js';
import type { CpuAddon } from './addon.js';
import type { Driver, Precision } from './driver.js';
import { typed } from './native-error.js';

/** More threads than this serve no image. */
const MAXIMUM_THREADS = 256;
const DEFAULT_THREADS = 16;
const BUILD =
  'compile one in your project: npm install node-addon-api && npm explore desap -- npx cmake-js compile --target desap ' +
  '(needs g++ or clang, make and CMake)';

let loaded: CpuAddon | undefined;

/**
 * The CPU addon: the file that DESAP_CPU_ADDON names, else the one built here (build/Release), else the prebuilt one of this
 * platform.
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
      `cpu: the native addon ${file} does not load: ${(cause as Error).message.split('\n')[0]}; ${BUILD}`,
      { cause },
    );
  }
}

function addonFile(root: string | null): string {
  if (root === null)
    throw new DesapError('ERR_DEVICE_UNAVAILABLE', `cpu: no native addon: ${bundleAdvice('DESAP_CPU_ADDON')}`);
  try {
    const gyp = nodeRequire(resolvePackage('node-gyp-build', join(root, 'package.json')) ?? 'node-gyp-build');
    return (gyp as { path(root: string): string }).path(root);
  } catch (cause) {
    const [reason] = (cause as Error).message.split('\n');
    throw new DesapError(
      'ERR_DEVICE_UNAVAILABLE',
      `cpu: no native addon in ${root}: ${reason} (prebuilt ones: ${prebuilt(root)}); ${BUILD}`,
      { cause },
    );
  }
}

/** The addons that the package carries: `darwin-arm64/desap.node, linux-x64/desap.glibc.node, ...` */
function prebuilt(root: string): string {
  const folder = join(root, 'prebuilds');
  const files = existsSync(folder) ? readdirSync(folder, { encoding: 'utf8', recursive: true }) : [];
  return (
    files
      .filter((name) => /desap\..*node$/.test(name))
      .sort()
      .join(', ') || 'none'
  );
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
