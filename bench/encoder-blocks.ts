/** Blocks of vision encoders, written as exporters write them, with random weights. */
import { normal } from './data.js';
import type { RandomModel } from './onnx-models.js';

/** What all blocks of an encoder have in common. */
export interface BlockShape {
  readonly width: number;
  readonly heads: number;
  /** Width of the MLP. */
  readonly intermediate: number;
  readonly kind: BlockKind;
}

/**
 * `siglip`: layer norm, GELU; `clip`: layer norm, quick GELU; `qwen2`: layer norm, quick GELU, queries, keys and values by one layer; `qwen`:
 * as Qwen2.5-VL, RMS norm, gated MLP, one layer for the three.
 */
export type BlockKind = 'siglip' | 'clip' | 'qwen2' | 'qwen';

/**
 * How attention is written: `nodes`, as exporters write it, with scores [heads, N, N]; `fused`, as ONNX Runtime's optimiser writes it
 * (MultiHeadAttention), whose CPU kernel has no array of N x N.
 */
export type AttentionForm = 'nodes' | 'fused';

/** Cosines and sines of rotary positions, [1, N, 1, dh]. */
export interface Rotation {
  readonly cos: string;
  readonly sin: string;
}

/** Names that values of one block get; those left out get names of their own. */
export type BlockNames = Readonly<
  Partial<Record<'plain' | 'q' | 'k' | 'v' | 'context' | 'projected' | 'rows', string>>
>;

export interface BlocksOptions {
  /** Default `nodes`. */
  readonly form?: AttentionForm;
  /** Whether rows are [B, N, D], of B tiles, and not [N, D]. */
  readonly batched?: boolean;
  /** What is added to the scores, [B, 1, 1, N]; `nodes` only. */
  readonly mask?: string;
}

const EPSILON = 1e-6;
/** Of random biases. */
const DEVIATION = 0.02;

/** Adds to a graph what encoders are made of. */
export class EncoderBlocks {
  constructor(
    private readonly graph: RandomModel,
    private readonly shape: BlockShape,
    private readonly options: BlocksOptions = {},
  ) {}

  /** x W + b. */
  linear(x: string, from: number, to: number, as?: string): string {
    const { graph } = this;
    const bias = graph.floats(normal(2, to, DEVIATION), [to]);
    const product = graph.add('MatMul', [x, graph.weight([from, to])]);
    return graph.add('Add', [product, bias], {}, named(as));
  }

  reshape(x: string, ...extents: number[]): string {
    return this.graph.add('Reshape', [x, this.graph.integers(extents)]);
  }

  transpose(x: string, ...perm: number[]): string {
    return this.graph.add('Transpose', [x], { perm: { ints: perm } });
  }

  /** The blocks' norm. */
  norm(x: string): string {
    const { graph } = this;
    const { width, kind } = this.shape;
    const ones = graph.floats(new Float32Array(width).fill(1), [width]);
    if (kind !== 'qwen') {
      const attributes = { axis: { i: -1 }, epsilon: { f: EPSILON } };
      return graph.add('LayerNormalization', [x, ones, graph.floats(new Float32Array(width), [width])], attributes);
    }
    const squares = graph.add('Pow', [x, graph.floats([2], [])]);
    const mean = graph.add('ReduceMean', [squares], { axes: { ints: [-1] } });
    const root = graph.add('Sqrt', [graph.add('Add', [mean, graph.floats([EPSILON], [])])]);
    return graph.add('Mul', [ones, graph.add('Div', [x, root])]);
  }

  gelu(x: string): string {
    const { graph } = this;
    const erf = graph.add('Erf', [graph.add('Div', [x, graph.floats([Math.SQRT2], [])])]);
    const twice = graph.add('Mul', [x, graph.add('Add', [erf, graph.floats([1], [])])]);
    return graph.add('Mul', [twice, graph.floats([0.5], [])]);
  }

  /** One block; `names` of its values. */
  block(x: string, rotation: Rotation | null = null, names: BlockNames = {}): string {
    const { graph } = this;
    const attended = graph.add('Add', [x, this.#attention(this.norm(x), rotation, names)]);
    return graph.add('Add', [attended, this.#mlp(this.norm(attended))], {}, named(names.rows));
  }

  /** Rotary positions of a square of patches whose 2 x 2 blocks follow one another, as constants. */
  rotation(side: number): Rotation {
    const { graph } = this;
    const quarter = this.#headExtent / 4;
    const angles = new Float32Array(side ** 2 * this.#headExtent);
    for (let patch = 0; patch < side ** 2; patch++) {
      const [block, within] = [Math.floor(patch / 4), patch % 4];
      const row = 2 * Math.floor(block / (side / 2)) + Math.floor(within / 2);
      const column = 2 * (block % (side / 2)) + (within % 2);
      for (let i = 0; i < this.#headExtent; i++) {
        const place = Math.floor(i / quarter) % 2 === 0 ? row : column;
        angles[patch * this.#headExtent + i] = place * 10000 ** (-(i % quarter) / quarter);
      }
    }
    const dims = [1, side ** 2, 1, this.#headExtent];
    return { cos: graph.floats(angles.map(Math.cos), dims), sin: graph.floats(angles.map(Math.sin), dims) };
  }

  /**
   * The same of any grid, computed by the graph.
   *
   * @param x what has a row for each patch
   * @param columns int64 scalar: patches of a row of the grid
   */
  rotationOf(x: string, columns: string): Rotation {
    const { graph } = this;
    const quarter = this.#headExtent / 4;
    const whole = (value: number) => graph.integers([value], []);
    const op = (name: string, ...inputs: string[]) => graph.add(name, inputs);
    const count = op('Gather', op('Shape', x), whole(0));
    const patch = op('Range', whole(0), count, whole(1));
    const [block, within] = [op('Div', patch, whole(4)), op('Mod', patch, whole(4))];
    const across = op('Div', columns, whole(2));
    const place = (of: string, inner: string) => op('Add', op('Mul', op(of, block, across), whole(2)), inner);
    const places = [place('Div', op('Div', within, whole(2))), place('Mod', op('Mod', within, whole(2)))];
    const frequencies = Float32Array.from({ length: quarter }, (_, i) => 10000 ** (-i / quarter));
    const turns = places.map((one) => {
      const column = op('Unsqueeze', graph.add('Cast', [one], { to: { i: 1 } }), graph.integers([1]));
      return op('Mul', column, graph.floats(frequencies, [1, quarter]));
    });
    const angles = graph.add('Concat', [...turns, ...turns], { axis: { i: 1 } });
    const table = (name: string) => op('Unsqueeze', op(name, angles), graph.integers([0, 2]));
    return { cos: table('Cos'), sin: table('Sin') };
  }

  #attention(x: string, rotation: Rotation | null, names: BlockNames): string {
    const { width } = this.shape;
    const [plain, keys, v] = this.#operands(x, names);
    const q = this.#rotated(plain, rotation, names.q);
    const k = this.#rotated(keys, rotation, names.k);
    const isFused = this.options.form === 'fused';
    const joined = isFused ? this.#fused(q, k, v) : this.#joined(this.#context(q, k, v, names.context));
    return this.linear(joined, width, width, names.projected);
  }

  /** Queries, keys and values [1 or B, N, H, dh], of one linear layer or of three. */
  #operands(x: string, names: BlockNames): string[] {
    const { graph } = this;
    const { width, heads, kind } = this.shape;
    const wanted = [names.plain, undefined, names.v];
    const extents = [this.options.batched ? 0 : 1, -1, heads, this.#headExtent];
    const apart = (value: string, i: number) =>
      graph.add('Reshape', [value, graph.integers(extents)], {}, named(wanted[i]));
    if (kind === 'siglip' || kind === 'clip') return [0, 1, 2].map((i) => apart(this.linear(x, width, width), i));
    const parts = [0, 1, 2].map(() => graph.fresh('part'));
    const sizes = graph.integers([width, width, width]);
    graph.add('Split', [this.linear(x, width, 3 * width), sizes], { axis: { i: -1 } }, { outputs: parts });
    return parts.map(apart);
  }

  #rotated(x: string, rotation: Rotation | null, as: string | undefined): string {
    const { graph } = this;
    if (rotation === null) return as === undefined ? x : graph.add('Identity', [x], {}, named(as));
    const half = this.#headExtent / 2;
    const halves = [graph.fresh('half'), graph.fresh('half')];
    graph.add('Split', [x, graph.integers([half, half])], { axis: { i: -1 } }, { outputs: halves });
    const turned = graph.add('Concat', [graph.add('Neg', [halves[1]]), halves[0]], { axis: { i: -1 } });
    const sum = [graph.add('Mul', [x, rotation.cos]), graph.add('Mul', [turned, rotation.sin])];
    return graph.add('Add', sum, {}, named(as));
  }

  #context(q: string, k: string, v: string, as: string | undefined): string {
    const { graph } = this;
    const products = graph.add('MatMul', [this.transpose(q, 0, 2, 1, 3), this.transpose(k, 0, 2, 3, 1)]);
    const scores = graph.add('Mul', [products, graph.floats([this.#headExtent ** -0.5], [])]);
    const { mask } = this.options;
    const shown = mask === undefined ? scores : graph.add('Add', [scores, mask]);
    const shares = graph.add('Softmax', [shown], { axis: { i: -1 } });
    return graph.add('MatMul', [shares, this.transpose(v, 0, 2, 1, 3)], {}, named(as));
  }

  #joined(context: string): string {
    const { width } = this.shape;
    const turned = this.transpose(context, 0, 2, 1, 3);
    return this.options.batched ? this.reshape(turned, 0, -1, width) : this.reshape(turned, -1, width);
  }

  #fused(...operands: string[]): string {
    const { graph } = this;
    const { width, heads } = this.shape;
    const rows = operands.map((value) => this.reshape(value, this.options.batched ? 0 : 1, -1, width));
    const options = { domain: 'com.microsoft' };
    const context = graph.add('MultiHeadAttention', rows, { num_heads: { i: heads } }, options);
    return this.options.batched ? context : this.reshape(context, -1, width);
  }

  #mlp(x: string): string {
    const { graph } = this;
    const { width, intermediate, kind } = this.shape;
    const inner = this.linear(x, width, intermediate);
    if (kind === 'siglip') return this.linear(this.gelu(inner), intermediate, width);
    const scaled = kind === 'qwen' ? inner : graph.add('Mul', [inner, graph.floats([1.702], [])]);
    const gate = graph.add('Mul', [inner, graph.add('Sigmoid', [scaled])]);
    if (kind !== 'qwen') return this.linear(gate, intermediate, width);
    return this.linear(graph.add('Mul', [gate, this.linear(x, width, intermediate)]), intermediate, width);
  }

  get #headExtent(): number {
    return this.shape.width / this.shape.heads;
  }
}

function named(as: string | undefined): { outputs?: string[] } {
  return as === undefined ? {} : { outputs: [as] };
}
