import { DesapError, invalid } from '../errors.js';
import { oneOf } from '../tensor.js';
import type { CudaDevice } from './addon.js';
import { createCudaDriver, cudaStatus } from './cuda.js';
import { type Driver, PRECISIONS, type Precision } from './driver.js';
import { createCpuDriver, loadCpuAddon } from './native.js';
import { createReferenceDriver } from './reference.js';

/**
 * `auto` takes the fastest that works here and says in `fallback` what it had to pass over; the others throw the reason
 * when they are not available. `cuda` is the first card, `cuda:1` another. `reference` is plain JavaScript in float64.
 */
export type Device = 'auto' | 'cpu' | 'cuda' | `cuda:${number}` | 'reference';

/** An instruction set of the CPU device. */
export type Isa = 'scalar' | 'neon' | 'avx2' | 'avx512';

export interface DeviceOptions {
  /** Default `auto`. */
  device?: Device;
  /**
   * The coarsest arithmetic that the caller accepts. It decides how a card multiplies matrices; everything else, and all sums,
   * are float32 there:
   *
   * - `strict` (default): operands split into two float16 numbers each, about float32. Scores and maps are within 1e-4 of
   *   the exact ones (of the largest magnitude in a tensor), as on the CPU, and the same tokens are kept.
   * - `fast`: operands rounded to float16 (11 bits).
   * - `bf16`: operands rounded to bfloat16 (8 bits).
   *
   * The CPU computes in float32 and the reference in float64 whatever this says.
   */
  precision?: Precision;
  /** CPU threads, the calling one counted; default: the available ones, at most 16. Results do not depend on it. */
  threads?: number;
  /** CPU instruction set; default: the best that this machine runs. */
  isa?: Isa;
}

/** One line of {@link devices}: each card has its own. */
export type DeviceReport =
  | { device: 'cpu'; available: true; description: string; isas: readonly string[] }
  | ({ device: `cuda:${number}`; available: true; description: string } & Omit<CudaDevice, 'index'>)
  | { device: 'reference'; available: true; description: string }
  | { device: 'cpu' | 'cuda'; available: false; reason: string };

/** What this installation and this machine offer. */
export function devices(): DeviceReport[] {
  return [
    describeCpu(),
    ...describeCuda(),
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

function describeCuda(): DeviceReport[] {
  const { available, reason, devices: cards } = cudaStatus();
  if (!available) return [{ device: 'cuda', available: false, reason }];
  return cards.map(({ index, name, capability, memory }) => {
    const description = `${name}, compute capability ${capability}, ${(memory / 2 ** 30).toFixed(0)} GiB`;
    return { device: `cuda:${index}`, available: true, description, name, capability, memory };
  });
}

/** A device, and what was made on it. `fallback` says why `auto` took a slower one. */
export interface OpenedDevice<T> {
  readonly driver: Driver;
  readonly made: T;
  readonly fallback: string | null;
}

/** Opens a device and makes something on it, for example a head; `auto` goes on where a card cannot do either. */
export function openDevice<T>(options: DeviceOptions, make: (driver: Driver) => T): OpenedDevice<T> {
  const { device = 'auto', threads, isa } = options;
  const precision = oneOf('precision', options.precision ?? 'strict', PRECISIONS);
  const cuda = (index?: number) => making(createCudaDriver({ device: index, precision }), make);
  const cpu = () => making(createCpuDriver({ threads, isa }), make);
  const reference = () => making(createReferenceDriver(), make);
  if (device === 'reference') return { ...reference(), fallback: null };
  if (device === 'cpu') return { ...cpu(), fallback: null };
  if (device === 'cuda') return { ...cuda(), fallback: null };
  const index = /^cuda:(\d+)$/.exec(device)?.[1];
  if (index !== undefined) return { ...cuda(Number(index)), fallback: null };
  if (device !== 'auto')
    throw invalid('ERR_VALUE', 'device', device, "'auto', 'cpu', 'cuda', 'cuda:<index>' or 'reference'");

  let passed: string;
  try {
    return { ...cuda(), fallback: null };
  } catch (error) {
    // Out of memory, a head that the card cannot take, or no card at all: the CPU may do.
    if (!(error instanceof DesapError) || error.code === 'ERR_INTERNAL') throw error;
    passed = error.code === 'ERR_DEVICE_UNAVAILABLE' ? error.message : `cuda: ${error.message}`;
  }
  try {
    return { ...cpu(), fallback: passed };
  } catch (error) {
    if ((error as DesapError).code !== 'ERR_DEVICE_UNAVAILABLE' || isa !== undefined) throw error;
    return { ...reference(), fallback: `${passed}; ${(error as Error).message}` };
  }
}

function making<T>(driver: Driver, make: (driver: Driver) => T): { driver: Driver; made: T } {
  try {
    return { driver, made: make(driver) };
  } catch (error) {
    driver.dispose();
    throw error;
  }
}
