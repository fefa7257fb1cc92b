import type { Tensor } from 'onnxruntime-common';
import { type Backend, ImageAnalysis, type TextEmbeddings } from '../index.js';
import { float32 } from '../tensor.js';
import { type Analyzed, EncodedImageBase, type ImageOwner, type Kept, tokensOf } from './image-base.js';
import { plainLayout } from './layout.js';
import { meanRows } from './mean-rows.js';
import { taskText } from './task-text.js';
import type { Tile } from './vision-model.js';
import type { Part } from './whole-image.js';

/** What the tower says of P visual tokens, in the grid's order. */
export interface Encoded {
  /** [P, W]. */
  readonly features: Float32Array;
  /** The columns of the last block, [P, W'], where the features have others too; otherwise null. */
  readonly alike: Float32Array | null;
  /** The decoupled attention in the language model's space, [P, W']. */
  readonly rows: Float32Array;
  /** [P]. */
  readonly saliency: Float32Array;
}

/** One encoded image, or video, for many questions; made by `QwenVision.encode`. */
export class QwenImage extends EncodedImageBase {
  /** @internal */
  constructor(
    private readonly vision: ImageOwner & { readonly backend: Backend },
    private readonly encoded: Encoded,
    /** One for each frame. */
    tiles: readonly Tile[],
    milliseconds: number,
  ) {
    const layout = plainLayout(
      tiles,
      tiles.map(({ rows, columns }) => rows * columns),
    );
    super('QwenImage', vision, { layout, form: 'llm', isJoint: true, milliseconds });
  }

  protected async makeAnalyses(parts: readonly Part[]): Promise<Analyzed> {
    const { features, alike, rows, saliency } = this.encoded;
    const start = performance.now();
    const analyses = parts.map(({ places }) => {
      const of = (all: Float32Array) => {
        const width = all.length / this.tokenCount;
        const own = all.subarray(places[0] * width, (places[0] + places.length) * width);
        return float32(own, [places.length, width]);
      };
      const own = { patchEmbeddings: of(rows), saliency: of(saliency).data as Float32Array };
      return ImageAnalysis.from({ ...own, features: of(alike ?? features) }, this.vision.backend);
    });
    return { analyses: await Promise.all(analyses), milliseconds: performance.now() - start };
  }

  protected override comparable(text: TextEmbeddings): TextEmbeddings {
    return taskText(text, this.encoded.rows.length / this.tokenCount);
  }

  /** Packed features are compared by the last block's columns, and merged whole. */
  protected async connect(kept: readonly Kept[]): Promise<Tensor> {
    const { features, alike } = this.encoded;
    const width = features.length / this.tokenCount;
    let first = 0;
    const whole = kept.map((part) => {
      if (!alike) return part;
      const own = features.subarray(first * width, (first += part.assignment.length) * width);
      return { ...part, tokens: float32(meanRows(own, width, part), [part.counts.length, width]) };
    });
    const { data, dims } = tokensOf(whole);
    return float32(data as Float32Array, [1, dims[0], width]);
  }

  protected async everything(): Promise<Tensor> {
    const { features } = this.encoded;
    return float32(features.slice(), [1, this.tokenCount, features.length / this.tokenCount]);
  }

  protected free(): void {}
}
