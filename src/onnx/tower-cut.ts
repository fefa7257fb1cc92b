/** A vision tower in two graphs, cut in front of one of its blocks: between them rows may be dropped. */
import { DesapError } from '../errors.js';
import { integer } from '../tensor.js';
import { between } from './connector.js';
import { type Cut, cut, type EditedGraph } from './edit.js';
import { Builder } from './format/builder.js';
import type { OnnxNode } from './format/messages.js';
import { DataType } from './format/proto.js';
import { type GraphNode, renamed } from './format/write.js';
import type { Graph } from './search/graph.js';
import { outputsOf, SKIP_NORMS } from './search/last-block.js';
import { batchFirst, blocksBefore, enteringStates, floatPixels, HIDDEN_STATES } from './split.js';
import { checkTower, type TowerStructure } from './tower.js';

/** The hidden states at the cut, float32: what the front hands out and the rest takes, [B, N, D] or [N, D]. */
export const STATES = 'desap.states';

/** How many items and rows the hidden states have: some exports have these numbers in shapes. */
export interface StateExtents {
  readonly items: number;
  readonly rows: number;
}

/** A tower in two graphs. Rows of {@link STATES} may be left out, or come twice, as long as `crossing` values follow. */
export interface TowerCut {
  /** What error messages call it. */
  readonly name: string;
  /** How many blocks stand in the front. */
  readonly at: number;
  /** The whole tower, to compare with: from the image to `early` and `late`. */
  readonly whole: EditedGraph;
  /** From the image to {@link STATES}, `crossing` and `early`. */
  readonly front: EditedGraph;
  /**
   * From {@link STATES} and `crossing` to `late`, for any number of rows.
   * @param extents of the states of an image that the file takes
   */
  rest(extents: StateExtents): EditedGraph;
  /** Values besides the states that the rest needs, such as masks, rotary tables and shapes. */
  readonly crossing: readonly string[];
  /** Outputs that all rows of the tower have. */
  readonly early: readonly string[];
  /** Outputs that the rows have which go through the rest; the hidden states at the end are the first of them. */
  readonly late: readonly string[];
}

/** What a tower is cut with. */
interface Given {
  readonly graph: Graph;
  readonly at: number;
  /** The value that enters the block behind the cut. */
  readonly states: string;
  /** Inputs that take float32 in place of float16, and nodes that write what the front hands out early. */
  readonly front: Pick<Cut, 'inputs'> & { readonly nodes: readonly GraphNode[]; readonly outputs: readonly string[] };
  /** What the rest hands out, hidden states at the end first; the graph's values that it is made of; and what writes it. */
  readonly late: {
    readonly outputs: readonly string[];
    readonly values: readonly string[];
    write(builder: Builder): void;
  };
  /** Puts rows that lie as [N, batch, D] in the file into the order [batch, N, D], or back; leaves all others. */
  readonly turn: (builder: Builder, value: string) => string;
}

/**
 * Cuts a CLIP tower in front of a block.
 *
 * @param at how many blocks see all rows: 1 .. {@link blocksBefore} - 1
 * @param tapped blocks whose entering hidden states are handed out: `desap.entering_block_b`, early up to the cut and late behind it
 * @throws DesapError `ERR_VALUE` for a block that it does not have; `ERR_GRAPH` for a tower of one block
 */
export function clipTowerCut(tower: TowerStructure, at: number, tapped: readonly number[] = []): TowerCut {
  const { graph, blocks, hidden } = checkTower(tower);
  checkAt(graph.model.name, at, blocksBefore(tower));
  const turn = (builder: Builder, value: string) => batchFirst(builder, tower, value);
  const builder = new Builder(graph.model.opset);
  const inputs = floatPixels(builder, tower);
  const states = (block: number) => ({ value: blocks[block].input, as: enteringStates(block) });
  const hand = (into: Builder, { value, as }: { value: string; as: string }) => into.float(turn(into, value), as);
  const early = tapped.filter((block) => block <= at).map(states);
  const late = [{ value: hidden, as: HIDDEN_STATES }, ...tapped.filter((block) => block > at).map(states)];
  for (const one of early) hand(builder, one);
  return cutTower({
    ...{ graph, at, turn },
    states: blocks[at].input,
    front: { inputs, nodes: builder.nodes, outputs: early.map(({ as }) => as) },
    late: {
      outputs: late.map(({ as }) => as),
      values: late.map(({ value }) => value),
      write: (into) => {
        for (const one of late) hand(into, one);
      },
    },
  });
}

/**
 * A place to cut a tower at.
 *
 * @param before blocks that stand in front of the last one
 * @throws DesapError `ERR_VALUE`; `ERR_GRAPH` where there is no such place
 */
export function checkAt(name: string, at: number, before: number): number {
  if (before < 2)
    throw new DesapError(
      'ERR_GRAPH',
      `${name}: looked for a place between two blocks to drop rows at; found ${before} in front of the last`,
    );
  return integer('tower.at', at, 1, before - 1);
}

/** @internal Cuts a graph at the value that enters a block. */
export function cutTower({ graph, at, states, front, late, turn }: Given): TowerCut {
  const { model } = graph;
  const sum = sumBehind(graph, states);
  const given = sum === null ? [states] : outputsOf(sum);
  const part = between(graph, given, late.values);
  const crossing = part.crossing.map((_, i) => `desap.crossing_rows/${i}`);

  const whole = new Builder(model.opset);
  whole.include(front.nodes);
  late.write(whole);
  const builder = new Builder(model.opset);
  builder.include(front.nodes);
  builder.float(turn(builder, states), STATES);
  for (const [i, value] of part.crossing.entries()) builder.name(value, crossing[i]);
  const outputs = [STATES, ...crossing, ...front.outputs];
  const { inputs } = front;
  return {
    ...{ name: model.name, at, crossing, early: front.outputs, late: late.outputs },
    whole: cut(model, { inputs, outputs: [...late.outputs, ...front.outputs], nodes: whole.nodes }),
    front: cut(model, { inputs, outputs, nodes: builder.nodes }),
    rest: (extents) => restGraph({ graph, states, sum, part, crossing, late, turn }, extents),
  };
}

/** The fused norm that makes the states as its sum, or null. */
function sumBehind(graph: Graph, states: string): OnnxNode | null {
  const node = graph.producer(states);
  return node !== undefined && SKIP_NORMS[node.op] !== undefined ? node : null;
}

interface Rest extends Pick<Given, 'graph' | 'states' | 'late' | 'turn'> {
  readonly sum: OnnxNode | null;
  readonly part: ReturnType<typeof between>;
  readonly crossing: readonly string[];
}

function restGraph({ graph, states, sum, part, crossing, late, turn }: Rest, extents: StateExtents): EditedGraph {
  const { model } = graph;
  const builder = new Builder(model.opset);
  const rows = builder.cast(turn(builder, STATES), graph.elementType(states));
  if (sum === null) builder.name(rows, states);
  else builder.include([sumOf(builder, sum, rows)]);
  for (const [i, name] of crossing.entries()) builder.name(name, part.crossing[i]);
  recount(builder, graph, part.nodes, extents);
  late.write(builder);
  return cut(model, {
    inputs: [
      { name: STATES, type: DataType.float },
      ...crossing.map((name, i) => ({ name, type: graph.elementType(part.crossing[i]) })),
    ],
    outputs: late.outputs,
    nodes: builder.nodes,
  });
}

/** A fused norm whose sum is given: what it adds is nothing. */
function sumOf(builder: Builder, node: OnnxNode, rows: string): GraphNode {
  const [first, second] = node.inputs;
  const bias = node.inputs[SKIP_NORMS[node.op] as number];
  const zeros = builder.add('Sub', [rows, rows]);
  return renamed(node, (input) => (input === first ? rows : input === second ? zeros : input === bias ? '' : input));
}

/** Operators that take a shape, with its place among their inputs. */
const SHAPED: Readonly<Record<string, number>> = { Reshape: 1, Expand: 1, ConstantOfShape: 0 };

/**
 * Puts the count of rows that there are in place of the one that an exporter wrote into shapes. An extent that is as large by chance is
 * taken for a count too: numbers tell (`CutTower.open`).
 */
function recount(builder: Builder, graph: Graph, nodes: readonly OnnxNode[], { items, rows }: StateExtents): void {
  const counts = new Map<number, () => string>([
    [items * rows, () => builder.reshape(builder.add('Div', [builder.add('Size', [STATES]), width()]), one())],
    [rows, () => builder.extents(STATES, -2)],
  ]);
  const one = () => builder.integers(1);
  const width = () => builder.extents(STATES, -1);
  const edited = new Map<string, string>();
  const shapeOf = (value: string): string => {
    const known = edited.get(value);
    if (known !== undefined) return known;
    const numbers = graph.isConstant(value) ? graph.constants.numbers(value) : null;
    const shape = numbers?.some((extent) => counts.has(extent))
      ? builder.concat(...numbers.map((extent) => counts.get(extent)?.() ?? builder.integers(extent)))
      : value;
    edited.set(value, shape);
    return shape;
  };
  for (const node of nodes) {
    const places = node.op in SHAPED ? [SHAPED[node.op]] : isShape(graph, node) ? node.inputs.keys() : [];
    const own = new Map<string, string>();
    for (const place of places) {
      const value = node.inputs[place];
      if (shapeOf(value) !== value) own.set(value, shapeOf(value));
    }
    if (own.size > 0) builder.include([renamed(node, (value) => own.get(value) ?? value)]);
  }
}

/** Whether a node joins a shape that is not known. */
function isShape(graph: Graph, { op, inputs, outputs }: OnnxNode): boolean {
  return op === 'Concat' && !graph.isConstant(outputs[0]) && graph.elementType(inputs[0]) === DataType.int64;
}
