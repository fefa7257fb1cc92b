import { DesapError, invalid } from '../errors.js';
import { isOf, reading } from '../options.js';
import type { OnnxNode, OnnxValue } from './format/messages.js';
import { type ModelSource, type OnnxModel, readModel } from './format/model.js';
import { type Block, type BlockSearch, findBlocks } from './search/attention.js';
import { describeNode, Graph } from './search/graph.js';
import { type Linear, Linears } from './search/linear.js';
import { Norms } from './search/norm.js';
import { beforePicks, findReadOut, linearBehind, type ReadOut } from './search/read-out.js';
import { hasClassToken, rowsTaken, tokenRows } from './search/token-rows.js';

/** The projector of a LLaVA vision encoder: linear layers with activations between, applied to each patch row. */
export interface Projector {
  /** The value that its first layer takes, in whatever shape the file has it: patch rows only. */
  readonly patches: string;
  /** What its last layer makes of them, before the file puts it into the shape of its output. */
  readonly result: string;
  /** The graph output that it makes. */
  readonly output: string;
  /** @internal */
  readonly layers: readonly Linear[];
  /** Whether row 0 is cut off in front of it. */
  readonly dropsClassToken: boolean;
}

/** The vision tower of an ONNX file, found by structure: no name in the file had a part in it. */
export interface TowerStructure {
  /** @internal */
  readonly graph: Graph;
  /** The graph input that takes the image: [batch, channels, height, width]. */
  readonly pixels: OnnxValue;
  /** @internal Pre-norm self-attention layers, in the order of the computation. */
  readonly blocks: readonly Block[];
  /**
   * The value of the hidden states that enter CLIP's last layer, [batch, N, D], class token included. In a CLIP file this
   * is the last layer's input; in a LLaVA file, which lacks that layer, it is what the projector's rows are taken from.
   */
  readonly hidden: string;
  /** D. */
  readonly width: number;
  /** Whether row 0 of the hidden states is the class token. All other rows are patches. */
  readonly classToken: boolean;
  /** Whether the hidden states lie as [batch, N, D] in the file; otherwise as [N, batch, D]. */
  readonly batchFirst: boolean;
  /** @internal Post norm and visual projection (CLIP), or null. */
  readonly readOut: ReadOut | null;
  /** @internal Why a read-out that was found cannot be used, or null. */
  readonly readOutRefused: string | null;
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
  const blocks = search.blocks.filter((block) => isVisual(graph, block.out.output));
  const last = blocks.at(-1);
  if (last === undefined) {
    throw new DesapError(
      'ERR_GRAPH',
      `${model.name}: looked for a self-attention layer behind a layer norm that depends on an image; found ${search.cores} attention cores${because(search)}, ` +
        `${search.blocks.length} layers in all, and the operators ${operators(model)}`,
    );
  }
  const width = last.norm.weight.dims[0];
  const { readOut, refused: readOutRefused } = visualReadOut(graph, linears, norms, width);
  const isProjected = readOut === null && readOutRefused === null;
  const projector = isProjected ? firstProjector(graph, linears, norms, width) : null;
  const rows = tokenRows(graph, norms, blocks[0].input, width);
  const picks = readOut?.picks ?? projector?.picks ?? null;
  const taken = picks && rowsTaken(graph, picks, rows.batchFirst);
  const dropsClassToken = taken?.single === false && taken.first === 1;
  return {
    graph,
    pixels: pixelInput(graph),
    blocks,
    hidden: projector?.hidden ?? last.input,
    width,
    classToken: hasClassToken(graph, rows, taken),
    batchFirst: rows.batchFirst,
    readOut,
    readOutRefused,
    projector: projector && { ...projector.parts, dropsClassToken },
  };
}

/**
 * A tower that {@link readTower} gave.
 * @throws DesapError `ERR_VALUE` for anything else
 */
export function checkTower(tower: TowerStructure): TowerStructure {
  if (
    isOf(
      Graph,
      reading('tower', () => tower?.graph),
    )
  )
    return tower;
  throw invalid('ERR_VALUE', 'tower', tower, 'what readTower gave');
}

function firstProjector(graph: Graph, linears: Linears, norms: Norms, width: number): FoundProjector | null {
  for (const { name } of graph.model.outputs) {
    const found = isVisual(graph, name) ? findProjector(graph, linears, norms, name, width) : null;
    if (found !== null) return found;
  }
  return null;
}

/** Whether the image has a part in a value. */
function isVisual(graph: Graph, value: string): boolean {
  return graph.sourcesOf(value).floats;
}

/** The one read-out among the outputs of the visual tower, or why it is none that a head can be made of. */
function visualReadOut(
  graph: Graph,
  linears: Linears,
  norms: Norms,
  width: number,
): { readOut: ReadOut | null; refused: string | null } {
  const found = new Map<Linear, { output: string; readOut: ReadOut }>();
  let refused: string | null = null;
  for (const { name } of graph.model.outputs) {
    const readOut = isVisual(graph, name) ? findReadOut(graph, linears, norms, name) : null;
    if (readOut === null) continue;
    if ('op' in readOut)
      refused ??= `the output '${name}' is more than a norm and a projection of one row: ${describeNode(readOut)} stands behind them`;
    else if (readOut.norm.weight.dims[0] === width) found.set(readOut.projection, { output: name, readOut });
  }
  const [first, ...others] = found.values();
  if (others.length > 0) {
    const names = [first, ...others].map(({ output }) => `'${output}'`).join(', ');
    return { readOut: null, refused: `the outputs ${names} are different projections of one row, wanted one` };
  }
  return first === undefined ? { readOut: null, refused } : { readOut: first.readOut, refused: null };
}

/**
 * The read-out of a CLIP tower.
 * @throws DesapError `ERR_GRAPH` when there is none, with what the file may be instead
 */
export function readOutOf({ graph, readOut, readOutRefused, projector }: TowerStructure): ReadOut {
  if (readOut !== null) return readOut;
  const advice =
    projector !== null
      ? 'A LLaVA vision_encoder lacks the last CLIP layer: take the head from the CLIP vision_model.onnx, or from a safetensors file. Confirm a head with the CLIP vision_model.onnx'
      : 'A CLIP vision model with projection has one; towers of other kinds (a CLIPVisionModel, SigLIP, DINOv2, ViT) have none';
  throw new DesapError(
    'ERR_GRAPH',
    `${graph.model.name}: looked for a visual projection of the norm of one row at the end of the graph; ${readOutRefused ?? `found none. ${advice}`}`,
  );
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

/** A projector, the hidden states behind which it stands, and the operators that take its rows, the last one first. */
interface FoundProjector {
  readonly parts: Omit<Projector, 'dropsClassToken'>;
  readonly hidden: string;
  readonly picks: readonly OnnxNode[];
}

/** Linear layers back from a graph output to rows of width D that no norm stands between. */
function findProjector(
  graph: Graph,
  linears: Linears,
  norms: Norms,
  output: string,
  width: number,
): FoundProjector | null {
  const behind = beforePicks(graph, output);
  const layers: Linear[] = [];
  let linear = linearBehind(graph, linears, behind.value);
  while (linear !== null) {
    layers.unshift(linear);
    linear = linearBehind(graph, linears, linear.input);
  }
  if (layers.length === 0) return null;
  const { value: hidden, picks } = beforePicks(graph, layers[0].input);
  if (norms.behind(hidden) !== undefined || !isSum(graph, hidden)) return null;
  if (layers[0].weight !== null && !layers[0].weight.tensor.dims.includes(width)) return null;
  // A row that is dropped behind the projector might as well have been dropped in front of it.
  const dropped = behind.picks.filter(({ op }) => op === 'Gather' || op === 'Slice');
  const patches = graph.unmoved(layers[0].input);
  const parts = { patches, result: behind.value, output, layers };
  return { parts, hidden, picks: [...dropped, ...picks] };
}

/** Whether a value is a residual sum: of an Add, or handed out by a fused layer norm. */
function isSum(graph: Graph, value: string): boolean {
  const node = graph.producer(value);
  return node?.op === 'Add' || (node?.op === 'SkipLayerNormalization' && node.outputs[3] === value);
}

/** Why attention cores were left out, in brackets, for messages. */
export function because({ refused }: BlockSearch): string {
  return refused.length > 0 ? ` (${[...new Set(refused)].slice(0, 3).join('; ')})` : '';
}

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
