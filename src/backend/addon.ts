/** The typed surface of the native addons, the same for the CPU and the CUDA one. Implemented by native/binding. */
import type { Driver } from './driver.js';

/** A native memory block: 64-byte aligned, refcounted, pooled. */
export interface NativeHostBuffer {
  /** External ArrayBuffer over the block; the same object each time. */
  readonly arrayBuffer: ArrayBuffer;
  /** Detaches the ArrayBuffer and gives the block back once no job and no analysis holds it. */
  dispose(): void;
}

/** A device with its threads, ready to run kernels. */
export interface NativeContext extends Driver {
  readonly threads: number;
  readonly isa: string;
}

export interface Addon {
  readonly kind: 'cpu' | 'cuda';
  /** Instruction sets that this binary holds and this machine runs, best first. */
  readonly isas: readonly string[];
  readonly HostBuffer: new (byteLength: number) => NativeHostBuffer;
  readonly Context: new (options: { threads: number; isa: string }) => NativeContext;
  /** Address of a view's first byte, for tests of zero-copy. */
  addressOf(view: ArrayBufferView): bigint;
  /** Blocks and bytes: in use, and waiting in the pool. */
  hostMemory(): { blocks: number; bytes: number; pooledBlocks: number; pooledBytes: number };
}
