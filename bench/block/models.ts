/**
 * Vision encoders of true width, with random weights: patches, two blocks, a connector. Two blocks are enough to see what the last one
 * costs, beside one that stays as it is.
 */
import { DataType } from '../../src/onnx/format/proto.js';
import { normal } from '../data.js';
import { RandomModel } from '../onnx-models.js';

export interface EncoderShape {
  readonly name: string;
  readonly width: number;
  readonly heads: number;
  /** Width of the blocks' MLP. */
  readonly intermediate: number;
  /** Qwen2.5-VL: RMS norm, gated MLP, rotary positions; SigLIP: layer norm, learned positions. */
  readonly kind: 'qwen' | 'siglip';
  /** Numbers of a patch. */
  readonly channels: number;
  /** Patches that the connector joins: consecutive rows. */
  readonly unit: number;
  readonly languageWidth: number;
}

export const QWEN: EncoderShape = {
  name: 'Qwen2.5-VL',
  width: 1280,
  heads: 16,
  intermediate: 3420,
  kind: 'qwen',
  channels: 2 * 3 * 14 ** 2,
  unit: 4,
  languageWidth: 2048,
};

export const SO400M: EncoderShape = {
  name: 'SigLIP so400m',
  width: 1152,
  heads: 16,
  intermediate: 4304,
  kind: 'siglip',
  channels: 3 * 14 ** 2,
  unit: 1,
  languageWidth: 2048,
};

/**
 * How attention is written: `nodes`, as exporters write it, with scores [heads, N, N]; `fused`, as ONNX Runtime's optimiser writes it
 * (MultiHeadAttention), whose CPU kernel has no array of N x N.
 */
export type AttentionForm = 'nodes' | 'fused';

/** Values of the last block that the copied nodes read, or write in place of the file's own. */
export const LAST = {
  /** [1, N, H, dh], in front of the rotation and behind it. */
  plain: 'last.plain',
  q: 'last.q',
  k: 'last.k',
  v: 'last.v',
  /** [1, H, N, dh]. */
  context: 'last.context',
  /** [N, D], behind the output projection. */
  projected: 'last.projected',
  /** [N, D], behind the block: what the connector reads. */
  rows: 'last.rows',
} as const;

export const PATCHES = 'pixel_values';
export const FEATURES = 'image_features';
const EPSILON = 1e-6;

/** `pixel_values` [N, C] to `image_features` [N / unit, W], for N patches on a grid of which rows are as long as columns. */
export function encoder(shape: EncoderShape, patches: number, form: AttentionForm): RandomModel {
  const graph = new RandomModel();
  graph.inputs = [{ name: PATCHES, type: DataType.float, dims: [patches, shape.channels] }];
  const build = new Blocks(graph, shape, form);
  let x = build.linear(PATCHES, shape.channels, shape.width);
  if (shape.kind === 'siglip') x = graph.add('Add', [x, graph.weight([patches, shape.width])]);
  const rotation = shape.kind === 'qwen' ? build.rotation(Math.sqrt(patches)) : null;
  for (const isLast of [false, true]) x = build.block(x, rotation, isLast);
  graph.outputs = [build.connector(x)];
  return graph;
}

class Blocks {
  constructor(
    private readonly graph: RandomModel,
    private readonly shape: EncoderShape,
    private readonly form: AttentionForm,
  ) {}

  linear(x: string, from: number, to: number, as?: string): string {
    const { graph } = this;
    const bias = graph.floats(normal(2, to, 0.02), [to]);
    const product = graph.add('MatMul', [x, graph.weight([from, to])]);
    return graph.add('Add', [product, bias], {}, this.#named(as));
  }

  block(x: string, rotation: Rotation | null, isLast: boolean): string {
    const { graph } = this;
    const attended = graph.add('Add', [x, this.#attention(this.#norm(x), rotation, isLast)]);
    const mlp = this.#mlp(this.#norm(attended));
    return graph.add('Add', [attended, mlp], {}, this.#named(isLast ? LAST.rows : undefined));
  }

  /** A norm; then of Qwen2.5-VL two linear layers on the patches of a unit, of SigLIP one. */
  connector(x: string): string {
    const { graph } = this;
    const { width, unit, languageWidth, kind } = this.shape;
    const rows = this.#norm(x);
    const joined = graph.add('Reshape', [rows, graph.integers([-1, unit * width])]);
    if (kind === 'siglip') return this.linear(joined, unit * width, languageWidth, FEATURES);
    const inner = this.linear(joined, unit * width, unit * width);
    return this.linear(this.#gelu(inner), unit * width, languageWidth, FEATURES);
  }

  /** Cosines and sines of two-dimensional rotary positions, [1, N, 1, dh], of a square whose 2 x 2 blocks follow one another. */
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

  #attention(x: string, rotation: Rotation | null, isLast: boolean): string {
    const { width } = this.shape;
    const named = (name: string) => (isLast ? name : undefined);
    const [plain, keys, v] = this.#operands(x, isLast);
    const q = this.#rotated(plain, rotation, named(LAST.q));
    const k = this.#rotated(keys, rotation, named(LAST.k));
    const joined =
      this.form === 'fused' ? this.#fused(q, k, v) : this.#joined(this.#context(q, k, v, named(LAST.context)));
    return this.linear(joined, width, width, named(LAST.projected));
  }

  /** Queries, keys and values [1, N, H, dh], of one linear layer or of three. */
  #operands(x: string, isLast: boolean): string[] {
    const { graph } = this;
    const { width, heads, kind } = this.shape;
    const names = isLast ? [LAST.plain, undefined, LAST.v] : [];
    const apart = (value: string, i: number) =>
      graph.add('Reshape', [value, graph.integers([1, -1, heads, this.#headExtent])], {}, this.#named(names[i]));
    if (kind === 'siglip') return [0, 1, 2].map((i) => apart(this.linear(x, width, width), i));
    const parts = [0, 1, 2].map(() => graph.fresh('part'));
    const sizes = graph.integers([width, width, width]);
    graph.add('Split', [this.linear(x, width, 3 * width), sizes], { axis: { i: -1 } }, { outputs: parts });
    return parts.map(apart);
  }

  #rotated(x: string, rotation: Rotation | null, as: string | undefined): string {
    const { graph } = this;
    if (rotation === null) return as === undefined ? x : graph.add('Identity', [x], {}, this.#named(as));
    const half = this.#headExtent / 2;
    const halves = [graph.fresh('half'), graph.fresh('half')];
    graph.add('Split', [x, graph.integers([half, half])], { axis: { i: -1 } }, { outputs: halves });
    const turned = graph.add('Concat', [graph.add('Neg', [halves[1]]), halves[0]], { axis: { i: -1 } });
    const sum = [graph.add('Mul', [x, rotation.cos]), graph.add('Mul', [turned, rotation.sin])];
    return graph.add('Add', sum, {}, this.#named(as));
  }

  #context(q: string, k: string, v: string, as: string | undefined): string {
    const { graph } = this;
    const turned = (x: string, ...perm: number[]) => graph.add('Transpose', [x], { perm: { ints: perm } });
    const products = graph.add('MatMul', [turned(q, 0, 2, 1, 3), turned(k, 0, 2, 3, 1)]);
    const scores = graph.add('Mul', [products, graph.floats([this.#headExtent ** -0.5], [])]);
    const shares = graph.add('Softmax', [scores], { axis: { i: -1 } });
    return graph.add('MatMul', [shares, turned(v, 0, 2, 1, 3)], {}, this.#named(as));
  }

  #joined(context: string): string {
    const { graph } = this;
    const turned = graph.add('Transpose', [context], { perm: { ints: [0, 2, 1, 3] } });
    return graph.add('Reshape', [turned, graph.integers([-1, this.shape.width])]);
  }

  #fused(...operands: string[]): string {
    const { graph } = this;
    const { width, heads } = this.shape;
    const rows = operands.map((value) => graph.add('Reshape', [value, graph.integers([1, -1, width])]));
    const options = { domain: 'com.microsoft' };
    const context = graph.add('MultiHeadAttention', rows, { num_heads: { i: heads } }, options);
    return graph.add('Reshape', [context, graph.integers([-1, width])]);
  }

  #norm(x: string): string {
    const { graph } = this;
    const { width, kind } = this.shape;
    const ones = graph.floats(new Float32Array(width).fill(1), [width]);
    if (kind === 'siglip') {
      const attributes = { axis: { i: -1 }, epsilon: { f: EPSILON } };
      return graph.add('LayerNormalization', [x, ones, graph.floats(new Float32Array(width), [width])], attributes);
    }
    const squares = graph.add('Pow', [x, graph.floats([2], [])]);
    const mean = graph.add('ReduceMean', [squares], { axes: { ints: [-1] } });
    const root = graph.add('Sqrt', [graph.add('Add', [mean, graph.floats([EPSILON], [])])]);
    return graph.add('Mul', [ones, graph.add('Div', [x, root])]);
  }

  #mlp(x: string): string {
    const { graph } = this;
    const { width, intermediate, kind } = this.shape;
    const inner = this.linear(x, width, intermediate);
    if (kind === 'siglip') return this.linear(this.#gelu(inner), intermediate, width);
    const gate = graph.add('Mul', [inner, graph.add('Sigmoid', [inner])]);
    return this.linear(graph.add('Mul', [gate, this.linear(x, width, intermediate)]), intermediate, width);
  }

  #gelu(x: string): string {
    const { graph } = this;
    const erf = graph.add('Erf', [graph.add('Div', [x, graph.floats([Math.SQRT2], [])])]);
    const twice = graph.add('Mul', [x, graph.add('Add', [erf, graph.floats([1], [])])]);
    return graph.add('Mul', [twice, graph.floats([0.5], [])]);
  }

  get #headExtent(): number {
    return this.shape.width / this.shape.heads;
  }

  #named(as: string | undefined): { outputs?: string[] } {
    return as === undefined ? {} : { outputs: [as] };
  }
}

interface Rotation {
  readonly cos: string;
  readonly sin: string;
}
