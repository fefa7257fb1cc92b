import type { NativeHostBuffer } from './devices/addon.js';
import { loadCpuAddon } from './devices/cpu.js';
import { availableCudaAddon, cudaStatus } from './devices/cuda.js';
import { typed } from './devices/native-error.js';
import { DISPOSE } from './dispose-symbols.js';
import { alternatives, DesapError, invalid } from './errors.js';
import { entries, options } from './options.js';
import { assertAlive, boolean, type FloatData, isArray, Tensor } from './tensor.js';

/** Element types of a {@link HostBuffer}'s tensors. */
export type HostType = 'float32' | 'float16';

/** Options of a {@link HostBuffer}. */
export interface HostBufferOptions {
  /**
   * Page-locked memory, which a GPU reads in place: `true` fails where there is none to have, `false` takes ordinary memory,
   * which the CPU reads in place. Default: page-locked where CUDA can be used and grants it.
   */
  pinned?: boolean;
}

const BYTES = { float32: 4, float16: 2 } as const;
const MOST_BYTES = 2 ** 46;

/** The memory of every buffer that asynchronous calls read in place. */
const IN_PLACE = new WeakSet<ArrayBufferLike>();

/** Whether asynchronous calls read the data in place: whether it is a {@link HostBuffer}'s. */
export function readInPlace(data: FloatData): boolean {
  return IN_PLACE.has(data.buffer);
}

/**
 * Memory that asynchronous calls read in place. Other memory they have to copy first, because a script can take it away
 * at any time; this one is counted natively and lasts until no call and no analysis reads it any more. It starts at a
 * 64-byte boundary, and is kept for the next buffer of its size when it is disposed of.
 *
 * Hand it to an ONNX Runtime session as the place of an output, and the output never has to be copied:
 *
 * ```ts
 * using buffer = HostBuffer.forTensor('float32', [1, 577, 1024]);
 * const hidden = buffer.tensor('float32', [1, 577, 1024]);
 * await session.run(feeds, { hidden_states: hidden });
 * const image = await pruner.analyze(hidden);
 * ```
 *
 * Two rules. After `session.run`, read the tensor that you passed, not the one that it returns, which is a copy. And do
 * not write into the buffer while an analysis of it lives: it reads the buffer whenever it merges.
 *
 * Where CUDA can be used, the memory is page-locked (`pinned`): the GPU then fetches it by itself, without a copy in between.
 * It belongs to one addon: a pruner on the CPU copies the memory of a pinned buffer first, as it does any other memory; for
 * that device ask for `{ pinned: false }`, which a GPU reads too, only slower.
 *
 * Its content is undefined at first. Without `dispose()` the garbage collector frees it; then nothing is reused soon.
 */
export class HostBuffer implements Disposable {
  readonly #native: NativeHostBuffer;
  #disposed = false;

  /** Length in bytes; 0 once disposed. */
  get byteLength(): number {
    return this.arrayBuffer.byteLength;
  }
  /** The memory, the same object each time; detached once disposed. */
  readonly arrayBuffer: ArrayBuffer;
  /** Address of the first byte, a multiple of 64 where it is {@link HostBuffer.inPlace}. */
  readonly address: bigint;

  /**
   * Whether asynchronous calls read the memory in place. False where the engine allows no ArrayBuffer over native memory, as
   * Electron's: the memory is V8's then, never page-locked, not pooled, aligned as V8 does it, and asynchronous calls copy it.
   */
  readonly inPlace: boolean;
  /** Whether the memory is page-locked, for a GPU to read in place. */
  readonly pinned: boolean;

  private constructor(byteLength: number, given: HostBufferOptions = {}) {
    if (!Number.isInteger(byteLength) || byteLength < 1 || byteLength > MOST_BYTES)
      throw invalid('ERR_VALUE', 'byteLength', byteLength, '1 to 2^46 bytes');
    const { pinned } = options('options', given, { pinned: true });
    if (pinned !== undefined) boolean('pinned', pinned);
    const cuda = pinned === false ? null : availableCudaAddon();
    if (pinned && !cuda)
      throw new DesapError('ERR_DEVICE_UNAVAILABLE', `pinned: got true, and there is no CUDA: ${cudaStatus().reason}`);
    const addon = cuda ?? loadCpuAddon();
    this.#native = typed(() => new addon.HostBuffer(byteLength));
    this.inPlace = this.#native.inPlace;
    this.pinned = this.#native.pinned;
    if (pinned && !this.pinned) {
      this.#native.dispose();
      throw this.inPlace
        ? new DesapError('ERR_OUT_OF_MEMORY', `HostBuffer: ${byteLength} bytes cannot be pinned`)
        : new DesapError('ERR_DEVICE_UNAVAILABLE', 'pinned: got true, and this engine allows no external memory');
    }
    this.arrayBuffer = this.#native.arrayBuffer;
    if (this.inPlace) IN_PLACE.add(this.arrayBuffer);
    this.address = addon.addressOf(new Uint8Array(this.arrayBuffer));
  }

  /**
   * @param byteLength 1 to 2^46 bytes
   * @throws DesapError `ERR_VALUE`, `ERR_OUT_OF_MEMORY`; `ERR_DEVICE_UNAVAILABLE` without the native addon, and for `pinned: true`
   *   without CUDA
   */
  static allocate(byteLength: number, options?: HostBufferOptions): HostBuffer {
    return new HostBuffer(byteLength, options);
  }

  /**
   * Room for one tensor.
   * @throws DesapError as {@link HostBuffer.allocate}; `ERR_DTYPE`, `ERR_SHAPE` for the type and the extents
   */
  static forTensor(type: HostType, dims: readonly number[], options?: HostBufferOptions): HostBuffer {
    return new HostBuffer(elementCount(type, dims) * BYTES[type], options);
  }

  /** Whether {@link HostBuffer.dispose} was called. */
  get disposed(): boolean {
    return this.#disposed;
  }

  /**
   * The memory as float32 numbers. A view: writing it writes the buffer.
   * @param offset in bytes, a multiple of 4; default 0
   * @param length in elements; default: up to the end
   * @throws DesapError `ERR_DISPOSED`; `ERR_DETACHED` when the arrayBuffer was transferred; `ERR_VALUE` where the view would not lie
   *   within the buffer
   */
  float32(offset = 0, length?: number): Float32Array {
    return this.#view(Float32Array, 4, offset, length);
  }

  /** The memory as the bits of float16 numbers; as {@link HostBuffer.float32}, with offsets that are multiples of 2. */
  uint16(offset = 0, length?: number): Uint16Array {
    return this.#view(Uint16Array, 2, offset, length);
  }

  /**
   * An onnxruntime tensor over the memory, for a session's `fetches` or for `Pruner.analyze`. float16 is a `Uint16Array`,
   * or a `Float16Array` where the runtime has one.
   * @param byteOffset where it begins, a multiple of the element size; default 0
   * @throws DesapError `ERR_DISPOSED`, `ERR_DETACHED`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_VALUE`
   */
  tensor(type: HostType, dims: readonly number[], byteOffset = 0): Tensor {
    const length = elementCount(type, dims);
    const data = type === 'float32' ? this.float32(byteOffset, length) : this.uint16(byteOffset, length);
    return new Tensor(type, data as Float32Array, dims);
  }

  /**
   * Detaches the ArrayBuffer, so that its views are empty from now on, and gives the memory back as soon as no call and
   * no analysis reads it. Safe to call again.
   */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#native.dispose();
  }

  [DISPOSE](): void {
    this.dispose();
  }

  #view<T>(
    View: new (buffer: ArrayBuffer, offset: number, length: number) => T,
    size: number,
    offset: number,
    length?: number,
  ): T {
    assertAlive('HostBuffer', !this.#disposed);
    // No buffer begins empty.
    if (this.byteLength === 0)
      throw new DesapError(
        'ERR_DETACHED',
        'HostBuffer: its arrayBuffer was transferred to someone else, who has the memory now',
      );
    if (!Number.isInteger(offset) || offset < 0 || offset % size !== 0 || offset > this.byteLength)
      throw invalid('ERR_VALUE', 'offset', offset, `a multiple of ${size} from 0 to ${this.byteLength} bytes`);
    const room = this.byteLength - offset;
    const count = length ?? Math.floor(room / size);
    if (!Number.isInteger(count) || count < 0 || count * size > room)
      throw invalid(
        'ERR_VALUE',
        'length',
        count,
        `at most the ${Math.floor(room / size)} elements behind offset ${offset}`,
      );
    return new View(this.arrayBuffer, offset, count);
  }
}

function elementCount(type: HostType, dims: readonly number[]): number {
  if (typeof type !== 'string' || !Object.hasOwn(BYTES, type))
    throw invalid('ERR_DTYPE', 'type', type, alternatives(Object.keys(BYTES)));
  const extents = isArray(dims) ? entries('dims', dims as readonly number[]) : [];
  if (!isArray(dims) || extents.some((extent) => !Number.isSafeInteger(extent) || extent < 1))
    throw invalid('ERR_SHAPE', 'dims', dims, 'positive integers');
  return extents.reduce((product, extent) => product * extent, 1);
}
