/** The shipped models in the forms that other exporters and optimisers give to the same computation. */
import { DataType } from '../../src/onnx/format/proto.js';
import { floatToHalf } from '../../src/tensor.js';
import { uniform } from '../support.js';
import { Editable, type Node } from './editable.js';

export type Variant = (graph: Editable) => void;

/** H of both towers. */
export const HEADS = 4;

/** Every value gets a name that says nothing, graph inputs and weights too; extents of the image are left open. */
export const stripNames: Variant = (graph) => {
  const names = new Map<string, string>([['', '']]);
  graph.rename((name) => {
    if (!names.has(name)) names.set(name, `v${names.size}`);
    return names.get(name)!;
  });
  graph.inputs = graph.inputs.map((input) => ({ ...input, dims: null }));
};

/** Layer norms in nine nodes, as operator sets up to 16 need them. */
export const nineNodeNorms: Variant = (graph) => {
  if (graph.opset === 17) graph.opset = 16;
  for (const node of graph.nodes.filter(({ op }) => op === 'LayerNormalization')) {
    const [x, weight, bias] = node.inputs;
    graph.replace(node, (at) => {
      const add = (op: string, inputs: string[], attributes = {}) => graph.add(op, inputs, attributes, { at: at() });
      const mean = (value: string) =>
        graph.opset < 18
          ? add('ReduceMean', [value], { axes: { ints: [-1] }, keepdims: { i: 1 } })
          : add('ReduceMean', [value, graph.integers([-1])], { keepdims: { i: 1 } });
      const centred = add('Sub', [x, mean(x)]);
      const squares = add('Pow', [centred, graph.floats([2], [])]);
      const variance = add('Add', [mean(squares), graph.floats([1e-5], [])]);
      const normed = add('Div', [centred, add('Sqrt', [variance])]);
      return add('Add', [add('Mul', [normed, weight]), bias]);
    });
  }
};

/** The attention layers: their nodes in the form that the shipped models have, and the mask where there is one. */
export function layers(graph: Editable) {
  return graph.nodes
    .filter(({ op }) => op === 'Softmax')
    .map((softmax) => {
      const behind = graph.producer(softmax.inputs[0])!;
      const mask = behind.op === 'Add' ? behind.inputs[1] : null;
      const scale = mask === null ? behind : graph.producer(behind.inputs[0])!;
      const scores = graph.producer(scale.inputs[0])!;
      const context = reader(graph, softmax, 'MatMul');
      const joined = reader(graph, reader(graph, context, 'Transpose'), 'Reshape');
      const projection = (value: string) => {
        let node = graph.producer(value)!;
        while (node.op !== 'Add') node = graph.producer(node.inputs[0])!;
        return { bias: node.inputs[0], add: node, product: graph.producer(node.inputs[1])! };
      };
      const [q, k, v] = [scores.inputs[0], scores.inputs[1], context.inputs[1]].map(projection);
      const [width] = graph.tensors.get(q.product.inputs[1])!.dims;
      return { softmax, mask, scale, scores, context, joined, q, k, v, width };
    });
}

/** The node of a kind whose first input is what another node writes. */
function reader(graph: Editable, { outputs }: Node, op: string): Node {
  return graph.nodes.find((node) => node.op === op && node.inputs[0] === outputs[0])!;
}

/** Takes the Mul by the scale out. */
export function dropScale(graph: Editable, { scale, scores }: ReturnType<typeof layers>[number]): void {
  graph.redirect(scale.outputs[0], scores.outputs[0]);
  graph.nodes.splice(graph.nodes.indexOf(scale), 1);
}

/** sqrt(scale) on both operands, as exports of scaled_dot_product_attention have it. */
export const scaledOperands: Variant = (graph) => {
  for (const layer of layers(graph)) {
    const { scores, width } = layer;
    const root = graph.floats([(width / HEADS) ** -0.25], []);
    scores.inputs = scores.inputs.map((input) =>
      graph.add('Mul', [input, root], {}, { at: graph.nodes.indexOf(scores) }),
    );
    dropScale(graph, layer);
  }
};

/** The same, with the scale computed from the shape of q, as TorchScript does. */
export const computedScale: Variant = (graph) => {
  for (const layer of layers(graph)) {
    const { scores } = layer;
    const add = (op: string, inputs: string[], attributes = {}) =>
      graph.add(op, inputs, attributes, { at: graph.nodes.indexOf(scores) });
    const extent = add('Slice', [
      add('Shape', [scores.inputs[0]]),
      graph.integers([-1]),
      graph.integers([Number.MAX_SAFE_INTEGER]),
    ]);
    const root = add('Sqrt', [add('Cast', [extent], { to: { i: DataType.float } })]);
    const factor = add('Sqrt', [add('Div', [graph.floats([1], [1]), root])]);
    scores.inputs = scores.inputs.map((input) => add('Mul', [input, factor]));
    dropScale(graph, layer);
  }
};

/** The scale is a Div in front of the product, on q alone. */
export const dividedQueries: Variant = (graph) => {
  for (const layer of layers(graph)) {
    const { scores, width } = layer;
    scores.inputs[0] = graph.add(
      'Div',
      [scores.inputs[0], graph.floats([(width / HEADS) ** 0.5], [])],
      {},
      { at: graph.nodes.indexOf(scores) },
    );
    dropScale(graph, layer);
  }
};

function foldScale(graph: Editable, powerOnQ: number, powerOnK: number): void {
  for (const layer of layers(graph)) {
    const { q, k, width } = layer;
    for (const [{ product, add, bias }, power] of [
      [q, powerOnQ],
      [k, powerOnK],
    ] as const) {
      const factor = (width / HEADS) ** power;
      product.inputs[1] = graph.floats(
        graph.values(product.inputs[1]).map((value) => value * factor),
        [width, width],
      );
      add.inputs[0] = graph.floats(
        graph.values(bias).map((value) => value * factor),
        [width],
      );
    }
    dropScale(graph, layer);
  }
}

/** 1/sqrt(dh) folded into the weights of q. */
export const foldedIntoQ: Variant = (graph) => foldScale(graph, -0.5, 0);

/** The root of 1/sqrt(dh) folded into the weights of q and of k. */
export const foldedIntoBoth: Variant = (graph) => foldScale(graph, -0.25, -0.25);

/** The bias-free projection as Gemm with its weight [out, in], as torch.export writes it. */
export const gemmProjection: Variant = (graph) => {
  const node = graph.producer(graph.outputs[0])!;
  const { dims } = graph.tensors.get(node.inputs[1])!;
  const [rows, cols] = dims;
  const weight = graph.values(node.inputs[1]);
  const transposed = Float32Array.from(weight, (_, i) => weight[(i % rows) * cols + Math.floor(i / rows)]);
  node.op = 'Gemm';
  node.inputs[1] = graph.floats(transposed, [cols, rows]);
  node.attributes = { transB: { i: 1 }, alpha: { f: 1 }, beta: { f: 1 } };
};

/** Weights stored [out, in] and turned by a Transpose node, as an export without constant folding has them. */
export const transposeNodes: Variant = (graph) => {
  for (const node of [...graph.nodes]) {
    if (node.op !== 'MatMul' || !graph.tensors.has(node.inputs[1])) continue;
    const [rows, cols] = graph.tensors.get(node.inputs[1])!.dims;
    const weight = graph.values(node.inputs[1]);
    const turned = graph.floats(
      Float32Array.from(weight, (_, i) => weight[(i % rows) * cols + Math.floor(i / rows)]),
      [cols, rows],
    );
    node.inputs[1] = graph.add('Transpose', [turned], { perm: { ints: [1, 0] } }, { at: graph.nodes.indexOf(node) });
  }
};

/** Identity or Cast in front of every floating-point operand. */
export const passNodes: Variant = (graph) => {
  const FLOAT = new Set(['MatMul', 'Softmax', 'LayerNormalization', 'Add', 'Transpose']);
  const isShape = (value: string): boolean => {
    const node = graph.producer(value);
    return (
      node !== undefined &&
      (node.op === 'Shape' ||
        node.op === 'Cast' ||
        node.inputs.some((input) => !graph.tensors.has(input) && isShapeOp(graph, input)))
    );
  };
  for (const [i, node] of [...graph.nodes].entries()) {
    if (!FLOAT.has(node.op)) continue;
    node.inputs = node.inputs.map((input, slot) => {
      if (input === '' || isShape(input)) return input;
      const at = graph.nodes.indexOf(node);
      return (i + slot) % 2 === 0
        ? graph.add('Identity', [input], {}, { at })
        : graph.add('Cast', [input], { to: { i: DataType.float } }, { at });
    });
  }
};

function isShapeOp(graph: Editable, value: string): boolean {
  return graph.producer(value)?.op === 'Shape';
}

/** Another topological order, drawn at random. */
export const shuffled: Variant = (graph) => {
  const random = uniform(7);
  const left = new Set(graph.nodes);
  const ready = new Set([...graph.tensors.keys(), ...graph.inputs.map((input) => input.name), '']);
  const order: Node[] = [];
  while (left.size > 0) {
    const free = [...left].filter((node) => node.inputs.every((input) => ready.has(input)));
    const node = free[Math.floor(random() * free.length)];
    left.delete(node);
    order.push(node);
    for (const output of node.outputs) ready.add(output);
  }
  graph.nodes = order;
};

/** All weights and values float16, the graph's inputs and outputs too. */
export const halfEverywhere: Variant = (graph) => {
  const narrow = (bytes: Uint8Array) =>
    new Uint8Array(Uint16Array.from(new Float32Array(bytes.slice().buffer), floatToHalf).buffer);
  for (const [name, tensor] of graph.tensors)
    if (tensor.type === DataType.float && 'bytes' in tensor.data)
      graph.tensors.set(name, { ...tensor, type: DataType.float16, data: { bytes: narrow(tensor.data.bytes) } });
  for (const node of graph.nodes) {
    const constant = node.attributes.value?.t;
    if (constant?.type === DataType.float && 'bytes' in constant.data)
      node.attributes.value = {
        t: { ...constant, type: DataType.float16, data: { bytes: narrow(constant.data.bytes) } },
      };
    if (node.op === 'Cast' && node.attributes.to.i === DataType.float) node.attributes.to = { i: DataType.float16 };
  }
  graph.inputs = graph.inputs.map((input) =>
    input.type === DataType.float ? { ...input, type: DataType.float16 } : input,
  );
};

/** All weights and values float16, with float32 at the graph's ends. */
export const halfPrecision: Variant = (graph) => {
  const wide = graph.inputs.filter(({ type }) => type === DataType.float);
  halfEverywhere(graph);
  graph.inputs = graph.inputs.map((input) => wide.find(({ name }) => name === input.name) ?? input);
  for (const { name } of wide) {
    const cast = graph.add('Cast', [name], { to: { i: DataType.float16 } }, { at: 0 });
    graph.redirect(name, cast, [graph.nodes[0]]);
  }
  graph.outputs = graph.outputs.map((output) => graph.add('Cast', [output], { to: { i: DataType.float } }));
};

/** Attention as com.microsoft.MultiHeadAttention, as onnxruntime's optimiser writes it. */
export const multiHeadAttention: Variant = (graph) => {
  for (const { q, k, v, mask, joined } of layers(graph)) {
    const inputs = [q, k, v].map(({ add }) => add.outputs[0]);
    const fused = graph.add(
      'MultiHeadAttention',
      mask === null ? inputs : [...inputs, '', '', mask],
      { num_heads: { i: HEADS } },
      { at: graph.nodes.indexOf(joined), domain: 'com.microsoft' },
    );
    graph.redirect(joined.outputs[0], fused);
  }
};

/** The weights [D, 3D] and biases [3D] of queries, keys and values side by side. */
function packed(graph: Editable, { q, k, v, width }: ReturnType<typeof layers>[number]): [string, string] {
  const weights = [q, k, v].map(({ product }) => graph.values(product.inputs[1]));
  const rows = new Float32Array(3 * width * width);
  for (let i = 0; i < width; i++)
    for (let part = 0; part < 3; part++)
      rows.set(weights[part].subarray(i * width, (i + 1) * width), (3 * i + part) * width);
  const biases = [q, k, v].flatMap(({ bias }) => [...graph.values(bias)]);
  return [graph.floats(rows, [width, 3 * width]), graph.floats(biases, [3 * width])];
}

/** Attention as com.microsoft.Attention with packed weights. */
export const packedAttention: Variant = (graph) => {
  for (const layer of layers(graph)) {
    const { q, mask, joined } = layer;
    const inputs = [q.product.inputs[0], ...packed(graph, layer)];
    const fused = graph.add(
      'Attention',
      mask === null ? inputs : [...inputs, '', '', mask],
      { num_heads: { i: HEADS } },
      { at: graph.nodes.indexOf(joined), domain: 'com.microsoft' },
    );
    graph.redirect(joined.outputs[0], fused);
  }
};

/** Attention of ONNX operator set 23. */
export const standardAttention: Variant = (graph) => {
  graph.opset = 23;
  for (const { q, k, v, joined } of layers(graph)) {
    const inputs = [q, k, v].map(({ add }) => add.outputs[0]);
    const heads = { q_num_heads: { i: HEADS }, kv_num_heads: { i: HEADS } };
    const fused = graph.add('Attention', inputs, heads, { at: graph.nodes.indexOf(joined) });
    graph.redirect(joined.outputs[0], fused);
  }
};

/** One projection [D, 3D] for queries, keys and values, and how its three parts are taken. */
function packProjections(
  graph: Editable,
  take: (packed: string, part: number, width: number, at: () => number) => string,
): void {
  for (const layer of layers(graph)) {
    const { q, k, v, width } = layer;
    const at = () => Math.min(...[q, k, v].map(({ add }) => graph.nodes.indexOf(add)));
    const [weight, bias] = packed(graph, layer);
    const product = graph.add('MatMul', [q.product.inputs[0], weight], {}, { at: at() });
    const sum = graph.add('Add', [product, bias], {}, { at: at() });
    for (const [part, { add }] of [q, k, v].entries()) graph.redirect(add.outputs[0], take(sum, part, width, at));
  }
}

/** One packed projection, taken apart by Split. */
export const splitProjection: Variant = (graph) => {
  const parts = new Map<string, string[]>();
  packProjections(graph, (packed, part, width, at) => {
    if (!parts.has(packed)) {
      const outputs = ['q', 'k', 'v'].map((what) => graph.fresh(what));
      // From operator set 18 on, a count takes the place of the extents.
      if (graph.opset < 18)
        graph.add('Split', [packed, graph.integers([width, width, width])], { axis: { i: -1 } }, { at: at(), outputs });
      else graph.add('Split', [packed], { axis: { i: -1 }, num_outputs: { i: 3 } }, { at: at(), outputs });
      parts.set(packed, outputs);
    }
    return parts.get(packed)![part];
  });
};

/** One packed projection, taken apart by a Gather of [3, batch, N, D], as torch.nn.MultiheadAttention has it. */
export const gatheredProjection: Variant = (graph) =>
  packProjections(graph, (packed, part, width, at) => {
    const shaped = graph.add('Reshape', [packed, graph.integers([0, 0, 3, width])], {}, { at: at() });
    const turned = graph.add('Transpose', [shaped], { perm: { ints: [2, 0, 1, 3] } }, { at: at() });
    return graph.add('Gather', [turned, graph.integers([part], [])], { axis: { i: 0 } }, { at: at() });
  });

/** Residual sums and norms in one SkipLayerNormalization, with the sum as fourth output only where something else reads it. */
export const skipNorms: Variant = (graph) => {
  for (const node of [...graph.nodes].filter(({ op }) => op === 'LayerNormalization')) {
    const sum = graph.producer(node.inputs[0]);
    if (sum?.op !== 'Add' || sum.inputs.some((input) => graph.tensors.has(input))) continue;
    const isShared = graph.nodes.filter((reader) => reader.inputs.includes(sum.outputs[0])).length > 1;
    node.op = 'SkipLayerNormalization';
    node.domain = 'com.microsoft';
    node.inputs = [...sum.inputs, node.inputs[1], node.inputs[2]];
    node.attributes = { epsilon: { f: 1e-5 } };
    if (isShared) node.outputs = [node.outputs[0], '', '', sum.outputs[0]];
    graph.nodes.splice(graph.nodes.indexOf(sum), 1);
  }
};

/** Image and text tower in one file, as exports of a whole CLIPModel have them: unit embeddings and their products. */
export async function together(vision: Uint8Array, text: Uint8Array): Promise<Editable> {
  const both = new Editable();
  const unit = (output: string) =>
    both.add('Div', [output, both.add('ReduceL2', [output], { axes: { ints: [-1] }, keepdims: { i: 1 } })]);
  const embeddings: string[] = [];
  for (const [prefix, bytes] of Object.entries({ vision, text })) {
    const tower = await Editable.from(bytes);
    const rename = (name: string) => (name === '' ? '' : `${prefix}.${name}`);
    for (const node of tower.nodes)
      both.nodes.push({ ...node, inputs: node.inputs.map(rename), outputs: node.outputs.map(rename) });
    for (const tensor of tower.tensors.values())
      both.tensors.set(rename(tensor.name), { ...tensor, name: rename(tensor.name) });
    both.inputs.push(...tower.inputs.map((input) => ({ ...input, name: rename(input.name) })));
    embeddings.push(unit(rename(tower.outputs[0])));
  }
  const turned = both.add('Transpose', [embeddings[1]], { perm: { ints: [1, 0] } });
  both.outputs = [both.add('Mul', [both.add('MatMul', [embeddings[0], turned]), both.floats([14], [])]), ...embeddings];
  return both;
}
