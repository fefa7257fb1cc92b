import type { ImageAnalysis, TensorLike } from '../index.js';
import { Once } from '../once.js';
import { type HostMemory, hostMemory } from './host-memory.js';
import { resultOf, settled } from './settled.js';

/** Hidden states of the images that one run of a tower encoded, and their analyses: freed with the last of the images. */
export class TowerBatch {
  readonly #memory: HostMemory;
  #images: number;
  readonly #entering = new Map<number, Float32Array>();
  readonly #analyses = new Once<{ each: PromiseSettledResult<ImageAnalysis>[]; milliseconds: number }>();

  /**
   * @param device where the pruner runs
   * @throws DesapError `ERR_OUT_OF_MEMORY`
   */
  constructor(
    readonly dims: readonly [images: number, rows: number, width: number],
    device: string,
  ) {
    this.#memory = hostMemory(dims, device);
    this.#images = dims[0];
  }

  /** [B, N, D], in memory that the pruner reads in place. */
  get data(): Float32Array {
    return this.#memory.data;
  }

  /** What one image takes: its hidden states in front of each tapped block too, and an analysis with rows [N, projectionDim]. */
  byteLength(projectionDim: number): number {
    const [, rows, width] = this.dims;
    return 4 * rows * (width * (1 + this.#entering.size) + projectionDim + 1);
  }

  /** The hidden states of one image, [N, D], in the same memory. */
  rows(image: number): TensorLike & { data: Float32Array } {
    const [, rows, width] = this.dims;
    const size = rows * width;
    return { data: this.data.subarray(image * size, (image + 1) * size), dims: [rows, width] };
  }

  /** Hidden states that enter a tapped block, [n, N, D], of the images from `first` on. */
  tapped(block: number, states: Float32Array, first: number): void {
    const [images, rows, width] = this.dims;
    const all = this.#entering.get(block) ?? new Float32Array(images * rows * width);
    all.set(states, first * rows * width);
    this.#entering.set(block, all);
  }

  /** Those of one image, [N, D]. */
  entering(block: number, image: number): TensorLike & { data: Float32Array } {
    const [, rows, width] = this.dims;
    const size = rows * width;
    const all = this.#entering.get(block) as Float32Array;
    return { data: all.subarray(image * size, (image + 1) * size), dims: [rows, width] };
  }

  /** Analyses all images in one go, once; the milliseconds are one image's share. */
  async analyze(
    image: number,
    analyzeBatch: (images: readonly TensorLike[]) => Promise<ImageAnalysis[]>,
  ): Promise<{ analysis: ImageAnalysis; milliseconds: number }> {
    const { each, milliseconds } = await this.#analyses.get(async () => {
      const start = performance.now();
      const images = Array.from({ length: this.dims[0] }, (_, i) => this.rows(i));
      const each = await settled(images, analyzeBatch);
      return { each, milliseconds: (performance.now() - start) / images.length };
    });
    return { analysis: resultOf(each[image]), milliseconds };
  }

  /** An image needs it no more. */
  async release(): Promise<void> {
    if (--this.#images > 0) return;
    for (const one of (await this.#analyses.made())?.each ?? []) if (one.status === 'fulfilled') one.value.dispose();
    this.#memory.free();
  }

  /** No image was made of it. */
  discard(): void {
    this.#memory.free();
  }
}
