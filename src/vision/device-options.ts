import type { DeviceOptions } from '../index.js';
import type { OptionNames } from '../options.js';

export const DEVICE_OPTIONS: OptionNames<DeviceOptions> = { device: true, precision: true, threads: true, isa: true };

/** Those of an object's options that choose a device. */
export function deviceOptions({ device, precision, threads, isa }: DeviceOptions): DeviceOptions {
  return { device, precision, threads, isa };
}
