import type { OnnxNode } from '../format/messages.js';
import type { StoredTensor } from '../format/stored-tensor.js';
import type { Graph } from './graph.js';

/** A norm, whichever operators it is written in. */
export interface Norm {
  /** `layer`, or `rms`: x / sqrt(mean(x^2) + epsilon) * weight. */
  readonly kind: 'layer' | 'rms';
  /** The value that is normalised; null when a fused node adds its two inputs and does not hand out their sum. */
  readonly input: string | null;
  /** The values whose sum is normalised; one entry unless the node adds a residual itself. */
  readonly summands: readonly string[];
  readonly output: string;
  readonly weight: StoredTensor;
  /** Null for `rms`. */
  readonly bias: StoredTensor | null;
  readonly epsilon: number;
}

/** A norm of the mean and the variance. */
export interface LayerNorm extends Norm {
  readonly kind: 'layer';
  readonly bias: StoredTensor;
}

/** The norms of a graph by their result. */
export class Norms {
  private readonly layers = new Map<string, LayerNorm>();
  private readonly rms = new Map<string, Norm>();

  constructor(private readonly graph: Graph) {
    for (const node of graph.order) {
      const layer = fused(graph, node) ?? nineNodes(graph, node) ?? centredRms(graph, node);
      if (layer !== null) this.layers.set(layer.output, layer);
      const rms = layer === null ? rmsNorm(graph, node) : null;
      if (rms !== null) this.rms.set(rms.output, rms);
    }
  }

  /** The layer norm whose result this value is, behind Identity, Cast and Dropout. */
  behind(value: string): LayerNorm | undefined {
    return this.layers.get(value) ?? this.layers.get(this.graph.origin(value));
  }

  /** The norm of either kind whose result this value is. */
  anyBehind(value: string): Norm | undefined {
    return this.behind(value) ?? this.rms.get(value) ?? this.rms.get(this.graph.origin(value));
  }
}

const DEFAULT_EPSILON = 1e-5;
const SKIP_DEFAULT_EPSILON = 1e-12;

function fused(graph: Graph, node: OnnxNode): LayerNorm | null {
  const isSkip = node.op === 'SkipLayerNormalization';
  if (!isSkip && node.op !== 'LayerNormalization') return null;
  const [x, ...rest] = node.inputs;
  const [weight, bias] = (isSkip ? rest.slice(1, 3) : rest).map((value) => graph.tensor(value));
  if (!weight || !bias) return null;
  const epsilon = decimal(node.attributes.get('epsilon')?.f ?? (isSkip ? SKIP_DEFAULT_EPSILON : DEFAULT_EPSILON));
  const summands = isSkip ? [x, rest[0], rest[3] ?? ''].filter((value) => value !== '') : [x];
  const input = isSkip ? node.outputs[3] || null : x;
  return { kind: 'layer', input, summands, output: node.outputs[0], weight, bias, epsilon };
}

/**
 * The form of operator sets up to 16, seen from its last node:
 * `(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * weight + bias`.
 */
function nineNodes(graph: Graph, node: OnnxNode): LayerNorm | null {
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
    kind: 'layer',
    input,
    summands: [input],
    output: node.outputs[0],
    weight: mul.tensor,
    bias: add.tensor,
    epsilon: decimal(epsilon),
  };
}

/** The form that optimisers leave of {@link nineNodes} where an operator stands in between: an RMS norm of `x - mean(x)`, and a bias. */
function centredRms(graph: Graph, node: OnnxNode): LayerNorm | null {
  const add = constantOperand(graph, node, 'Add');
  const rms = add && graph.producer(graph.origin(add.other));
  if (!add || rms?.op !== 'SimplifiedLayerNormalization' || add.tensor.dims.length !== 1) return null;
  const norm = fusedRms(graph, rms);
  const centred = norm?.input ? graph.producer(graph.unmoved(norm.input)) : undefined;
  if (norm === null || centred?.op !== 'Sub') return null;
  const [input, by] = centred.inputs;
  const mean = graph.producer(graph.origin(by));
  if (mean?.op !== 'ReduceMean' || graph.origin(mean.inputs[0]) !== graph.origin(input)) return null;
  return { ...norm, kind: 'layer', input, summands: [input], output: node.outputs[0], bias: add.tensor };
}

const SIMPLIFIED = new Set(['SimplifiedLayerNormalization', 'RMSNormalization', 'SkipSimplifiedLayerNormalization']);

/** An RMS norm that ends with a node: one operator, or `x * (1 / sqrt(mean(x^2) + epsilon)) * weight` in its parts. */
function rmsNorm(graph: Graph, node: OnnxNode): Norm | null {
  return SIMPLIFIED.has(node.op) ? fusedRms(graph, node) : rmsInParts(graph, node);
}

function fusedRms(graph: Graph, { op, inputs, outputs, attributes }: OnnxNode): Norm | null {
  const isSkip = op.startsWith('Skip');
  const weight = graph.tensor(inputs[isSkip ? 2 : 1]);
  if (weight === null) return null;
  const epsilon = decimal(attributes.get('epsilon')?.f ?? (isSkip ? SKIP_DEFAULT_EPSILON : DEFAULT_EPSILON));
  // Of the skipping form: input, skip, gamma, bias.
  const summands = isSkip ? [inputs[0], inputs[1], inputs[3] ?? ''].filter((value) => value !== '') : [inputs[0]];
  const input = isSkip ? outputs[3] || null : inputs[0];
  return { kind: 'rms', input, summands, output: outputs[0], weight, bias: null, epsilon };
}

function rmsInParts(graph: Graph, node: OnnxNode): Norm | null {
  const before = (value: string) => graph.producer(graph.origin(value));
  const scaled = constantOperand(graph, node, 'Mul');
  if (scaled?.tensor.dims.length !== 1) return null;
  const quotient = before(scaled.other);
  if (quotient?.op !== 'Mul' && quotient?.op !== 'Div') return null;
  const sides = quotient.op === 'Mul' ? [quotient.inputs, [...quotient.inputs].reverse()] : [quotient.inputs];
  for (const [input, by] of sides) {
    const power = rootBehind(graph, before(by));
    if (power?.divides !== (quotient.op === 'Div')) continue;
    const sum = before(power.of);
    if (sum?.op !== 'Add') continue;
    const epsilon = sum.inputs.map((value) => graph.constants.numbers(value)).find((numbers) => numbers?.length === 1);
    const mean = sum.inputs.map(before).find((one) => one?.op === 'ReduceMean');
    const square = mean && before(mean.inputs[0]);
    if (!epsilon || !square || !isSquareOf(graph, square, input)) continue;
    const weight = scaled.tensor;
    const output = node.outputs[0];
    return { kind: 'rms', input, summands: [input], output, weight, bias: null, epsilon: decimal(epsilon[0]) };
  }
  return null;
}

/** For a square root, or the reciprocal of one: what it is of, and whether a norm has to divide by it. */
function rootBehind(graph: Graph, node: OnnxNode | undefined): { of: string; divides: boolean } | null {
  if (node === undefined) return null;
  const { op, inputs } = node;
  const number = (value: string) => graph.constants.scalar(value, 1);
  if (op === 'Sqrt' || (op === 'Pow' && number(inputs[1]) === 0.5)) return { of: inputs[0], divides: true };
  if (op === 'Pow' && number(inputs[1]) === -0.5) return { of: inputs[0], divides: false };
  const isReciprocal = op === 'Reciprocal' || (op === 'Div' && number(inputs[0]) === 1);
  const root = isReciprocal ? rootBehind(graph, graph.producer(graph.origin(inputs[inputs.length - 1]))) : null;
  return root?.divides ? { of: root.of, divides: false } : null;
}

function isSquareOf(graph: Graph, { op, inputs: [a, b] }: OnnxNode, value: string): boolean {
  const same = (one: string) => graph.origin(one) === graph.origin(value);
  return same(a) && (op === 'Pow' ? graph.constants.scalar(b, 1) === 2 : op === 'Mul' && same(b));
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
