import type { OnnxNode } from '../format/messages.js';
import type { StoredTensor } from '../format/stored-tensor.js';
import type { Graph } from './graph.js';

/** A layer norm, whichever operators it is written in. */
export interface Norm {
  /** The value that is normalised; null when a fused node adds its two inputs and does not hand out their sum. */
  readonly input: string | null;
  /** The values whose sum is normalised; one entry unless the node is a SkipLayerNormalization. */
  readonly summands: readonly string[];
  readonly output: string;
  readonly weight: StoredTensor;
  readonly bias: StoredTensor;
  readonly epsilon: number;
}

/** The layer norms of a graph by their result. */
export class Norms {
  private readonly byOutput = new Map<string, Norm>();

  constructor(private readonly graph: Graph) {
    for (const node of graph.order) {
      const norm = fused(graph, node) ?? nineNodes(graph, node);
      if (norm !== null) this.byOutput.set(norm.output, norm);
    }
  }

  /** The norm whose result this value is, behind Identity, Cast and Dropout. */
  behind(value: string): Norm | undefined {
    return this.byOutput.get(value) ?? this.byOutput.get(this.graph.origin(value));
  }
}

const DEFAULT_EPSILON = 1e-5;
const SKIP_DEFAULT_EPSILON = 1e-12;

function fused(graph: Graph, node: OnnxNode): Norm | null {
  const isSkip = node.op === 'SkipLayerNormalization';
  if (!isSkip && node.op !== 'LayerNormalization') return null;
  const [x, ...rest] = node.inputs;
  const [weight, bias] = (isSkip ? rest.slice(1, 3) : rest).map((value) => graph.tensor(value));
  if (!weight || !bias) return null;
  const epsilon = decimal(node.attributes.get('epsilon')?.f ?? (isSkip ? SKIP_DEFAULT_EPSILON : DEFAULT_EPSILON));
  const summands = isSkip ? [x, rest[0], rest[3] ?? ''].filter((value) => value !== '') : [x];
  const input = isSkip ? node.outputs[3] || null : x;
  return { input, summands, output: node.outputs[0], weight, bias, epsilon };
}

/**
 * The form of operator sets up to 16, seen from its last node:
 * `(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * weight + bias`.
 */
function nineNodes(graph: Graph, node: OnnxNode): Norm | null {
  const add = constantOperand(graph, node, 'Add');
  const mul = add && constantOperand(graph, graph.producer(graph.origin(add.other)), 'Mul');
  if (!add || mul?.tensor.dims.length !== 1 || add.tensor.dims.length !== 1) return null;
  const quotient = graph.producer(graph.origin(mul.other));
  if (quotient?.op !== 'Div') return null;
  const centred = graph.producer(graph.origin(quotient.inputs[0]));
  const root = graph.producer(graph.origin(quotient.inputs[1]));
  if (centred?.op !== 'Sub' || root?.op !== 'Sqrt') return null;
  const mean = graph.producer(graph.origin(centred.inputs[1]));
  if (mean?.op !== 'ReduceMean' || graph.origin(mean.inputs[0]) !== graph.origin(centred.inputs[0])) return null;
  const variance = graph.producer(graph.origin(root.inputs[0]));
  if (variance?.op !== 'Add') return null;
  const epsilon = variance.inputs
    .map((value) => graph.constants.numbers(value))
    .find((numbers) => numbers?.length === 1)?.[0];
  if (epsilon === undefined || epsilon === null) return null;
  const input = centred.inputs[0];
  return {
    input,
    summands: [input],
    output: node.outputs[0],
    weight: mul.tensor,
    bias: add.tensor,
    epsilon: decimal(epsilon),
  };
}

/** A two-operand node of one kind with a constant tensor on either side. */
function constantOperand(
  graph: Graph,
  node: OnnxNode | undefined,
  op: string,
): { tensor: StoredTensor; other: string } | null {
  if (node?.op !== op) return null;
  for (const [constant, other] of [
    [node.inputs[0], node.inputs[1]],
    [node.inputs[1], node.inputs[0]],
  ]) {
    const tensor = graph.isConstant(constant) && !graph.isConstant(other) ? graph.tensor(constant) : null;
    if (tensor !== null) return { tensor, other };
  }
  return null;
}

/** A float32 constant as the decimal number that it was written as: 0.000009999999747 is 1e-5. */
function decimal(value: number): number {
  return Number(value.toPrecision(7));
}
