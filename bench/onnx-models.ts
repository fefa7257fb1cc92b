/**
 * ONNX models of true shapes with random weights, for benchmarks of time and memory: a Llama decoder and a LLaVA vision
 * encoder. Their weights go to disk as a stream; none of these files fits into memory comfortably.
 */
import { createWriteStream, mkdtempSync, rmSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';
import { DataType, GraphField, ModelField, TensorField } from '../src/onnx/format/proto.js';
import { Editable } from '../test/onnx/editable.js';
import { normal } from './data.js';

/** Llama as LLaVA-1.5 has it. */
export interface DecoderShape {
  readonly width: number;
  readonly heads: number;
  readonly intermediate: number;
}

/** CLIP's vision tower without its last layer, and the projector to a language model, as LLaVA's files hold them. */
export interface VisionShape {
  readonly image: number;
  readonly patch: number;
  readonly width: number;
  readonly heads: number;
  readonly intermediate: number;
  /** Layers in the file: one fewer than CLIP has. */
  readonly layers: number;
  readonly languageWidth: number;
}

interface Weight {
  readonly name: string;
  readonly dims: readonly number[];
  /** Bytes, in the order in which the weights were made. */
  readonly offset: number;
  readonly length: number;
}

/** A folder for large files that is removed when this process ends, however it does (`TMPDIR` says where). */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'desap-bench-'));
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
  return folder;
}

/** A prime, so that no two matrices and no two rows are equal (ONNX Runtime keeps equal weights once). */
const BLOCK_LENGTH = 1_048_583;
/** The standard deviation that Llama's weights begin with. */
const DEVIATION = 0.02;

/** A graph whose matrices exist on disk only. */
export class RandomModel extends Editable {
  private readonly weights: Weight[] = [];
  /** Repeated without end, these are the data of all matrices; drawing normal numbers for each anew takes too long. */
  private readonly block = new Uint8Array(normal(1, BLOCK_LENGTH, DEVIATION).buffer);

  /** Adds a random matrix; the same ones in the same order lie at the same place of the data. */
  weight(dims: readonly number[]): string {
    const previous = this.weights.at(-1);
    const name = this.fresh('weight');
    const length = 4 * dims.reduce((product, extent) => product * extent, 1);
    this.weights.push({ name, dims, offset: previous ? previous.offset + previous.length : 0, length });
    return name;
  }

  /** The matrices as one file of external data. */
  async writeWeights(path: string): Promise<void> {
    const length = this.weights.reduce((sum, weight) => sum + weight.length, 0);
    await pipeline(this.data(0, length), createWriteStream(path));
  }

  /** The model; its matrices are external data in the file `location` of the same folder. */
  async writeModel(path: string, location: string): Promise<void> {
    for (const { name, dims, offset, length } of this.weights)
      this.tensors.set(name, { name, type: DataType.float, dims, data: { location, offset, length } });
    await writeFile(path, this.bytes());
  }

  /**
   * The model and its matrices as one file, as exporters write it below 2 GB. A graph may come in several parts, which every
   * protobuf reader joins: the matrices follow one by one, and no length has to be known ahead.
   */
  async writeWhole(path: string): Promise<void> {
    await pipeline(this.whole(), createWriteStream(path));
  }

  private *whole(): Generator<Uint8Array> {
    yield this.bytes();
    for (const weight of this.weights) {
      yield graphPart(weight);
      yield* this.data(weight.offset, weight.length);
    }
  }

  /** A range of the data of all matrices. */
  private *data(start: number, length: number): Generator<Uint8Array> {
    const { block } = this;
    for (let at = start; at < start + length; ) {
      const from = at % block.length;
      const part = block.subarray(from, Math.min(block.length, from + start + length - at));
      yield part;
      at += part.length;
    }
  }
}

/** A graph with one initialiser, up to where its data begins. */
function graphPart({ name, dims, length }: Weight): Uint8Array {
  const tensor = new BinaryWriter();
  for (const extent of dims) tensor.tag(TensorField.dims, WireType.Varint).int64(extent);
  tensor.tag(TensorField.dataType, WireType.Varint).int64(DataType.float);
  tensor.tag(TensorField.name, WireType.LengthDelimited).string(name);
  const head = tensor.tag(TensorField.rawData, WireType.LengthDelimited).uint32(length).finish();
  const size = head.length + length;
  const initializer = new BinaryWriter().tag(GraphField.initializer, WireType.LengthDelimited).uint32(size).finish();
  const graph = new BinaryWriter().tag(ModelField.graph, WireType.LengthDelimited).uint32(initializer.length + size);
  return graph.raw(initializer).raw(head).finish();
}

/**
 * Llama decoder layers as a prefill runs them: `inputs_embeds` [1, n, d] and `position_ids` [1, n] to `hidden_states` and
 * the keys and values of each layer. Embedding, last norm and logits are not in it.
 */
export function llamaDecoder({ width, heads, intermediate }: DecoderShape, layers: number): RandomModel {
  const graph = new RandomModel();
  graph.opset = 23;
  graph.inputs = [
    { name: 'inputs_embeds', type: DataType.float, dims: [1, 'tokens', width] },
    { name: 'position_ids', type: DataType.int64, dims: [1, 'tokens'] },
  ];
  const rotation = rotations(graph, width / heads);
  const linear = (x: string, from: number, to: number) => graph.add('MatMul', [x, graph.weight([from, to])]);
  const norm = (x: string) =>
    graph.add('RMSNormalization', [x, ones(graph, width)], { axis: { i: -1 }, epsilon: { f: 1e-5 } });
  const rotated = (x: string) =>
    graph.add('RotaryEmbedding', [x, ...rotation, 'position_ids'], { num_heads: { i: heads } });
  let x = 'inputs_embeds';
  for (let layer = 0; layer < layers; layer++) {
    const entering = norm(x);
    const [q, k, v] = [0, 1, 2].map(() => linear(entering, width, width));
    const outputs = [`context.${layer}`, `present.${layer}.key`, `present.${layer}.value`];
    const attributes = { is_causal: { i: 1 }, q_num_heads: { i: heads }, kv_num_heads: { i: heads } };
    const context = graph.add('Attention', [rotated(q), rotated(k), v], attributes, { outputs });
    x = graph.add('Add', [x, linear(context, width, width)]);
    const middle = norm(x);
    const gate = linear(middle, width, intermediate);
    const inner = graph.add('Mul', [
      graph.add('Mul', [gate, graph.add('Sigmoid', [gate])]),
      linear(middle, width, intermediate),
    ]);
    const last = layer === layers - 1 ? { outputs: ['hidden_states'] } : {};
    x = graph.add('Add', [x, linear(inner, intermediate, width)], {}, last);
    graph.outputs.push(...outputs.slice(1));
  }
  graph.outputs.push(x);
  return graph;
}

const MAX_POSITIONS = 4096;

/** Cosines and sines of RoPE, [positions, dh / 2] each. */
function rotations(graph: Editable, headExtent: number): string[] {
  const half = headExtent / 2;
  const angles = Array.from(
    { length: MAX_POSITIONS * half },
    (_, i) => Math.floor(i / half) * 10000 ** (-(i % half) / half),
  );
  return [Math.cos, Math.sin].map((f) => graph.floats(angles.map(f), [MAX_POSITIONS, half]));
}

function ones(graph: Editable, width: number): string {
  return graph.floats(new Float32Array(width).fill(1), [width]);
}

/**
 * LLaVA's vision encoder as exporters write it: CLIP's tower up to the hidden states that enter its last layer, the class
 * token dropped, the projector. `pixel_values` [1, 3, image, image] to `image_features` [1, P, width of the language model].
 */
export function visionEncoder(shape: VisionShape): RandomModel {
  const { image, patch, width, heads, intermediate, layers, languageWidth } = shape;
  const patches = (image / patch) ** 2;
  const graph = new RandomModel();
  graph.inputs = [{ name: 'pixel_values', type: DataType.float, dims: [1, 3, image, image] }];
  const norm = (x: string) =>
    graph.add('LayerNormalization', [x, ones(graph, width), graph.floats(new Float32Array(width), [width])], {
      axis: { i: -1 },
      epsilon: { f: 1e-5 },
    });
  const shaped = (x: string, extents: number[], perm: number[]) =>
    graph.add('Transpose', [graph.add('Reshape', [x, graph.integers(extents)])], { perm: { ints: perm } });
  const perHead = (x: string, perm: number[]) => shaped(x, [0, -1, heads, width / heads], perm);

  const kernel = { kernel_shape: { ints: [patch, patch] }, strides: { ints: [patch, patch] } };
  const convolved = graph.add('Conv', ['pixel_values', graph.weight([width, 3, patch, patch])], kernel);
  const rows = shaped(convolved, [0, width, -1], [0, 2, 1]);
  const classToken = graph.floats(normal(3, width, DEVIATION), [1, 1, width]);
  const tokens = graph.add('Concat', [classToken, rows], { axis: { i: 1 } });
  let x = norm(graph.add('Add', [tokens, graph.weight([1, patches + 1, width])]));
  for (let layer = 0; layer < layers; layer++) {
    const entering = norm(x);
    const [q, k, v] = [0, 1, 2].map(() => linear(graph, entering, width, width));
    const products = graph.add('MatMul', [perHead(q, [0, 2, 1, 3]), perHead(k, [0, 2, 3, 1])]);
    const scores = graph.add('Mul', [products, graph.floats([(width / heads) ** -0.5], [])]);
    const shares = graph.add('Softmax', [scores], { axis: { i: -1 } });
    const context = graph.add('MatMul', [shares, perHead(v, [0, 2, 1, 3])]);
    const turned = graph.add('Transpose', [context], { perm: { ints: [0, 2, 1, 3] } });
    const joined = graph.add('Reshape', [turned, graph.integers([0, -1, width])]);
    x = graph.add('Add', [x, linear(graph, joined, width, width)]);
    const inner = linear(graph, norm(x), width, intermediate);
    // CLIP's quick GELU.
    const gate = graph.add('Sigmoid', [graph.add('Mul', [inner, graph.floats([1.702], [])])]);
    x = graph.add('Add', [x, linear(graph, graph.add('Mul', [inner, gate]), intermediate, width)]);
  }
  // Up to the end, as exporters write it.
  const [from, to, axis] = [[1], [2 ** 31 - 1], [1]].map((values) => graph.integers(values));
  graph.outputs = [connected(graph, graph.add('Slice', [x, from, to, axis]), width, languageWidth)];
  return graph;
}

/** LLaVA-1.5's projector by itself: `patches` [rows, width] to [rows, width of the language model]. */
export function projector(width: number, languageWidth: number): RandomModel {
  const graph = new RandomModel();
  graph.inputs = [{ name: 'patches', type: DataType.float, dims: ['rows', width] }];
  graph.outputs = [connected(graph, 'patches', width, languageWidth)];
  return graph;
}

/** x through the projector: a GELU between two products. */
function connected(graph: RandomModel, x: string, width: number, languageWidth: number): string {
  const inner = linear(graph, x, width, languageWidth);
  const erf = graph.add('Erf', [graph.add('Div', [inner, graph.floats([Math.SQRT2], [])])]);
  const twice = graph.add('Mul', [inner, graph.add('Add', [erf, graph.floats([1], [])])]);
  const activated = graph.add('Mul', [twice, graph.floats([0.5], [])]);
  return linear(graph, activated, languageWidth, languageWidth);
}

/** x W + b. */
function linear(graph: RandomModel, x: string, from: number, to: number): string {
  const bias = graph.floats(normal(2, to, DEVIATION), [to]);
  return graph.add('Add', [bias, graph.add('MatMul', [x, graph.weight([from, to])])]);
}
