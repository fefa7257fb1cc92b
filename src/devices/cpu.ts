/** The CPU device: finds and loads its addon. And for every native addon: its errors get this package's type and words. */
import { existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import { types } from 'node:util';
import { DesapError, type DesapErrorCode, invalid, notFinite } from '../errors.js';
import { bundleAdvice, nodeRequire, packageRoot, resolvePackage } from '../package.js';
import type { CpuAddon, NativeContext } from './addon.js';
import type { Driver, DriverAnalysis, DriverError, DriverHead, MaybePromise, Precision } from './driver.js';

/** More threads than this serve no image. */
const MAXIMUM_THREADS = 256;
const DEFAULT_THREADS = 16;
const BUILD = 'build it with: npm run build:native (needs a C++17 compiler and Python)';

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
    const tried = existsSync(`${root}/prebuilds`) ? 'build/Release and prebuilds' : 'build/Release (and no prebuilds)';
    throw new DesapError(
      'ERR_DEVICE_UNAVAILABLE',
      `cpu: no native addon for ${process.platform}-${process.arch} in ${root} (tried ${tried}); ${BUILD}`,
      { cause },
    );
  }
}

/**
 * Opens the CPU device.
 *
 * @param options `threads`: 1 to 256, default the available ones, at most 16; `isa`: default the best of this machine;
 *   `precision`: `bf16` takes effect where the instruction set multiplies such numbers, otherwise it is float32; `names`: words for the native side's names of inputs in messages
 * @throws DesapError `ERR_VALUE`, `ERR_DEVICE_UNAVAILABLE`, `ERR_OUT_OF_MEMORY`
 */
export function createCpuDriver(
  options: { threads?: number; isa?: string; precision?: Precision; names?: Readonly<Record<string, string>> } = {},
): Driver {
  const addon = loadCpuAddon();
  const {
    threads = Math.min(availableParallelism(), DEFAULT_THREADS),
    isa = addon.isas[0],
    precision,
    names = {},
  } = options;
  if (!Number.isInteger(threads) || threads < 1 || threads > MAXIMUM_THREADS)
    throw invalid('ERR_VALUE', 'threads', threads, `an integer from 1 to ${MAXIMUM_THREADS}`);
  if (!addon.isas.includes(isa))
    throw invalid('ERR_DEVICE_UNAVAILABLE', 'isa', isa, `one that this machine runs: ${addon.isas.join(', ')}`);
  const bfloat16 = precision === 'bf16' && addon.bfloat16Isas.includes(isa);
  const guard = guarding(names);
  return wrapDriver(
    guard(() => new addon.Context({ threads, isa, bfloat16 })),
    bfloat16 ? 'bf16' : 'float32',
    guard,
  );
}

/** A native context as a driver. */
export function wrapDriver(native: NativeContext, precision: Driver['precision'], guard: Guard): Driver {
  return {
    kind: native.kind,
    description: native.description,
    precision,
    run: (kernel, args, sync) => guard(() => native.run(kernel, args, sync)),
    createHead: async (weights) => {
      const head = await guard(() => native.createHead(weights));
      return {
        analyze: (images, request, sync) => guard(() => wrapAll(head.analyze(images, request, sync), guard)),
        prune: (images, requests, options, sync) => guard(() => head.prune(images, requests, options, sync)),
        dispose: () => head.dispose(),
      } satisfies DriverHead;
    },
    dispose: () => native.dispose(),
  };
}

export type Guard = <T>(call: () => T) => T;

/** Runs a native call; its error, thrown or rejected with, becomes a {@link DesapError}. */
export function guarding(names: Readonly<Record<string, string>>): Guard {
  return <T>(call: () => T): T => {
    try {
      const result = call();
      return types.isPromise(result) ? (settled(result, names) as T) : result;
    } catch (error) {
      throw desapError(error, names);
    }
  };
}

/** An async function, so that the error's stack names the functions that awaited it. */
async function settled<T>(result: Promise<T>, names: Readonly<Record<string, string>>): Promise<T> {
  try {
    return await result;
  } catch (error) {
    throw desapError(error, names);
  }
}

function wrapAll(analyses: MaybePromise<DriverAnalysis[]>, guard: Guard): MaybePromise<DriverAnalysis[]> {
  const wrap = (all: DriverAnalysis[]) => all.map((analysis) => new NativeAnalysis(analysis, guard));
  return types.isPromise(analyses) ? analyses.then(wrap) : wrap(analyses);
}

class NativeAnalysis implements DriverAnalysis {
  readonly tokens: number;
  readonly patches: number;
  readonly width: number;
  readonly timings: DriverAnalysis['timings'];
  readonly featuresAddress: bigint;

  constructor(
    private readonly native: DriverAnalysis,
    private readonly guard: Guard,
  ) {
    this.tokens = native.tokens;
    this.patches = native.patches;
    this.width = native.width;
    this.timings = native.timings;
    this.featuresAddress = native.featuresAddress;
  }

  embedding = () => this.guard(() => this.native.embedding());
  saliency = () => this.guard(() => this.native.saliency());
  intermediates = () => this.guard(() => this.native.intermediates());
  prune: DriverAnalysis['prune'] = (request, sync) => this.guard(() => this.native.prune(request, sync));
  dispose = () => this.native.dispose();
}

/** A native error as a {@link DesapError} whose message begins with the argument, by its name in `names` where it has one. */
export function desapError(error: unknown, names: Readonly<Record<string, string>> = {}): unknown {
  if (!types.isNativeError(error) || error instanceof DesapError) return error;
  const { code, argument, row, image, message } = error as DriverError;
  if (!code?.startsWith('ERR_')) return new DesapError('ERR_INTERNAL', `native addon: ${message}`, { cause: error });
  const name = argument && (names[argument] ?? argument);
  if (name && row !== undefined) return notFinite(name, row, image);
  return new DesapError(code as DesapErrorCode, name ? `${name}: ${message}` : message, { cause: error });
}
