import type { DeviceOptions } from '../index.js';

/** Those of an object's options that choose a device. */
export function deviceOptions({ device, precision, threads, isa }: DeviceOptions): DeviceOptions {
  return { device, precision, threads, isa };
}
