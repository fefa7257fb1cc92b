/**
 * What a tapped block says of patches, with products folded: a map of the class token's attention costs 2 N D H + 4 D^2 in place of the
 * 2 N D^2 of all keys, and head means D / H columns in place of D. Symbols: Ln = LN1(hidden) [N, D]; Q, K, V its projections; D wide, H
 * heads of dh = D / H.
 */
import type { LinearWeights } from '../head.js';
import { dot, softmax } from '../kernels/numeric.js';
import { layerNorm, linear, type Matrix, meanRow, products, rowsOf, tensor } from './matrix.js';
import type { MethodImage, TapName, TapWeights } from './method.js';
import { missing } from './method.js';

export class TappedBlock {
  private constructor(
    private readonly image: MethodImage,
    private readonly name: TapName,
    private readonly weights: TapWeights,
    /** Ln, [N, D]. */
    private readonly normalized: Matrix,
  ) {}

  static of(image: MethodImage, name: TapName): Promise<TappedBlock> {
    return image.timed('taps', async () => {
      const { hidden, weights } = await image.tap(name);
      const { ln1, epsilon } = weights;
      return new TappedBlock(image, name, weights, await layerNorm(image.backend, hidden, ln1, epsilon));
    });
  }

  /**
   * Mean over heads of softmax_j(Q_cls,h . K_j,h / sqrt(dh)) over all N, its patches, [P]. Without class token: the mean over heads and
   * query rows.
   * @param heads default: the block's own
   */
  attention(heads = this.weights.heads): Promise<Float64Array> {
    return this.image.timed('taps', () => this.#attention(heads));
  }

  async #attention(heads: number): Promise<Float64Array> {
    const { q, k } = this.weights;
    const { backend, classToken } = this.image;
    if (classToken) {
      const query = projected(this.#row(0), q);
      return this.#patches(await this.#weighted(query, k, heads, Math.sqrt(this.#width / heads)));
    }
    const [queries, keys] = [await this.#project(q), await this.#project(k)];
    const operands = { q: tensor(queries), k: tensor(keys), heads, classToken };
    return this.#patches(Float64Array.from(await backend.saliency(operands)));
  }

  /** Mean over heads of softmax_j(V_cls,h . V_j,h) over all N, its patches, [P]; without class token V_cls is the mean of V's rows. */
  valueAttention(): Promise<Float64Array> {
    return this.image.timed('taps', async () => {
      const values = this.#values;
      const row = this.image.classToken ? this.#row(0) : meanRow(this.normalized);
      return this.#patches(await this.#weighted(projected(row, values), values, this.weights.heads, 1));
    });
  }

  /** Mean over heads of K, [P, dh]. */
  meanKeys(): Promise<Matrix> {
    return this.image.timed('taps', () => this.#headMeans(this.weights.k));
  }

  /** Mean over heads of V, [P, dh]. */
  meanValues(): Promise<Matrix> {
    return this.image.timed('taps', () => this.#headMeans(this.#values));
  }

  /** K of the patches, [P, D]. */
  keys(): Promise<Matrix> {
    return this.image.timed('taps', async () => rowsOf(await this.#project(this.weights.k), this.#places));
  }

  get #width(): number {
    return this.normalized.cols;
  }

  get #values(): LinearWeights {
    const { v } = this.weights;
    if (v) return v;
    throw missing(`the tap '${this.name}' without values`, 'the weights of its value projection');
  }

  /** The patches' rows of N. */
  get #places(): Int32Array {
    const { classToken, patches } = this.image;
    const first = Number(classToken);
    return patches
      ? patches.map((patch) => first + patch)
      : Int32Array.from({ length: this.normalized.rows - first }, (_, patch) => first + patch);
  }

  /** Of a map [N]. */
  #patches(map: Float64Array): Float64Array {
    return Float64Array.from(this.#places, (row) => map[row]);
  }

  #row(row: number): Float32Array {
    return this.normalized.data.subarray(row * this.#width, (row + 1) * this.#width);
  }

  #project(layer: LinearWeights): Promise<Matrix> {
    return linear(this.image.backend, this.normalized, layer);
  }

  /**
   * Mean over heads of softmax_j(x_h . Y_j,h / scale), [N], where Y = Ln W^T + b. x_h . Y_j,h = (W_h^T x_h) . Ln_j + x_h . b_h, whose last
   * term is the same for all j.
   */
  async #weighted(x: Float64Array, { weight }: LinearWeights, heads: number, scale: number): Promise<Float64Array> {
    const { normalized } = this;
    const D = this.#width;
    const folded = new Float64Array(heads * D);
    for (let o = 0; o < D; o++) {
      const head = Math.floor((o * heads) / D);
      for (let c = 0; c < D; c++) folded[head * D + c] += (x[o] / scale) * weight[o * D + c];
    }
    const queries = { data: Float32Array.from(folded), rows: heads, cols: D };
    const logits = await products(this.image.backend, normalized, queries);
    const mean = new Float64Array(normalized.rows);
    for (let head = 0; head < heads; head++) {
      const weights = mean.map((_, j) => logits.data[j * heads + head]);
      softmax(weights);
      weights.forEach((one, j) => {
        mean[j] += one / heads;
      });
    }
    return mean;
  }

  /** mean_h (Ln W_h^T + b_h) = Ln (mean_h W_h)^T + mean_h b_h, of the patches. */
  async #headMeans({ weight, bias }: LinearWeights): Promise<Matrix> {
    const { heads } = this.weights;
    const means = { weight: meanOfParts(weight, heads), bias: meanOfParts(bias, heads) };
    return rowsOf(await linear(this.image.backend, this.normalized, means), this.#places);
  }
}

/** The class attention of a tap, [P]; see {@link TappedBlock.attention}. */
export async function classAttention(image: MethodImage, name: TapName): Promise<Float64Array> {
  return (await TappedBlock.of(image, name)).attention();
}

function projected(row: ArrayLike<number>, { weight, bias }: LinearWeights): Float64Array {
  const x = Float64Array.from(row);
  return Float64Array.from(bias, (b, o) => b + dot(x, 0, weight, o * x.length, x.length));
}

/** The mean of the equal parts that a vector falls into. */
function meanOfParts(x: Float32Array, parts: number): Float32Array {
  const size = x.length / parts;
  return Float32Array.from({ length: size }, (_, i) => {
    let sum = 0;
    for (let part = 0; part < parts; part++) sum += x[part * size + i];
    return sum / parts;
  });
}
