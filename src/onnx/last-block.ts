import type { BlockWeights } from '../block-weights.js';
import { blockCut, blocksInFront, type LastBy } from './block-cut.js';
import {
  ATTENTION,
  BLOCK_OUTPUT,
  COS,
  FEATURES,
  HIDDEN,
  MAIN_FEATURES,
  ORDER,
  ROWS,
  SIN,
  TASK_ROWS,
} from './block-values.js';
import { readBlockWeights } from './block-weights.js';
import { type Connector, connectorGraph, inOrder, orderOf, ordersBefore, readConnector } from './connector.js';
import { type Cut, cut, type EditedGraph, type OrtModule } from './edit.js';
import { Builder } from './format/builder.js';
import type { OnnxNode, OnnxValue } from './format/messages.js';
import { type ModelSource, type OnnxModel, readModel } from './format/model.js';
import { DataType, isFloat } from './format/proto.js';
import { renamed } from './format/write.js';
import { rotaryTables } from './rotary-tables.js';
import { ancestors, Graph } from './search/graph.js';
import { attentionDepth } from './search/last-attention.js';
import { findLastBlock, type LastBlock } from './search/last-block.js';
import type { Linears } from './search/linear.js';
import { type SplitEncoder, splitEncoder } from './split-encoder.js';
import type { TowerCut } from './tower-cut.js';

/** A vision encoder whose last block can run on the package's kernels. Its weights stay where they are. */
export interface BlockEncoder {
  readonly model: OnnxModel;
  /** Reads the block's weights; those that are quantised or computed are worked out by ONNX Runtime. */
  readonly weights: (ort: OrtModule) => Promise<BlockWeights>;
  /** The inputs of the file. */
  readonly inputs: readonly OnnxValue[];
  /** The whole encoder, with {@link HIDDEN} and what else is said here among its outputs. */
  readonly tower: EditedGraph;
  /** The same for a tower that ends in front of another block: its {@link HIDDEN} are what its own last block ends with. */
  readonly beyond: EditedGraph;
  /** What stands behind the last block: {@link ROWS} and `crossing` to {@link TASK_ROWS}, and {@link ORDER} where there is one. */
  readonly connector: EditedGraph;
  /**
   * The encoder without its last attention. Null where it cannot be left out, where the features have columns of earlier blocks, and where
   * layers are quantised: the file's own features have the rounding of its own last attention.
   */
  readonly split: SplitEncoder | null;
  /** How many blocks stand in front of the last. */
  blocks(): number;
  /** The encoder in two parts, see {@link blockCut}. */
  cutAt(at: number, last: LastBy): TowerCut;
  /** The tower with {@link ATTENTION} and {@link BLOCK_OUTPUT}, to compare with. */
  readonly trial: EditedGraph;
  /** Values that the connector needs besides the rows: outputs of the tower, inputs of the connector. */
  readonly crossing: readonly string[];
  /** Whether there are {@link COS} and {@link SIN}. */
  readonly rotary: boolean;
  /** Whether there is an {@link ORDER}. */
  readonly order: boolean;
  /** Whether there are {@link MAIN_FEATURES}. */
  readonly packed: boolean;
  /** Outputs of the file besides the features, as deepstack features may be. */
  readonly further: readonly string[];
  /** What the file's arithmetic rounds, relative to the largest magnitude. */
  readonly tolerance: number;
  /** How far the file's last attention may lie from one in float32: weights that are read are not rounded again. */
  readonly attentionTolerance: number;
}

/**
 * Reads a vision encoder by structure: the norm and the attention of its last block, and what stands behind the block.
 *
 * @throws DesapError `ERR_FILE`; `ERR_GRAPH` with what was looked for, and the operator in the way
 */
export function readLastBlock(source: ModelSource, argument = 'visionEncoder'): BlockEncoder {
  const read = new Graph(readModel(source, argument));
  const output = mainOutput(read);
  const found = findLastBlock(read, output);
  const { graph, linears, block, end } = found;
  const model = withPartsOf(read.model, graph.model);
  const connector = readConnector(graph, end, output);
  const orders = ordersBefore(graph, connector);
  const crossing = connector.crossing.map((_, i) => `desap.crossing/${i}`);
  const rounding = roundingOf(graph, linears, output);
  const further = model.outputs.map(({ name }) => name).filter((name) => name !== output);

  const builder = new Builder(model.opset);
  const inputs = floatInputs(builder, graph, model.inputs);
  const handedOut = [...towerOutputs(builder, found, { connector, orders, output }), ...further];
  for (const [i, name] of crossing.entries()) builder.name(connector.crossing[i], name);
  const tower = { inputs, outputs: [...handedOut, ...crossing], nodes: [...builder.nodes] };
  const isSplit = rounding !== 'quantized' && !connector.packed;
  const handed = { outputs: [...further, ...crossing], values: [...further, ...connector.crossing] };
  const split = isSplit ? splitEncoder(model, found, { inputs, nodes: tower.nodes, ...handed }) : null;
  const { out } = block;
  builder.float(out.laterBias === null ? out.output : builder.sum(out.output, out.laterBias), ATTENTION);
  const [first, ...others] = end.summands;
  builder.float(builder.sum(first, ...others), BLOCK_OUTPUT);
  const trial = { inputs, outputs: [...tower.outputs, ATTENTION, BLOCK_OUTPUT], nodes: [...builder.nodes] };
  builder.name(BLOCK_OUTPUT, HIDDEN);

  return {
    model,
    weights: (ort) => readBlockWeights(ort, found),
    inputs: model.inputs,
    tower: cut(model, tower),
    trial: cut(model, trial),
    split,
    beyond: cut(model, { inputs, outputs: tower.outputs, nodes: builder.nodes }),
    connector: connectorGraph(graph, {
      end,
      connector,
      orders,
      builder: new Builder(model.opset),
      names: { rows: ROWS, crossing, output: TASK_ROWS, order: ORDER },
    }),
    blocks: () => blocksInFront({ model, found }),
    cutAt: (at, last) => blockCut({ model, found, connector, inputs, nodes: tower.nodes, crossing, further }, at, last),
    crossing,
    rotary: found.rotation !== null,
    order: orders.length > 0,
    packed: connector.packed,
    further,
    tolerance: TOLERANCE[rounding],
    attentionTolerance: ATTENTION_TOLERANCE[rounding],
  };
}

/** The output with the most blocks in front of it: others may be of earlier blocks. */
function mainOutput(graph: Graph): string {
  const outputs = graph.model.outputs.map(({ name }) => ({
    name,
    attention: attentionDepth(graph, name),
    depth: graph.depth(name),
  }));
  outputs.sort((a, b) => b.attention - a.attention || b.depth - a.depth);
  return outputs[0].name;
}

/** A model with what another has besides: the parts of a loop that is written out there. */
function withPartsOf(model: OnnxModel, other: OnnxModel): OnnxModel {
  if (model === other) return model;
  const written = new Set(model.nodes.flatMap(({ outputs }) => outputs));
  const further = other.nodes.filter(({ outputs }) => !outputs.some((output) => written.has(output)));
  return { ...model, nodes: [...model.nodes, ...further], initializers: other.initializers };
}

/**
 * Lets an encoder take float32 under the names of its float16 inputs: behind each stands a Cast.
 * @returns the inputs of such a cut
 */
function floatInputs(builder: Builder, graph: Graph, inputs: readonly OnnxValue[]): NonNullable<Cut['inputs']> {
  return inputs
    .filter(({ type }) => type !== DataType.float && isFloat(type))
    .map(({ name, type }) => {
      const narrow = builder.cast(name, type);
      const readers = graph.consumers(name);
      builder.include(readers.map((node) => renamed(node, (value) => (value === name ? narrow : value))));
      return { name, type: DataType.float };
    });
}

/** Writes what the tower hands out besides further outputs of the file and crossing values. */
function towerOutputs(
  builder: Builder,
  found: LastBlock,
  { connector, orders, output }: { connector: Connector; orders: readonly OnnxNode[]; output: string },
): string[] {
  const { block, rotation } = found;
  const outputs = [builder.float(output, FEATURES), builder.float(block.input, HIDDEN)];
  if (rotation !== null) {
    const { cos, sin } = rotaryTables(builder, found);
    outputs.push(builder.name(cos, COS), builder.name(sin, SIN));
  }
  if (orders.length > 0) outputs.push(orderOf(builder, orders, ORDER));
  if (connector.packed) {
    const main = inOrder(builder, connector.orders, connector.value, 'desap.main');
    outputs.push(builder.float(main, MAIN_FEATURES));
  }
  return outputs;
}

/** Rounding of sums in another order: of float32, of float16, or of activations that are quantised at run time. */
export const TOLERANCE = { float32: 1e-3, float16: 1e-2, quantized: 5e-2 } as const;

/** The same, between quantised activations and those that are not. */
const ATTENTION_TOLERANCE = { ...TOLERANCE, quantized: 1e-1 } as const;

/** What has a part in a file's rounding. */
export function roundingOf(graph: Graph, linears: Linears, output: string): keyof typeof TOLERANCE {
  const nodes = ancestors(graph, output);
  if (nodes.some((node) => linears.at(node)?.quantized)) return 'quantized';
  const isHalf = nodes.some((node) => linears.at(node) && graph.elementType(node.inputs[0]) === DataType.float16);
  return isHalf ? 'float16' : 'float32';
}
