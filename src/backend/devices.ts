import { DesapError, invalid } from '../errors.js';
import type { Driver } from './driver.js';
import { createCpuDriver, loadCpuAddon } from './native.js';
import { createReferenceDriver } from './reference.js';

/**
 * `auto` takes the fastest that works here and says in `fallback` what it had to pass over; the others throw the reason
 * when they are not available. `reference` is plain JavaScript in float64.
 */
export type Device = 'auto' | 'cpu' | 'cuda' | `cuda:${number}` | 'reference';

/** An instruction set of the CPU device. */
export type Isa = 'scalar' | 'neon' | 'avx2' | 'avx512';

export interface DeviceOptions {
  /** Default `auto`. */
  device?: Device;
  /** CPU threads, the calling one counted; default: the available ones, at most 16. Results do not depend on it. */
  threads?: number;
  /** CPU instruction set; default: the best that this machine runs. */
  isa?: Isa;
}

/** One line of {@link devices}. */
export type DeviceReport =
  | { device: 'cpu' | 'reference'; available: true; description: string; isas?: readonly string[] }
  | { device: 'cpu' | 'cuda'; available: false; reason: string };

const NO_CUDA = 'this build of desap holds no CUDA addon';

/** What this installation and this machine offer. */
export function devices(): DeviceReport[] {
  return [
    describeCpu(),
    { device: 'cuda', available: false, reason: NO_CUDA },
    { device: 'reference', available: true, description: 'JavaScript, float64' },
  ];
}

function describeCpu(): DeviceReport {
  try {
    const { isas } = loadCpuAddon();
    return { device: 'cpu', available: true, description: `native kernels, ${isas[0]}`, isas };
  } catch (error) {
    return { device: 'cpu', available: false, reason: (error as Error).message };
  }
}

/** Opens a device. `fallback` says why `auto` took a slower one. */
export function openDriver({ device = 'auto', threads, isa }: DeviceOptions): {
  driver: Driver;
  fallback: string | null;
} {
  if (device === 'reference') return { driver: createReferenceDriver(), fallback: null };
  if (device === 'cpu') return { driver: createCpuDriver({ threads, isa }), fallback: null };
  if (/^cuda(:\d+)?$/.test(device)) throw new DesapError('ERR_DEVICE_UNAVAILABLE', `device: got ${device}: ${NO_CUDA}`);
  if (device !== 'auto')
    throw invalid('ERR_VALUE', 'device', device, "'auto', 'cpu', 'cuda', 'cuda:<index>' or 'reference'");
  try {
    return { driver: createCpuDriver({ threads, isa }), fallback: NO_CUDA };
  } catch (error) {
    if ((error as DesapError).code !== 'ERR_DEVICE_UNAVAILABLE' || isa !== undefined) throw error;
    return { driver: createReferenceDriver(), fallback: (error as Error).message };
  }
}
