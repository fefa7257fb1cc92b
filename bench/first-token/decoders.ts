/**
 * Language models by their parts: one layer of each kind and the product that gives the logits, at true widths with random weights. A layer
 * reads a whole prompt, without keys and values of earlier tokens, as decoders of Transformers.js do: attention by GroupQueryAttention.
 */
import { DataType } from '../../src/onnx/format/proto.js';
import { normal } from '../data.js';
import { RandomModel } from '../onnx-models.js';
import type { Decoder } from './models.js';

export const LAYER_KINDS = ['attention', 'convolution'] as const;
export type LayerKind = (typeof LAYER_KINDS)[number];

/** Rows of a prompt: what a layer takes and gives. */
export const STATES = 'hidden_states';
export const LOGITS = 'logits';
const DOMAIN = { domain: 'com.microsoft' };
const MAX_POSITIONS = 4096;
/** LFM2: tokens that a convolution sees. */
const KERNEL = 3;

/** One layer: `hidden_states` [1, n, width] to `states`, with what decoding needs later. */
export function layerGraph(decoder: Decoder, kind: LayerKind): RandomModel {
  const graph = new RandomModel();
  graph.inputs = [{ name: STATES, type: DataType.float, dims: [1, 'tokens', decoder.width] }];
  const build = new Layer(graph, decoder);
  const mixed = kind === 'attention' ? build.attention(build.norm(STATES)) : build.convolution(build.norm(STATES));
  const x = graph.add('Add', [STATES, mixed]);
  graph.outputs.unshift(graph.add('Add', [x, build.feedForward(build.norm(x))]));
  return graph;
}

/** The last norm and the product of one row with the vocabulary: `hidden_states` [1, 1, width] to `logits`. */
export function logitsGraph(decoder: Decoder): RandomModel {
  const graph = new RandomModel();
  graph.inputs = [{ name: STATES, type: DataType.float, dims: [1, 1, decoder.width] }];
  const build = new Layer(graph, decoder);
  const { width, vocabulary } = decoder;
  const product = [build.norm(STATES), graph.weight([width, vocabulary])];
  graph.outputs = [graph.add('MatMul', product, {}, { outputs: [LOGITS] })];
  return graph;
}

class Layer {
  constructor(
    private readonly graph: RandomModel,
    private readonly decoder: Decoder,
  ) {}

  norm(x: string): string {
    const { width } = this.decoder;
    const weight = this.graph.floats(new Float32Array(width).fill(1), [width]);
    return this.graph.add('SimplifiedLayerNormalization', [x, weight], { axis: { i: -1 }, epsilon: { f: 1e-5 } });
  }

  attention(x: string): string {
    const { graph } = this;
    const { width, heads, keyHeads, headExtent } = this.decoder;
    const extents = [heads, keyHeads, keyHeads].map((count) => count * headExtent);
    const [q, k, v] = extents.map((extent) => this.#linear(x, width, extent));
    const tokens = graph.add('Gather', [graph.add('Shape', [x]), graph.integers([1], [])]);
    const count = graph.add('Cast', [tokens], { to: { i: DataType.int32 } });
    const last = graph.add('Cast', [graph.add('Sub', [tokens, graph.integers([1])])], { to: { i: DataType.int32 } });
    const nothing = () => graph.floats([], [1, keyHeads, 0, headExtent]);
    const outputs = ['context', 'present.key', 'present.value'];
    graph.outputs.push(...outputs.slice(1));
    const inputs = [q, k, v, nothing(), nothing(), last, count, ...this.#rotations()];
    const attributes = { num_heads: { i: heads }, kv_num_heads: { i: keyHeads }, do_rotary: { i: 1 } };
    graph.add('GroupQueryAttention', inputs, attributes, { ...DOMAIN, outputs });
    return this.#linear('context', heads * headExtent, width);
  }

  /** LFM2: gate, convolution over the last tokens, gate. */
  convolution(x: string): string {
    const { graph } = this;
    const { width } = this.decoder;
    const [before, behind, value] = [0, 1, 2].map(() => graph.fresh('part'));
    const sizes = graph.integers([width, width, width]);
    const parts = { outputs: [before, behind, value] };
    graph.add('Split', [this.#linear(x, width, 3 * width), sizes], { axis: { i: -1 } }, parts);
    const turned = (of: string) => graph.add('Transpose', [of], { perm: { ints: [0, 2, 1] } });
    const convolved = graph.add(
      'Conv',
      [turned(graph.add('Mul', [before, value])), graph.floats(normal(4, width * KERNEL), [width, 1, KERNEL])],
      { group: { i: width }, kernel_shape: { ints: [KERNEL] }, pads: { ints: [KERNEL - 1, 0] } },
    );
    return this.#linear(graph.add('Mul', [behind, turned(convolved)]), width, width);
  }

  feedForward(x: string): string {
    const { graph } = this;
    const { width, intermediate } = this.decoder;
    const gate = this.#linear(x, width, intermediate);
    const gated = graph.add('Mul', [gate, graph.add('Sigmoid', [gate])]);
    return this.#linear(graph.add('Mul', [gated, this.#linear(x, width, intermediate)]), intermediate, width);
  }

  #linear(x: string, from: number, to: number): string {
    return this.graph.add('MatMul', [x, this.graph.weight([from, to])]);
  }

  /** Cosines and sines of RoPE, [positions, dh / 2] each. */
  #rotations(): string[] {
    const half = this.decoder.headExtent / 2;
    const angles = Array.from(
      { length: MAX_POSITIONS * half },
      (_, i) => Math.floor(i / half) * 10000 ** (-(i % half) / half),
    );
    return [Math.cos, Math.sin].map((of) => this.graph.floats(angles.map(of), [MAX_POSITIONS, half]));
  }
}
