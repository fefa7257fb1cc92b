import { DesapError, HostBuffer } from '../index.js';

/** float32 memory that sessions write into and kernels read in place. */
export interface HostMemory {
  readonly data: Float32Array;
  /** Whether kernels read and write it in place. */
  readonly inPlace: boolean;
  /** Gives it back. Safe to call again. */
  free(): void;
}

/**
 * A `HostBuffer`; without the native addon, where JavaScript reads any memory in place, ordinary memory.
 *
 * @param device where the kernels run
 * @throws DesapError `ERR_OUT_OF_MEMORY`
 */
export function hostMemory(dims: readonly number[], device: string): HostMemory {
  try {
    const buffer = HostBuffer.forTensor('float32', dims, device.startsWith('cuda') ? {} : { pinned: false });
    return { data: buffer.float32(), inPlace: buffer.inPlace, free: () => buffer.dispose() };
  } catch (error) {
    if (!(error instanceof DesapError) || error.code !== 'ERR_DEVICE_UNAVAILABLE') throw error;
    const length = dims.reduce((product, extent) => product * extent, 1);
    return { data: new Float32Array(length), inPlace: false, free: () => {} };
  }
}
