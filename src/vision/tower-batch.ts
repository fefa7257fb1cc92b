import { DesapError, HostBuffer, type ImageAnalysis, type TensorLike } from '../index.js';
import type { Analyzed } from './image-base.js';
import { Once } from './once.js';

/** Hidden states of the images that one run of a tower encoded, and their analyses: freed with the last of the images. */
export class TowerBatch {
  /** [B, N, D], in memory that the pruner reads in place. */
  readonly data: Float32Array;
  readonly #free: () => void;
  #images: number;
  readonly #analyses = new Once<Analyzed[]>();

  /**
   * @param device where the pruner runs
   * @throws DesapError `ERR_OUT_OF_MEMORY`
   */
  constructor(
    readonly dims: readonly [images: number, rows: number, width: number],
    device: string,
  ) {
    const { data, free } = hiddenMemory(dims, device);
    this.data = data;
    this.#free = free;
    this.#images = dims[0];
  }

  /** The hidden states of one image, [N, D], in the same memory. */
  rows(image: number): TensorLike & { data: Float32Array } {
    const [, rows, width] = this.dims;
    const size = rows * width;
    return { data: this.data.subarray(image * size, (image + 1) * size), dims: [rows, width] };
  }

  /** Analyses all images in one go, once. */
  async analyze(
    image: number,
    analyzeBatch: (images: readonly TensorLike[]) => Promise<ImageAnalysis[]>,
  ): Promise<Analyzed> {
    const analyzed = await this.#analyses.get(async () => {
      const start = performance.now();
      const [count] = this.dims;
      const analyses = await analyzeBatch(Array.from({ length: count }, (_, i) => this.rows(i)));
      const milliseconds = (performance.now() - start) / count;
      return analyses.map((analysis) => ({ analysis, milliseconds }));
    });
    return analyzed[image];
  }

  /** An image needs it no more. */
  async release(): Promise<void> {
    if (--this.#images > 0) return;
    for (const { analysis } of (await this.#analyses.made()) ?? []) analysis.dispose();
    this.#free();
  }

  /** No image was made of it. */
  discard(): void {
    this.#free();
  }
}

/** A `HostBuffer`; without the native addon, where JavaScript reads any memory in place, ordinary memory. */
function hiddenMemory(dims: readonly number[], device: string): { data: Float32Array; free: () => void } {
  try {
    const buffer = HostBuffer.forTensor('float32', dims, device.startsWith('cuda') ? {} : { pinned: false });
    return { data: buffer.float32(), free: () => buffer.dispose() };
  } catch (error) {
    if (!(error instanceof DesapError) || error.code !== 'ERR_DEVICE_UNAVAILABLE') throw error;
    const length = dims.reduce((product, extent) => product * extent, 1);
    return { data: new Float32Array(length), free: () => {} };
  }
}
