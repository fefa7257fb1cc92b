/** The CUDA device: finds and loads its addon. It loads without a driver, and then says what is missing. */
import { existsSync, readdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { DesapError } from '../errors.js';
import { bundleAdvice, nodeRequire, packageRoot } from '../package.js';
import type { CudaAddon, CudaStatus } from './addon.js';
import type { Driver, Precision } from './driver.js';
import { typed } from './native-error.js';

/** Jobs under way at the same time: while one computes, the next one's memory travels. */
const STREAMS = 2;

let found: { addon: CudaAddon | null; status: CudaStatus } | undefined;

/** The addon where it loads, and whether CUDA can be used. Looked for once. */
function cuda(): { addon: CudaAddon | null; status: CudaStatus } {
  found ??= findCudaAddon(packageRoot());
  return found;
}

/**
 * The CUDA addon of the package at `root`: the file that DESAP_CUDA_ADDON names, else the one built here
 * (build-cuda/Release), else the prebuilt one of this platform. No root: this runs from a bundle.
 */
export function findCudaAddon(root: string | null): { addon: CudaAddon | null; status: CudaStatus } {
  const unavailable = (reason: string) => ({ addon: null, status: { available: false, reason, devices: [] } });
  const file = addonFile(root);
  if (file === null && root === null) return unavailable(`no CUDA addon: ${bundleAdvice('DESAP_CUDA_ADDON')}`);
  if (file === null)
    return unavailable(
      `no CUDA addon for ${process.platform}-${process.arch} in this install (npm run build:cuda makes one; npm run fetch:cuda has the compiler)`,
    );
  try {
    const addon = nodeRequire(file) as CudaAddon;
    return { addon, status: addon.status() };
  } catch (error) {
    return unavailable(`the CUDA addon ${file} does not load: ${(error as Error).message.split('\n')[0]}`);
  }
}

function addonFile(root: string | null): string | null {
  if (process.env.DESAP_CUDA_ADDON) return resolve(process.env.DESAP_CUDA_ADDON);
  if (root === null) return null;
  const built = join(root, 'build-cuda', 'Release', 'desap_cuda.node');
  if (existsSync(built)) return built;
  // A folder of its own: beside the CPU addon, node-gyp-build would take it for that.
  const folder = join(root, 'prebuilds', `${process.platform}-${process.arch}`, 'cuda');
  const prebuilt = existsSync(folder) && readdirSync(folder).find((name) => name.endsWith('.node'));
  return prebuilt ? join(folder, prebuilt) : null;
}

/** The addon, where CUDA can be used. */
export function availableCudaAddon(): CudaAddon | null {
  const { addon, status } = cuda();
  return status.available ? addon : null;
}

/** Whether CUDA can be used here, why not, and the GPUs. Never throws. */
export function cudaStatus(): CudaStatus {
  return cuda().status;
}

/**
 * Opens a GPU.
 *
 * @param options `device`: its index, default the first that can be used; `precision`: default `fp32`
 * @throws DesapError `ERR_DEVICE_UNAVAILABLE` with the reason; `ERR_OUT_OF_MEMORY`, `ERR_DEVICE_FAILED`, `ERR_DEVICE_LOST`
 */
export function createCudaDriver(options: { device?: number; precision?: Precision } = {}): Driver {
  const { addon, status } = cuda();
  const { device = status.devices[0]?.index ?? 0, precision = 'fp32' } = options;
  const name = options.device === undefined ? 'cuda' : `cuda:${device}`;
  const unavailable = (reason: string) => new DesapError('ERR_DEVICE_UNAVAILABLE', `${name}: ${reason}`);
  if (!addon || !status.available) throw unavailable(status.reason);
  if (!status.devices.some(({ index }) => index === device))
    throw unavailable(
      `there ${status.devices.length === 1 ? 'is 1 CUDA device' : `are ${status.devices.length} CUDA devices`} to use here: ` +
        status.devices.map(({ index, name }) => `cuda:${index} (${name})`).join(', '),
    );
  return typed(() => new addon.Context({ device, precision, streams: STREAMS }));
}
