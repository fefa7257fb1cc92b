/** The typed surface of the native addons. Implemented by native/binding, the same for the CPU and for CUDA. */
import type { Driver, Precision } from './driver.js';

/** A native memory block: 64-byte aligned, refcounted, pooled. Where it is not `inPlace`, an ordinary ArrayBuffer. */
export interface NativeHostBuffer {
  /** ArrayBuffer over the block; the same object each time. */
  readonly arrayBuffer: ArrayBuffer;
  /** Whether calls read the block in place: false where the engine allows no ArrayBuffer over native memory (Electron). */
  readonly inPlace: boolean;
  /** Whether the block is page-locked, for a GPU to read in place. */
  readonly pinned: boolean;
  /** Detaches the ArrayBuffer and gives the block back once no job and no analysis holds it. */
  dispose(): void;
}

interface Addon<Options> {
  readonly HostBuffer: new (byteLength: number) => NativeHostBuffer;
  /** A device, ready to run kernels. */
  readonly Context: new (
    options: Options,
  ) => Driver;
  /** Address of a view's first byte, for tests of zero-copy. */
  addressOf(view: ArrayBufferView): bigint;
  /** A variable of the process as native code reads it. `process.env` of a worker, and of Bun, is a copy. */
  environmentVariable(name: string): string | undefined;
  /** Sets one there. Other threads may not read the environment meanwhile. */
  setEnvironmentVariable(name: string, value: string): void;
  /** Blocks and bytes: in use, and waiting in the pool. */
  hostMemory(): { blocks: number; bytes: number; pooledBlocks: number; pooledBytes: number };
}

export interface CpuAddon extends Addon<{ threads: number; isa: string; precision: Precision }> {
  readonly kind: 'cpu';
  /** Instruction sets that this binary holds and this machine runs, best first. */
  readonly isas: readonly string[];
  /** Those among them that multiply bfloat16 numbers. */
  readonly bfloat16Isas: readonly string[];
}

export interface CudaAddon extends Addon<{ device: number; precision: Precision; streams: number }> {
  readonly kind: 'cuda';
  status(): CudaStatus;
}

/** Whether CUDA can be used here. */
export interface CudaStatus {
  readonly available: boolean;
  /** Why not; empty when it is available. */
  readonly reason: string;
  /** Those that can be used. */
  readonly devices: readonly CudaDevice[];
}

/** A GPU. */
export interface CudaDevice {
  readonly index: number;
  readonly name: string;
  /** Compute capability, for example `9.0`. */
  readonly capability: string;
  /** Bytes of device memory. */
  readonly memory: number;
}
