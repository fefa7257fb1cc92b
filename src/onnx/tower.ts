import { DesapError } from '../errors.js';
import { type Block, findBlocks } from './attention.js';
import { ancestors, Graph } from './graph.js';
import { type Linear, Linears } from './linear.js';
import type { OnnxNode, OnnxValue } from './messages.js';
import { type ModelSource, type OnnxModel, readModel } from './model.js';
import { Norms } from './norm.js';
import { beforePicks, findReadOut, linearBehind, type ReadOut } from './read-out.js';

/** The projector of a LLaVA vision encoder: linear layers with activations between, applied to each patch row. */
export interface Projector {
  /** The value that its first layer takes: [batch, K, D], patch rows only. */
  readonly patches: string;
  /** The graph output that it makes: [batch, K, width of the language model]. */
  readonly output: string;
  readonly layers: readonly Linear[];
  /** Whether row 0 is cut off in front of it. */
  readonly dropsClassToken: boolean;
}

/** What a structural search found in the graph of a vision tower. No name in the file had a part in it. */
export interface TowerStructure {
  readonly graph: Graph;
  /** The graph input that takes the image: [batch, channels, height, width]. */
  readonly pixels: OnnxValue;
  /** Pre-norm self-attention layers, in the order of the computation. */
  readonly blocks: readonly Block[];
  /**
   * The value of the hidden states that enter CLIP's last layer, [batch, N, D], class token included. In a CLIP file this
   * is the last layer's input; in a LLaVA file, which lacks that layer, it is what the projector's rows are taken from.
   */
  readonly hidden: string;
  /** D. */
  readonly width: number;
  /** Whether row 0 of the hidden states is the class token. */
  readonly classToken: boolean;
  /** Post norm and visual projection (CLIP), or null. */
  readonly readOut: ReadOut | null;
  /** The projector (LLaVA), or null. */
  readonly projector: Projector | null;
}

/**
 * Describes the vision tower of an ONNX file: a CLIP `vision_model.onnx` (with or without projection) or a LLaVA
 * `vision_encoder.onnx`, from any exporter.
 *
 * @throws DesapError `ERR_FILE` when it is no ONNX file; `ERR_GRAPH` when it holds no such tower, with what was found
 */
export function readTower(source: ModelSource, name?: string): TowerStructure {
  const model = readModel(source, name);
  const graph = new Graph(model);
  const linears = new Linears(graph);
  const norms = new Norms(graph);
  const search = findBlocks(graph, linears, norms);
  const blocks = search.blocks.filter((block) => graph.sourcesOf(block.out.output).floats);
  const last = blocks.at(-1);
  if (last === undefined) {
    const reasons = search.refused.length > 0 ? ` (${[...new Set(search.refused)].join('; ')})` : '';
    throw new DesapError(
      'ERR_GRAPH',
      `${model.name}: looked for a self-attention layer behind a layer norm that depends on an image; found ${search.cores} attention cores${reasons}, ` +
        `${search.blocks.length} layers in all, and the operators ${operators(model)}`,
    );
  }
  const width = last.norm.weight.dims[0];
  const readOut = first(
    model.outputs,
    (output) => findReadOut(graph, linears, norms, output.name),
    ({ norm }) => norm.weight.dims[0] === width,
  );
  const projector =
    readOut === null
      ? first(model.outputs, (output) => findProjector(graph, linears, norms, output.name, width))
      : null;
  const hidden = projector === null ? last.input : beforePicks(graph, projector.patches).value;
  const classToken =
    prependsConstant(graph, hidden) ||
    (readOut !== null && picksFirstRow(graph, readOut.picks)) ||
    projector?.dropsClassToken === true;
  return { graph, pixels: pixelInput(graph), blocks, hidden, width, classToken, readOut, projector };
}

function first<T, R>(
  items: readonly T[],
  find: (item: T) => R | null,
  accept: (found: R) => boolean = () => true,
): R | null {
  for (const item of items) {
    const found = find(item);
    if (found !== null && accept(found)) return found;
  }
  return null;
}

function pixelInput(graph: Graph): OnnxValue {
  const { inputs, name } = graph.model;
  const images = inputs.filter((input) => graph.sourcesOf(input.name).floats);
  if (images.length !== 1)
    throw new DesapError(
      'ERR_GRAPH',
      `${name}: looked for one floating-point graph input; found ${images.length} (${images.map((input) => input.name).join(', ')})`,
    );
  return images[0];
}

/** Linear layers back from a graph output to rows of width D that no norm stands between. */
function findProjector(graph: Graph, linears: Linears, norms: Norms, output: string, width: number): Projector | null {
  const layers: Linear[] = [];
  let linear = linearBehind(graph, linears, beforePicks(graph, output).value);
  while (linear !== null) {
    layers.unshift(linear);
    linear = linearBehind(graph, linears, linear.input);
  }
  if (layers.length === 0) return null;
  const patches = layers[0].input;
  const { value, picks } = beforePicks(graph, patches);
  if (norms.behind(value) !== undefined || !isSum(graph, value)) return null;
  if (layers[0].weight !== null && !layers[0].weight.tensor.dims.includes(width)) return null;
  return { patches, output, layers, dropsClassToken: picks.some((pick) => dropsFirstRow(graph, pick)) };
}

/** Whether a value is a residual sum: of an Add, or handed out by a fused layer norm. */
function isSum(graph: Graph, value: string): boolean {
  const node = graph.producer(value);
  return node?.op === 'Add' || (node?.op === 'SkipLayerNormalization' && node.outputs[3] === value);
}

/** Whether a node cuts off row 0 of [batch, N, D]. */
function dropsFirstRow(graph: Graph, node: OnnxNode): boolean {
  if (node.op === 'Gather') return onTokenAxis(node) && graph.constants.numbers(node.inputs[1])?.[0] === 1;
  if (node.op !== 'Slice') return false;
  const starts = node.attributes.get('starts')?.ints ?? graph.constants.numbers(node.inputs[1]) ?? [];
  const axes = node.attributes.get('axes')?.ints ??
    (node.inputs[3] ? graph.constants.numbers(node.inputs[3]) : null) ?? [...starts.keys()];
  return axes.some((axis, i) => (axis === 1 || axis === -2) && starts[i] === 1);
}

/** Whether row 0 of [batch, N, D] is picked. */
function picksFirstRow(graph: Graph, picks: readonly OnnxNode[]): boolean {
  return picks.some((node) => {
    if (node.op === 'Gather') return onTokenAxis(node) && graph.constants.numbers(node.inputs[1])?.join() === '0';
    if (node.op !== 'Slice') return false;
    const [starts, ends] = [graph.constants.numbers(node.inputs[1]), graph.constants.numbers(node.inputs[2])];
    const axes = (node.inputs[3] ? graph.constants.numbers(node.inputs[3]) : null) ?? [];
    return axes.some((axis, i) => (axis === 1 || axis === -2) && starts?.[i] === 0 && ends?.[i] === 1);
  });
}

function onTokenAxis(gather: OnnxNode): boolean {
  const axis = gather.attributes.get('axis')?.i ?? 0;
  return axis === 1 || axis === -2;
}

/** Whether the tokens were joined from patches and one constant row, which a Concat along the token axis shows. */
function prependsConstant(graph: Graph, hidden: string): boolean {
  for (const node of ancestors(graph, hidden)) {
    const axis = node.attributes.get('axis')?.i;
    if (node.op !== 'Concat' || (axis !== 1 && axis !== -2)) continue;
    if (node.inputs.some((input) => isLearnt(graph, input))) return true;
  }
  return false;
}

/** Whether a value is a constant that is repeated for each image of the batch, or one as it is. */
function isLearnt(graph: Graph, value: string): boolean {
  let at = graph.origin(value);
  while (!graph.isConstant(at)) {
    const node = graph.producer(at);
    if (node === undefined || !REPEATS.has(node.op)) return false;
    at = graph.origin(node.inputs[0]);
  }
  return true;
}

const REPEATS = new Set(['Expand', 'Tile', 'Reshape', 'Unsqueeze', 'Transpose']);

/** The operators of a model by frequency, for messages; with what to do about those that hide the rest. */
export function operators({ nodes }: OnnxModel): string {
  const counts = new Map<string, number>();
  for (const { op } of nodes) counts.set(op, (counts.get(op) ?? 0) + 1);
  const sorted = [...counts].sort((a, b) => b[1] - a[1]);
  const listed = sorted
    .slice(0, 8)
    .map(([op, count]) => `${op} x${count}`)
    .join(', ');
  const advice = counts.has('QuantizeLinear')
    ? '. Values quantised between QuantizeLinear and DequantizeLinear are not read: take a float or dynamically quantised export'
    : '';
  return listed + (sorted.length > 8 ? ', ...' : '') + advice;
}
