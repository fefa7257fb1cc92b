/** Attention as other tools write it, in place of what an exporter wrote: the graph computes what it did. */
import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';
import { DataType } from '../../src/onnx/format/proto.js';
import { newNode, writeValue } from '../../src/onnx/format/write.js';
import { Editable, type Node, typedValue } from '../onnx/editable.js';

/** The shape of the towers under `test/fixtures/families`. */
const [HEADS, EXTENT] = [4, 8];
const SCALE = EXTENT ** -0.5;
const MICROSOFT = { domain: 'com.microsoft' };

/** Values around an attention that torch.export wrote: operands and result [1, H, L, dh], and its last node. */
interface Site {
  readonly q: string;
  readonly k: string;
  readonly v: string;
  readonly mask: string;
  readonly context: Node;
}

type Write = (graph: Graph, site: Site) => string;

/** By name: what writes the result of an attention, and the operator set that it needs. */
const FORMS: Readonly<Record<string, { write: Write; opset?: number }>> = {
  'ONNX Attention': {
    opset: 23,
    write: (g, { q, k, v, mask }) => g.add('Attention', [q, k, v, mask], { scale: { f: SCALE } }),
  },
  'ONNX Attention of flat rows': {
    opset: 23,
    write: (g, { q, k, v, mask }) => {
      const heads = { q_num_heads: { i: HEADS }, kv_num_heads: { i: HEADS } };
      return g.apart(g.add('Attention', [...[q, k, v].map((value) => g.flat(value)), mask], heads));
    },
  },
  MultiHeadAttention: {
    write: (g, { q, k, v, mask }) => {
      const bias = g.add('Unsqueeze', [g.add('Squeeze', [mask]), g.integers([0, 1])]);
      const inputs = [...[q, k, v].map((value) => g.flat(value)), '', '', bias];
      return g.apart(g.add('MultiHeadAttention', inputs, { num_heads: { i: HEADS } }, MICROSOFT));
    },
  },
  PackedMultiHeadAttention: {
    write: (g, { q, k, v }) => {
      const rows = [q, k, v].map((value) => g.reshape(g.flat(value), [-1, HEADS * EXTENT]));
      const int32 = (value: string) => g.add('Cast', [value], { to: { i: DataType.int32 } });
      const offsets = g.add('Unsqueeze', [
        g.add('Range', [g.integers([0], []), g.total(), g.integers([1], [])]),
        g.integers([0]),
      ]);
      const inputs = [...rows, '', int32(offsets), int32(g.bounds())];
      const attributes = { num_heads: { i: HEADS }, scale: { f: SCALE } };
      return g.apart(g.add('PackedMultiHeadAttention', inputs, attributes, MICROSOFT));
    },
  },
  'a Loop of MultiHeadAttention': {
    write: (g, { q, k, v }) => {
      const [a, b, c] = [q, k, v].map((value) => g.flat(value));
      const attend = { op: 'MultiHeadAttention', domain: 'com.microsoft', attributes: { num_heads: { i: HEADS } } };
      return g.apart(g.loop([a, b, c], 1, attend, 'Concat'));
    },
  },
  'a Loop of ONNX Attention': {
    opset: 24,
    write: (g, { q, k, v }) => g.loop([q, k, v], 2, { op: 'Attention', attributes: {} }, 'Concat'),
  },
  'a Loop into a sequence': {
    write: (g, { q, k, v }) => {
      const [a, b, c] = [q, k, v].map((value) => g.flat(value));
      const attend = { op: 'MultiHeadAttention', domain: 'com.microsoft', attributes: { num_heads: { i: HEADS } } };
      return g.apart(g.loop([a, b, c], 1, attend, 'SequenceInsert'));
    },
  },
  FusedMatMul: {
    write: (g, { q, k, v, mask }) => {
      const [a, b, c] = [q, k, v].map((value) => g.reshape(g.flat(value), [-1, HEADS, EXTENT]));
      const on = { i: 1 };
      const product = { transBatchA: on, transBatchB: on, transB: on, alpha: { f: SCALE } };
      const scores = g.add('FusedMatMul', [a, b], product, MICROSOFT);
      const masked = g.add('Add', [scores, g.add('Squeeze', [mask])]);
      const weights = g.add('Softmax', [masked], { axis: { i: -1 } });
      return g.unsqueeze(g.add('FusedMatMul', [weights, c], { transBatchB: on }, MICROSOFT), 0);
    },
  },
};

export const FORM_NAMES = Object.keys(FORMS);

/** A file that torch.export wrote, with its attention in another form: that of the last block, or of all. */
export async function inForm(bytes: Uint8Array, form: string, which: 'last' | 'all'): Promise<Uint8Array> {
  const graph = await Graph.read(bytes);
  const { write, opset } = FORMS[form];
  graph.opset = opset ?? graph.opset;
  const all = graph.sites();
  for (const site of which === 'all' ? all : all.slice(-1)) graph.replace(site.context, () => write(graph, site));
  return graph.bytes();
}

/** A tower that torch.export wrote, taken apart. */
export class Graph extends Editable {
  static async read(bytes: Uint8Array): Promise<Graph> {
    return Object.assign(new Graph(), await Editable.from(bytes));
  }

  /** The attentions, in the order of the blocks. */
  sites(): Site[] {
    const at = (value: string) => this.producer(value) as Node;
    return this.nodes
      .filter(({ op }) => op === 'Softmax')
      .map((softmax) => {
        const sum = at(softmax.inputs[0]);
        const product = at(sum.inputs[0]);
        const context = this.nodes.find((node) => node.inputs[0] === softmax.outputs[0]) as Node;
        let k = product.inputs[1];
        while (at(k).op !== 'Unsqueeze') [k] = at(k).inputs;
        return { q: at(product.inputs[0]).inputs[0], k, v: context.inputs[1], mask: sum.inputs[1], context };
      });
  }

  /** The nodes of one kind, or the one that writes a value, with another operator. */
  retype(op: string, as: string, output?: string): void {
    for (const node of this.nodes)
      if (node.op === op && (output === undefined || node.outputs.includes(output))) node.op = as;
  }

  /** Lets what reads one value read another. */
  skip(value: string, other: string): void {
    for (const node of this.nodes) node.inputs = node.inputs.map((input) => (input === value ? other : input));
  }

  /** Writes every rotation `x cos + turned(x) sin` of rows [L, H, dh] in another way. */
  rotations(as: 'halves' | 'interleaved' | 'com.microsoft' | 'onnx'): void {
    const at = (value: string) => this.producer(value);
    const isTurned = (value: string) => at(value)?.inputs.some((input) => at(input)?.op === 'Concat');
    const sums = this.nodes.filter(
      ({ op, inputs }) => op === 'Add' && at(inputs[0])?.op === 'Mul' && isTurned(inputs[1]),
    );
    for (const sum of sums) {
      const [x, cos] = (at(sum.inputs[0]) as Node).inputs;
      const [, sin] = (at(sum.inputs[1]) as Node).inputs;
      this.replace(sum, () => this.rotation(as, x, cos, sin));
    }
  }

  private rotation(as: string, x: string, cos: string, sin: string): string {
    const half = (value: string, which: number) =>
      this.add('Slice', [
        value,
        ...[which * (EXTENT / 2), (which + 1) * (EXTENT / 2), -1].map((one) => this.integers([one])),
      ]);
    const [c, s] = [half(cos, 0), half(sin, 0)];
    if (as === 'halves') {
      const [a, b] = [half(x, 0), half(x, 1)];
      const product = (value: string, by: string) => this.add('Mul', [value, by]);
      const first = this.add('Sub', [product(a, c), product(b, s)]);
      const second = this.add('Add', [product(a, s), product(b, c)]);
      return this.add('Concat', [first, second], { axis: { i: -1 } });
    }
    const tables = [c, s].map((value) => this.add('Squeeze', [value, this.integers([1])]));
    const rows = this.reshape(x, [1, -1, HEADS * EXTENT]);
    const heads = { num_heads: { i: HEADS } };
    const pairs = { ...heads, interleaved: { i: 1 } };
    const count = this.add('Gather', [this.add('Shape', [x]), this.integers([0], [])]);
    const places = this.unsqueeze(this.add('Range', [this.integers([0], []), count, this.integers([1], [])]), 0);
    const turned =
      as === 'onnx'
        ? this.add('RotaryEmbedding', [rows, ...tables.map((table) => this.unsqueeze(table, 0))], heads)
        : this.add('RotaryEmbedding', [rows, places, ...tables], as === 'interleaved' ? pairs : heads, MICROSOFT);
    return this.reshape(turned, [-1, HEADS, EXTENT]);
  }

  /** Norms of residual sums as SkipLayerNormalization, which adds the bias of the layer in front too. */
  skipNorms(): void {
    for (const norm of this.nodes.filter(({ op }) => op === 'LayerNormalization')) {
      const sum = this.producer(norm.inputs[0]);
      const layer = sum?.op === 'Add' ? this.producer(sum.inputs[1]) : undefined;
      // Of a block's two norms, the one behind the attention, and the next one behind the other layers.
      if (sum === undefined || layer?.op !== 'Gemm') continue;
      const [bias] = layer.inputs.splice(2, 1);
      const total = sum.outputs[0];
      const inputs = [...sum.inputs, norm.inputs[1], norm.inputs[2], bias];
      const outputs = [norm.outputs[0], '', '', total];
      sum.outputs = [this.fresh('unused')];
      norm.outputs = [this.fresh('unused')];
      this.add('SkipLayerNormalization', inputs, { epsilon: { f: 1e-6 } }, { ...MICROSOFT, outputs });
    }
    this.prune();
  }

  reshape(value: string, shape: number[]): string {
    return this.add('Reshape', [value, this.integers(shape)]);
  }

  unsqueeze(value: string, axis: number): string {
    return this.add('Unsqueeze', [value, this.integers([axis])]);
  }

  /** [1, H, L, dh] as [1, L, H dh]. */
  flat(value: string): string {
    return this.reshape(this.add('Transpose', [value], { perm: { ints: [0, 2, 1, 3] } }), [1, -1, HEADS * EXTENT]);
  }

  /** The other way. */
  apart(value: string): string {
    return this.add('Transpose', [this.reshape(value, [1, -1, HEADS, EXTENT])], { perm: { ints: [0, 2, 1, 3] } });
  }

  /** Patches of one image. */
  total(): string {
    return this.add('ReduceProd', [this.reshape(this.inputs[1].name, [-1])], { keepdims: { i: 0 } });
  }

  /** Where its frames begin, and the end. */
  bounds(): string {
    const sides = this.add('Gather', [this.reshape(this.inputs[1].name, [-1]), this.integers([1, 2])]);
    const frame = this.add('ReduceProd', [sides], { keepdims: { i: 0 } });
    const end = this.add('Add', [this.total(), this.integers([1], [])]);
    return this.add('Range', [this.integers([0], []), end, frame]);
  }

  /** An attention in a Loop over frames: slices of its operands along an axis, and the results appended. */
  loop(
    operands: string[],
    axis: number,
    attend: Pick<Node, 'op' | 'domain' | 'attributes'>,
    append: 'Concat' | 'SequenceInsert' | 'ScatterND',
  ): string {
    const [bounds, one, along] = [this.bounds(), this.integers([1]), this.integers([axis])];
    const isSequence = append === 'SequenceInsert';
    const node = (op: string, inputs: string[], output: string, attributes = {}) =>
      newNode({ op, inputs, outputs: [output], attributes });
    const nodes = [
      node('Unsqueeze', ['step', this.integers([0])], 'this'),
      node('Add', ['this', one], 'next'),
      node('Gather', [bounds, 'this'], 'start'),
      node('Gather', [bounds, 'next'], 'end'),
      ...operands.map((operand, i) => node('Slice', [operand, 'start', 'end', along], `part_${i}`)),
      newNode({ ...attend, inputs: ['part_0', 'part_1', 'part_2'], outputs: ['attended'] }),
      isSequence
        ? node(append, ['before', 'attended'], 'after')
        : node(append, ['before', 'attended'], 'after', { axis: { i: axis } }),
      node('Identity', ['goes_on'], 'still'),
    ];
    const body = new BinaryWriter();
    const field = (number: number, bytes: Uint8Array) => body.tag(number, WireType.LengthDelimited).bytes(bytes);
    for (const { bytes } of nodes) field(1, bytes);
    body.tag(2, WireType.LengthDelimited).string('body');
    field(11, typedValue({ name: 'step', type: DataType.int64, dims: [] }));
    field(11, typedValue({ name: 'goes_on', type: DataType.bool, dims: [] }));
    field(11, isSequence ? writeValue('before') : writeValue('before', DataType.float));
    for (const name of ['still', 'after']) field(12, writeValue(name));
    const steps = this.add('Sub', [this.add('Size', [bounds]), this.integers([1], [])]);
    const empty = isSequence
      ? this.add('SequenceEmpty', [], { dtype: { i: DataType.float } })
      : this.add('Slice', [operands[2], this.integers([0]), this.integers([0]), along]);
    const all = this.add('Loop', [steps, '', empty], { body: { g: body.finish() } });
    return isSequence ? this.add('ConcatFromSequence', [all], { axis: { i: axis } }) : all;
  }
}
