import type { Tensor } from 'onnxruntime-common';
import { mismatch, naming } from '../errors.js';
import { type Backend, ImageAnalysis, type TextEmbeddings } from '../index.js';
import { type NumberMatrix, sumOfRows } from '../kernels/numeric.js';
import { unitRows } from '../kernels/unit-rows.js';
import { float32, matrix, vector, widened } from '../tensor.js';
import { type Analyzed, EncodedImageBase, type ImageOwner, type Kept } from './image-base.js';
import type { Tile } from './vision-model.js';

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
    /** One tile for each frame. */
    readonly tiles: readonly Tile[],
    milliseconds: number,
  ) {
    super('QwenImage', vision, milliseconds);
  }

  /** P, visual tokens. */
  get tokenCount(): number {
    return this.encoded.saliency.length;
  }

  protected async makeAnalysis(): Promise<Analyzed> {
    const { features, alike, rows, saliency } = this.encoded;
    const start = performance.now();
    const parts = { patchEmbeddings: this.#tokens(rows), saliency, features: this.#tokens(alike ?? features) };
    const analysis = await ImageAnalysis.from(parts, this.vision.backend);
    return { analysis, milliseconds: performance.now() - start };
  }

  /**
   * Text rows as wide as the visual ones: where features are packed with further columns, the text has zeros there. Their end is the
   * given one; else the mean of all rows, as an embedding of an end token would know nothing of the others.
   */
  protected override comparable({ embeddings, endOfText }: TextEmbeddings): TextEmbeddings {
    const text = matrix('question', embeddings);
    const width = Math.min(text.cols, this.encoded.rows.length / this.tokenCount);
    const rows = narrowed(widened(text), text.cols, width);
    const end = endOfText ?? meanDirection({ data: rows, rows: text.rows, cols: width });
    return {
      embeddings: float32(rows, [text.rows, width]),
      endOfText: typeof end === 'number' ? end : narrowed(vector('endOfText', end), end.length, width),
    };
  }

  /** Packed features are compared by the last block's columns, and merged whole. */
  protected async connect({ tokens, assignment, counts }: Kept): Promise<Tensor> {
    const { features, alike } = this.encoded;
    const width = features.length / this.tokenCount;
    const rows = alike ? meanRows(features, width, assignment, counts) : (tokens.data as Float32Array);
    return float32(rows, [1, counts.length, width]);
  }

  protected async everything(): Promise<Tensor> {
    const { features } = this.encoded;
    return float32(features.slice(), [1, this.tokenCount, features.length / this.tokenCount]);
  }

  #tokens(rows: Float32Array): Tensor {
    return float32(rows, [this.tokenCount, rows.length / this.tokenCount]);
  }

  protected async free(): Promise<void> {
    (await this.analyzed())?.analysis.dispose();
  }
}

/** The sum of a text's rows, each at unit length: it has the direction of their mean, and is made a unit row itself. */
function meanDirection(text: NumberMatrix): Float32Array {
  return Float32Array.from(naming('question', () => sumOfRows(unitRows(text))));
}

/** The first columns of rows whose others are zeros. */
function narrowed(rows: Float32Array, from: number, to: number): Float32Array {
  if (from <= to) return rows;
  if (rows.some((value, i) => i % from >= to && value !== 0))
    throw mismatch('ERR_SHAPE', 'question', `${from} columns`, `${to}, or zeros in the columns behind`);
  return rows.filter((_, i) => i % from < to);
}

/**
 * The mean of the rows [P, W] that are assigned to each kept token: [K, W]. The merge kernel averages the columns that it compares;
 * packed features have further ones, which no kernel sees.
 */
function meanRows(rows: Float32Array, width: number, assignment: Int32Array, counts: Int32Array): Float32Array {
  const sums = new Float64Array(counts.length * width);
  for (const [token, k] of assignment.entries())
    if (k >= 0) for (let c = 0; c < width; c++) sums[k * width + c] += rows[token * width + c];
  return Float32Array.from(sums, (sum, i) => sum / counts[Math.floor(i / width)]);
}
