import { types } from 'node:util';
import { alternatives, DesapError, invalid } from '../errors.js';
import { type OptionNames, options } from '../options.js';
import { nonEmpty, oneOf } from '../tensor.js';
import { warnOnce } from '../warn.js';
import type { CudaDevice } from './addon.js';
import { createCpuDriver, loadCpuAddon } from './cpu.js';
import { createCudaDriver, cudaStatus } from './cuda.js';
import { type Driver, type MaybePromise, PRECISIONS, type Precision } from './driver.js';
import { createReferenceDriver } from './reference.js';

/**
 * `auto` takes the fastest that works here and says in `fallback` what it had to pass over (and in a warning of the process, once,
 * when only JavaScript is left); the others throw the reason when they are not available. `cuda` is the first GPU, `cuda:1` another. `reference` is plain JavaScript in float64.
 */
export type Device = 'auto' | 'cpu' | 'cuda' | `cuda:${number}` | 'reference';

/** An instruction set of the CPU device. */
export type Isa = 'scalar' | 'neon' | 'neonbf16' | 'avx2' | 'avx512' | 'avx512bf16';

/** Where kernels run, and how exactly. */
export interface DeviceOptions {
  /** Default `auto`. */
  device?: Device;
  /**
   * The coarsest arithmetic that the caller accepts in products of matrices; everything else, and all sums, are float32:
   *
   * - `fp32` (default): float32 on the CPU; on a GPU operands split into two float16 numbers each, about float32. Scores and maps
   *   are within 1e-4 of the exact ones (of the largest magnitude in a tensor), and the same tokens are kept.
   * - `fp16`: operands rounded to float16 (11 bits) on a GPU.
   * - `bf16`: operands rounded to bfloat16 (8 bits), on a GPU and on processors that multiply them faster than float32
   *   (`avx512bf16`, `neonbf16`; Intel's do not, and compute in float32 unless `isa` names such a set).
   *
   * What a device has no faster arithmetic for, it computes as finely as it can; `precision` of a backend or pruner tells.
   * The reference computes in float64 whatever this says.
   */
  precision?: Precision;
  /** CPU threads, the calling one counted; default: the available ones, at most 16. Results do not depend on it. */
  threads?: number;
  /** CPU instruction set; default: the best that this machine runs. */
  isa?: Isa;
}

/** One line of {@link devices}: each GPU has its own. `isas`: best first; `bfloat16`: whether `bf16` rounds with the first. */
export type DeviceReport =
  | { device: 'cpu'; available: true; description: string; isas: readonly string[]; bfloat16: boolean }
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
    const { isas, bfloat16Isas } = loadCpuAddon();
    const bfloat16 = bfloat16Isas.includes(isas[0]);
    return { device: 'cpu', available: true, description: `native kernels, ${isas[0]}`, isas, bfloat16 };
  } catch (error) {
    return { device: 'cpu', available: false, reason: (error as Error).message };
  }
}

function describeCuda(): DeviceReport[] {
  const { available, reason, devices: gpus } = cudaStatus();
  if (!available) return [{ device: 'cuda', available: false, reason }];
  return gpus.map(({ index, name, capability, memory }) => {
    const description = `${name}, compute capability ${capability}, ${(memory / 2 ** 30).toFixed(0)} GiB`;
    return { device: `cuda:${index}`, available: true, description, name, capability, memory };
  });
}

export const DEVICE_OPTIONS: OptionNames<DeviceOptions> = { device: true, precision: true, threads: true, isa: true };

/** Those of an object's options that choose a device. */
export function deviceOptions({ device, precision, threads, isa }: DeviceOptions): DeviceOptions {
  return { device, precision, threads, isa };
}

/** Devices, for messages. */
const DEVICES = alternatives(['auto', 'cpu', 'cuda', 'cuda:<index>', 'reference']);

/** Former words for a precision. */
const RENAMED: Readonly<Record<string, Precision>> = { strict: 'fp32', fast: 'fp16' };

/** An open device. */
export interface OpenedDevice {
  readonly driver: Driver;
  /** Why `auto` passed over faster ones. */
  readonly fallback: string | null;
  /**
   * Opens the next of `auto` after this one, which is freed, could not make something; throws `error` where that is no way out. Null:
   * what this device cannot make, none makes.
   */
  readonly instead: ((error: unknown) => OpenedDevice) | null;
}

/** What was made on a device, and the device. */
export interface Made<T> {
  readonly made: T;
  readonly driver: Driver;
  readonly fallback: string | null;
}

/**
 * Opens a device and makes something on it. Where a device cannot make it, `auto` goes on to the next.
 *
 * @param argument what the caller knows the options by
 * @param read what it is made of. `again`: a later attempt may read that, after the call has returned
 */
export function openWith<I, T>(
  argument: string,
  given: DeviceOptions,
  read: (again: boolean) => I,
  make: (driver: Driver, input: I) => MaybePromise<T>,
): MaybePromise<Made<T>> {
  const first = openDevice(given, argument);
  const input = read(first.instead !== null);
  const attempt = ({ driver, fallback, instead }: OpenedDevice): MaybePromise<Made<T>> => {
    const next = (error: unknown) => {
      if (instead) return attempt(instead(error));
      driver.dispose();
      throw error;
    };
    try {
      const made = make(driver, input);
      if (types.isPromise(made)) return made.then((value) => ({ made: value as T, driver, fallback }), next);
      return { made: made as T, driver, fallback };
    } catch (error) {
      return next(error);
    }
  };
  return attempt(first);
}

interface Candidate {
  open(): Driver;
  /** Why `auto` passes it over after this error; null: it does not. */
  passedOver(error: DesapError): string | null;
  /** Whether it can fail at what others can make. */
  readonly limited: boolean;
}

/** @param argument what the caller knows the options by */
export function openDevice(given: DeviceOptions, argument = 'options'): OpenedDevice {
  const { device = 'auto', precision = 'fp32', threads, isa } = options(argument, given, DEVICE_OPTIONS);
  if (typeof precision === 'string' && Object.hasOwn(RENAMED, precision))
    throw invalid('ERR_VALUE', 'precision', precision, `'${RENAMED[precision]}', its name now`);
  oneOf('precision', precision, PRECISIONS);
  const cuda = (index?: number): Candidate => ({
    open: () => createCudaDriver({ device: index, precision }),
    limited: true,
    // Out of memory, a head that the GPU cannot take, or no GPU at all: the CPU may do.
    passedOver: ({ code, message }) => {
      if (code === 'ERR_INTERNAL') return null;
      return code === 'ERR_DEVICE_UNAVAILABLE' ? message : `cuda: ${message}`;
    },
  });
  const cpu: Candidate = {
    open: () => createCpuDriver({ threads, isa, precision }),
    limited: false,
    passedOver: ({ code, message }) => (code === 'ERR_DEVICE_UNAVAILABLE' && isa === undefined ? message : null),
  };
  const reference: Candidate = { open: createReferenceDriver, limited: false, passedOver: () => null };
  nonEmpty('device', device, DEVICES);
  const index = /^cuda:(\d+)$/.exec(device)?.[1];
  if (index !== undefined) return openFirst([cuda(Number(index))]);
  switch (device) {
    case 'auto':
      return openFirst([cuda(), cpu, reference]);
    case 'cuda':
      return openFirst([cuda()]);
    case 'cpu':
      return openFirst([cpu]);
    case 'reference':
      return openFirst([reference]);
  }
  throw invalid('ERR_VALUE', 'device', device, DEVICES);
}

/** Opens the first candidate that opens; `passed` says why those before it were not taken. */
function openFirst([candidate, ...others]: readonly Candidate[], passed: readonly string[] = []): OpenedDevice {
  const next = (error: unknown): OpenedDevice => {
    const reason = error instanceof DesapError && others.length > 0 ? candidate.passedOver(error) : null;
    if (reason === null) throw error;
    return openFirst(others, [...passed, reason]);
  };
  let driver: Driver;
  try {
    driver = candidate.open();
  } catch (error) {
    return next(error);
  }
  const another = (error: unknown) => {
    driver.dispose();
    return next(error);
  };
  const instead = candidate.limited && others.length > 0 ? another : null;
  const fallback = passed.join('; ') || null;
  if (fallback && driver.device === 'reference')
    warnOnce(
      'DESAP_REFERENCE',
      `device 'auto' computes with the JavaScript reference, hundreds of times slower than native kernels. ${fallback}`,
    );
  return { driver, fallback, instead };
}
