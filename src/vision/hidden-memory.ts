import { DesapError, HostBuffer } from '../index.js';

/** Float32 memory for hidden states, with what gives it back. */
export interface HiddenMemory {
  readonly data: Float32Array;
  dispose(): void;
}

/**
 * Memory that the native pruner reads in place: a `HostBuffer`. Without the native addon, where JavaScript reads any memory
 * in place, ordinary memory.
 *
 * @throws DesapError `ERR_OUT_OF_MEMORY`
 */
export function hiddenMemory(dims: readonly number[], device: string): HiddenMemory {
  try {
    const buffer = HostBuffer.forTensor('float32', dims, device.startsWith('cuda') ? {} : { pinned: false });
    return { data: buffer.float32(), dispose: () => buffer.dispose() };
  } catch (error) {
    if (!(error instanceof DesapError) || error.code !== 'ERR_DEVICE_UNAVAILABLE') throw error;
    const length = dims.reduce((product, extent) => product * extent, 1);
    return { data: new Float32Array(length), dispose: () => {} };
  }
}
