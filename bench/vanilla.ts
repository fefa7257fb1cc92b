import type { Backend, TensorLike } from '../src/index.js';
import { readSafeTensors, type SafeTensors, toFloat32 } from '../src/safetensors.js';

/**
 * The baseline "vanilla similarity": cosines of text tokens and the final hidden states of the CLIP encoder, whose last layer runs
 * here with residuals and feed-forward, on this package's kernels.
 */
export class VanillaSimilarity {
  readonly #layer: string;

  private constructor(
    private readonly file: SafeTensors,
    private readonly heads: number,
    layers: number,
    private readonly backend: Backend,
  ) {
    this.#layer = `vision_model.encoder.layers.${layers - 1}`;
  }

  static async open(weights: string, shape: { heads: number; layers: number }, backend: Backend) {
    return new VanillaSimilarity(await readSafeTensors(weights), shape.heads, shape.layers, backend);
  }

  /** Mean cosine of each patch with the text tokens, [P]. hidden: [N, D] before the last layer; text: [T, E]. */
  async map(hidden: TensorLike, text: TensorLike): Promise<Float32Array> {
    const { backend } = this;
    const final = await this.#lastLayer(hidden);
    const normed = await backend.layerNorm({ x: final, ...this.#norm('vision_model.post_layernorm') });
    const visual = await backend.unitRows({
      x: await backend.linear({ x: normed, weight: this.#tensor('visual_projection.weight') }),
    });
    const width = visual.dims[1];
    const data = visual.data as Float32Array;
    const patches = { data: data.subarray(width), dims: [visual.dims[0] - 1, width] };
    const unit = await backend.unitRows({ x: text });
    const { task } = await backend.align({
      visual: patches,
      text: unit,
      global: data.slice(0, width),
      alignment: 'mean',
    });
    return task;
  }

  async #lastLayer(hidden: TensorLike): Promise<TensorLike> {
    const { backend } = this;
    const name = this.#layer;
    const linear = (x: TensorLike, part: string) =>
      backend.linear({
        x,
        weight: this.#tensor(`${name}.${part}.weight`),
        bias: this.#tensor(`${name}.${part}.bias`).data,
      });
    const normed = await backend.layerNorm({ x: hidden, ...this.#norm(`${name}.layer_norm1`) });
    const [q, k, v] = await Promise.all(['q', 'k', 'v'].map((p) => linear(normed, `self_attn.${p}_proj`)));
    const attended = await backend.attention({ q, k, v, heads: this.heads });
    const middle = sum(hidden, await linear(attended, 'self_attn.out_proj'));
    const inner = await linear(await backend.layerNorm({ x: middle, ...this.#norm(`${name}.layer_norm2`) }), 'mlp.fc1');
    const activated = {
      data: (inner.data as Float32Array).map((x) => x / (1 + Math.exp(-1.702 * x))),
      dims: inner.dims,
    };
    return sum(middle, await linear(activated, 'mlp.fc2'));
  }

  #norm(name: string): { weight: Float32Array; bias: Float32Array } {
    return { weight: this.#tensor(`${name}.weight`).data, bias: this.#tensor(`${name}.bias`).data };
  }

  #tensor(name: string): { data: Float32Array; dims: readonly number[] } {
    const tensor = this.file.tensors.get(name);
    if (!tensor) throw new Error(`no tensor ${name}`);
    return { data: toFloat32(tensor, name), dims: tensor.shape };
  }
}

function sum(a: TensorLike, b: TensorLike): TensorLike {
  const [left, right] = [a.data as Float32Array, b.data as Float32Array];
  return { data: left.map((value, i) => value + right[i]), dims: b.dims };
}
