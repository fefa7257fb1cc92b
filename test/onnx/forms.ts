/** The shipped models as quantisers and optimisers leave them: other numbers, or other operators for the same ones. */
import { DataType } from '../../src/onnx/format/proto.js';
import type { Editable, Node } from './editable.js';
import { dropScale, layers, type Variant } from './variants.js';

/** Dynamic 8-bit quantisation of every MatMul, Conv and embedding with a weight, as the q8 exports have it. */
export const dynamic8: Variant = (graph) => {
  const activations = new Map<string, string[]>();
  for (const node of [...graph.nodes]) {
    if (isEmbedding(graph, node)) {
      const { name, scale } = octets(graph, node.inputs[0]);
      graph.replace(node, (at) => {
        const rows = graph.add('Gather', [name, node.inputs[1]], node.attributes, { at: at() });
        const inputs = [rows, graph.floats([scale], []), graph.octets(Uint8Array.of(ZERO), [])];
        return graph.add('DequantizeLinear', inputs, {}, { at: at() });
      });
    }
    if (!isWeighted(graph, node)) continue;
    const { name, scale } = octets(graph, node.inputs[1]);
    graph.replace(node, (at) => {
      const [x] = node.inputs;
      const add = (op: string, inputs: string[], attributes = {}) => graph.add(op, inputs, attributes, { at: at() });
      // A value that several layers read is quantised once.
      const quantized = activations.get(x) ?? ['x', 'scale', 'zero'].map((what) => graph.fresh(what));
      if (!activations.has(x)) graph.add('DynamicQuantizeLinear', [x], {}, { at: at(), outputs: quantized });
      activations.set(x, quantized);
      const [value, valueScale, zero] = quantized;
      const inputs = [value, name, zero, graph.octets(Uint8Array.of(ZERO), [])];
      const product = add(node.op === 'Conv' ? 'ConvInteger' : 'MatMulInteger', inputs, node.attributes);
      const float = add('Cast', [product], { to: { i: DataType.float } });
      return add('Mul', [float, add('Mul', [valueScale, graph.floats([scale], [])])]);
    });
  }
};

const ZERO = 128;

/** A weight as unsigned bytes around {@link ZERO}. */
function octets(graph: Editable, weight: string): { name: string; scale: number } {
  const values = graph.values(weight);
  const scale = values.reduce((max, value) => Math.max(max, Math.abs(value)), 0) / 127;
  const bytes = Uint8Array.from(values, (value) => Math.round(value / scale) + ZERO);
  return { name: graph.octets(bytes, [...graph.tensors.get(weight)!.dims]), scale };
}

const isWeighted = (graph: Editable, { op, inputs }: Node) =>
  (op === 'MatMul' || op === 'Conv') && graph.tensors.has(inputs[1]);

const isEmbedding = (graph: Editable, { op, inputs }: Node) =>
  op === 'Gather' && graph.tensors.get(inputs[0])?.dims.length === 2;

const BLOCK = 32;

/** Every MatMul with a weight as MatMulNBits: one scale for each block of 32 inputs of an output. */
const blocks = (bits: number, graph: Editable) => {
  for (const node of graph.nodes) {
    if (node.op !== 'MatMul' || !graph.tensors.has(node.inputs[1])) continue;
    const weight = graph.values(node.inputs[1]);
    const [inputs, outputs] = graph.tensors.get(node.inputs[1])!.dims;
    const rows = weight.map((_, i) => weight[(i % inputs) * outputs + Math.floor(i / inputs)]);
    const { packed, scales } = codes(rows, bits);
    node.op = 'MatMulNBits';
    node.domain = 'com.microsoft';
    node.inputs = [
      node.inputs[0],
      graph.octets(packed, [outputs, inputs / BLOCK, (BLOCK * bits) / 8]),
      graph.floats(scales, [scales.length]),
    ];
    node.attributes = { K: { i: inputs }, N: { i: outputs }, bits: { i: bits }, block_size: { i: BLOCK } };
  }
};

export const blocks4: Variant = (graph) => blocks(4, graph);
export const blocks8: Variant = (graph) => blocks(8, graph);

/** Every embedding as GatherBlockQuantized, in the same blocks. */
export const embeddings4: Variant = (graph) => {
  for (const node of graph.nodes.filter((candidate) => isEmbedding(graph, candidate))) {
    const [count, width] = graph.tensors.get(node.inputs[0])!.dims;
    const { packed, scales } = codes(graph.values(node.inputs[0]), 4);
    node.op = 'GatherBlockQuantized';
    node.domain = 'com.microsoft';
    node.inputs = [
      graph.octets(packed, [count, width / 2]),
      node.inputs[1],
      graph.floats(scales, [count, width / BLOCK]),
    ];
    node.attributes = { bits: { i: 4 }, block_size: { i: BLOCK }, gather_axis: { i: 0 }, quantize_axis: { i: 1 } };
  }
};

/** Codes of 4 or 8 bits, the first one lowest in its byte, and a scale for each block. */
function codes(values: Float32Array, bits: number): { packed: Uint8Array; scales: Float32Array } {
  const packed = new Uint8Array((values.length * bits) / 8);
  const scales = new Float32Array(values.length / BLOCK);
  const zero = 2 ** (bits - 1);
  for (const [block] of scales.entries()) {
    const of = values.subarray(block * BLOCK, (block + 1) * BLOCK);
    // The largest value, with its sign, has the code 0.
    scales[block] = of.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a)) / -zero;
    for (const [i, value] of of.entries()) {
      const bit = (block * BLOCK + i) * bits;
      packed[bit >> 3] |= Math.min(2 * zero - 1, Math.round(value / scales[block]) + zero) << (bit & 7);
    }
  }
  return { packed, scales };
}

/** x * sigmoid(1.702 x) as QuickGelu of com.microsoft. */
export const quickGelu: Variant = (graph) => {
  for (const node of [...graph.nodes]) {
    const sigmoid = graph.producer(node.inputs[1]);
    if (node.op !== 'Mul' || sigmoid?.op !== 'Sigmoid') continue;
    node.op = 'QuickGelu';
    node.domain = 'com.microsoft';
    node.inputs = [node.inputs[0]];
    node.attributes = { alpha: { f: 1.702 } };
    for (const left of [graph.producer(sigmoid.inputs[0])!, sigmoid]) graph.nodes.splice(graph.nodes.indexOf(left), 1);
  }
};

/** The product of queries and keys with its scale and the transposition of the keys in one FusedMatMul. */
export const fusedProducts: Variant = (graph) => {
  for (const layer of layers(graph)) {
    const { scores, scale } = layer;
    const keys = graph.producer(scores.inputs[1])!;
    keys.attributes = { perm: { ints: [0, 2, 1, 3] } };
    scores.op = 'FusedMatMul';
    scores.domain = 'com.microsoft';
    scores.attributes = { transB: { i: 1 }, alpha: { f: constant(graph, scale.inputs[1]) } };
    dropScale(graph, layer);
  }
};

/** Linear layers as FusedMatMul, with half the weight and the factor 2. */
export const fusedLinears: Variant = (graph) => {
  for (const node of graph.nodes) {
    if (node.op !== 'MatMul' || !graph.tensors.has(node.inputs[1])) continue;
    const { dims } = graph.tensors.get(node.inputs[1])!;
    const halved = graph.values(node.inputs[1]).map((value) => value / 2);
    node.inputs[1] = graph.floats(halved, [...dims]);
    node.op = 'FusedMatMul';
    node.domain = 'com.microsoft';
    node.attributes = { alpha: { f: 2 } };
  }
};

/** The exact GELU of the projector, and the bias in front of it, as BiasGelu of com.microsoft. */
export const biasGelu: Variant = (graph) => {
  for (const erf of graph.nodes.filter(({ op }) => op === 'Erf')) {
    const { sum, last } = gelu(graph, erf);
    const [bias, product] = sum.inputs;
    const at = graph.nodes.indexOf(last);
    graph.redirect(last.outputs[0], graph.add('BiasGelu', [product, bias], {}, { at, domain: 'com.microsoft' }));
  }
};

/** The same as Gelu of operator set 20. */
export const standardGelu: Variant = (graph) => {
  graph.opset = 20;
  for (const erf of graph.nodes.filter(({ op }) => op === 'Erf')) {
    const { sum, last } = gelu(graph, erf);
    graph.redirect(last.outputs[0], graph.add('Gelu', [sum.outputs[0]], {}, { at: graph.nodes.indexOf(last) }));
  }
};

/** The sum that a GELU written with Erf takes, and the last of its nodes. */
function gelu(graph: Editable, erf: Node): { sum: Node; last: Node } {
  const quotient = graph.producer(erf.inputs[0])!;
  const sum = graph.producer(quotient.inputs[0])!;
  const reader = (node: Node) => graph.nodes.find(({ inputs }) => inputs.includes(node.outputs[0]))!;
  return { sum, last: reader(reader(reader(erf))) };
}

function constant(graph: Editable, value: string): number {
  const data = graph.producer(value)!.attributes.value.t!.data;
  if (!('bytes' in data)) throw new Error('not in memory');
  return new Float32Array(data.bytes.slice().buffer)[0];
}

/** Attention with packed 8-bit weights (QAttention), as the quantiser makes of fused attention; for graphs that have that. */
export const quantizedAttention: Variant = (graph) => {
  for (const node of graph.nodes.filter(({ op }) => op === 'Attention')) {
    const { name, scale } = octets(graph, node.inputs[1]);
    const quantized = ['x', 'scale', 'zero'].map((what) => graph.fresh(what));
    graph.add('DynamicQuantizeLinear', [node.inputs[0]], {}, { at: graph.nodes.indexOf(node), outputs: quantized });
    const zero = graph.octets(Uint8Array.of(ZERO), []);
    node.op = 'QAttention';
    node.inputs = [quantized[0], name, node.inputs[2], quantized[1], graph.floats([scale], []), '', quantized[2], zero];
  }
};

/** The bias of every output projection inside of the SkipLayerNormalization behind it; for graphs that have those. */
export const skipBias: Variant = (graph) => {
  for (const norm of graph.nodes.filter(({ op }) => op === 'SkipLayerNormalization')) {
    const index = norm.inputs.slice(0, 2).findIndex((value) => {
      const sum = graph.producer(value);
      return sum?.op === 'Add' && graph.tensors.has(sum.inputs[0]);
    });
    if (index < 0) continue;
    const [bias, product] = graph.producer(norm.inputs[index])!.inputs;
    norm.inputs[index] = product;
    norm.inputs[4] = bias;
  }
};

/** Names as torch.export gives them: `linear_12`, `val_109`, nodes numbered through. */
export const exportNames: Variant = (graph) => {
  const names = new Map([...graph.inputs.map(({ name }) => name), ...graph.outputs, ''].map((name) => [name, name]));
  const kinds: Record<string, string> = {
    MatMul: 'linear',
    Gemm: 'linear',
    Add: 'add',
    LayerNormalization: 'layer_norm',
  };
  for (const [i, node] of graph.nodes.entries()) {
    const kind = kinds[node.op] ?? 'val';
    node.name = `node_${kind === 'val' ? node.op : kind}_${i}`;
    for (const output of node.outputs) if (!names.has(output)) names.set(output, `${kind}_${names.size}`);
  }
  // Biases and norms keep the path of their module there; nothing in it may help.
  for (const name of graph.tensors.keys()) names.set(name, `val_${names.size}`);
  graph.rename((name) => names.get(name)!);
};
