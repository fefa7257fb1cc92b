import type { OnnxNode } from '../format/messages.js';
import { elementCount, type StoredTensor } from '../format/stored-tensor.js';
import type { Graph } from './graph.js';

/** A weight matrix where it lies, with its orientation; `part` names one of several equal parts along the outputs. */
export interface Matrix {
  readonly tensor: StoredTensor;
  readonly order: 'in-out' | 'out-in';
  readonly part: Part | null;
}

/** A bias where it lies. */
export interface Vector {
  readonly tensor: StoredTensor;
  readonly part: Part | null;
}

/** The `index`-th of `count` equal parts, as in packed query, key and value. */
export interface Part {
  readonly index: number;
  readonly count: number;
}

/** A linear layer, whichever operators it is written in. */
export interface Linear {
  /** Value that it multiplies, and value that holds its result with the bias. */
  readonly input: string;
  readonly output: string;
  /** The value in front of a bias that an operator behind adds; otherwise `output`. */
  readonly product: string;
  /** The operator that multiplies. */
  readonly op: string;
  /** Null when the weight is quantised or computed at run time. */
  readonly weight: Matrix | null;
  readonly bias: Vector | null;
  /** The value of a bias that a fused layer norm behind adds, so that `output` lacks it; otherwise null. */
  readonly laterBias: string | null;
  /** Factors on weight and bias (Gemm alpha and beta). */
  readonly alpha: number;
  readonly beta: number;
  /** Whether the weight is stored in a quantised form. */
  readonly quantized: boolean;
}

/** The linear layers of a graph, by the values that they write and read. */
export class Linears {
  private readonly byOutput = new Map<string, Linear>();
  private readonly byNode = new Map<OnnxNode, Linear>();

  constructor(private readonly graph: Graph) {
    for (const node of graph.order) {
      const linear = this.read(node);
      if (linear === null) continue;
      this.byOutput.set(linear.output, linear);
      this.byNode.set(node, linear);
    }
  }

  /** The layer whose result this value is, behind Identity, Cast and Dropout. */
  behind(value: string): Linear | undefined {
    return this.byOutput.get(value) ?? this.byOutput.get(this.graph.origin(value));
  }

  /** The layer that begins with this node. */
  at(node: OnnxNode): Linear | undefined {
    return this.byNode.get(node);
  }

  private read(node: OnnxNode): Linear | null {
    const core = multiplication(this.graph, node);
    if (core === null) return null;
    const bias = core.bias === null ? this.biasBehind(core) : null;
    return bias === null ? core : { ...core, ...bias };
  }

  /** The constant vector that is added to a product, when nothing else reads the product: by an Add, or in a fused layer norm. */
  private biasBehind({ output, weight }: Linear): Pick<Linear, 'bias' | 'output' | 'laterBias'> | null {
    const { graph } = this;
    const users = graph.users(output);
    if (users.length !== 1) return null;
    const { node, as } = users[0];
    const place = LATER_BIAS[node.op];
    const later = place === undefined ? '' : (node.inputs[place] ?? '');
    const isLater = later !== '';
    if (node.op !== 'Add' && !isLater) return null;
    const added = isLater ? later : node.inputs[node.inputs[0] === as ? 1 : 0];
    const tensor = graph.tensor(added);
    if (tensor === null || tensor.dims.at(-1) !== elementCount(tensor)) return null;
    if (weight !== null && elementCount(tensor) !== outputs(weight)) return null;
    const bias = { tensor, part: null };
    return isLater ? { bias, output, laterBias: added } : { bias, output: node.outputs[0], laterBias: null };
  }
}

/** The input of a fused norm that holds the bias of the layer in front. */
const LATER_BIAS: Readonly<Record<string, number | undefined>> = {
  SkipLayerNormalization: 4,
  SkipSimplifiedLayerNormalization: 3,
};

/** Rows of y that a weight makes. */
export function outputs({ tensor, order, part }: Matrix): number {
  return tensor.dims[order === 'in-out' ? 1 : 0] / (part?.count ?? 1);
}

/** Columns of x that a weight takes. */
export function inputs({ tensor, order }: Matrix): number {
  return tensor.dims[order === 'in-out' ? 0 : 1];
}

/** The product of a value with a constant matrix, or null when the node is something else. */
function multiplication(graph: Graph, node: OnnxNode): Linear | null {
  const [a, b, c] = node.inputs;
  const made = (output: string) => ({ output, product: output });
  const plain = { input: a, ...made(node.outputs[0]), op: node.op, alpha: 1, beta: 1, bias: null, laterBias: null };
  const number = (name: string, otherwise: number) => {
    const attribute = node.attributes.get(name);
    return attribute?.f ?? attribute?.i ?? otherwise;
  };
  if (a === undefined || graph.isConstant(a)) return null;
  switch (node.op) {
    case 'MatMul':
      return graph.isConstant(b) ? { ...plain, ...weightOf(graph, b, false) } : null;
    case 'FusedMatMul': {
      if (!graph.isConstant(b) || number('transA', 0) !== 0) return null;
      return { ...plain, ...weightOf(graph, b, number('transB', 0) === 1), alpha: number('alpha', 1) };
    }
    case 'Gemm': {
      if (!graph.isConstant(b) || number('transA', 0) !== 0) return null;
      const tensor = c ? graph.tensor(c) : null;
      const bias = tensor === null ? null : { tensor, part: null };
      return {
        ...plain,
        ...weightOf(graph, b, number('transB', 0) === 1),
        bias,
        alpha: number('alpha', 1),
        beta: number('beta', 1),
      };
    }
    case 'MatMulNBits':
    case 'MatMulBnb4':
      return { ...plain, weight: null, quantized: true };
    case 'MatMulIntegerToFloat':
    case 'DynamicQuantizeMatMul':
    case 'QLinearMatMul':
      return { ...plain, input: unquantized(graph, a), weight: null, quantized: true };
    case 'MatMulInteger':
      return graph.isConstant(b)
        ? {
            ...plain,
            input: unquantized(graph, a),
            ...made(rescaled(graph, node.outputs[0])),
            weight: null,
            quantized: true,
          }
        : null;
    default:
      return null;
  }
}

/** Follows a constant to its tensor through Identity, Cast and Transpose. */
function weightOf(graph: Graph, value: string, isTransposed: boolean): { weight: Matrix | null; quantized: boolean } {
  let order: Matrix['order'] = isTransposed ? 'out-in' : 'in-out';
  let at = value;
  for (let tensor = graph.tensor(at); ; tensor = graph.tensor(at)) {
    if (tensor !== null)
      return { weight: tensor.dims.length === 2 ? { tensor, order, part: null } : null, quantized: false };
    const node = graph.producer(graph.origin(at));
    if (node?.op !== 'Transpose') return { weight: null, quantized: node?.op === 'DequantizeLinear' };
    order = order === 'in-out' ? 'out-in' : 'in-out';
    at = node.inputs[0];
  }
}

/** The floating-point value behind the quantisation of an activation. */
export function unquantized(graph: Graph, value: string): string {
  const node = graph.producer(graph.origin(value));
  return node?.op === 'DynamicQuantizeLinear' || node?.op === 'QuantizeLinear' ? node.inputs[0] : value;
}

/** The floating-point result of an integer product: the Mul with both scales. */
function rescaled(graph: Graph, value: string): string {
  const users = graph.users(value);
  return users.length === 1 && users[0].node.op === 'Mul' ? users[0].node.outputs[0] : value;
}
