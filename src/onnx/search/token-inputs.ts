import { DesapError } from '../../errors.js';
import type { OnnxNode, OnnxValue } from '../format/messages.js';
import { MOVES, PASS } from './constants.js';
import { ancestors, type Graph } from './graph.js';

/** The integer inputs of a text tower, each known by what the graph does with it. All have the shape [batch, T]. */
export interface TokenInputs {
  /** Picks rows of the token embedding. */
  readonly ids: OnnxValue;
  /** Are compared, or turned into what is added to the scores of an attention: 1 for a token, 0 for padding. */
  readonly masks: readonly OnnxValue[];
  /** Pick rows of the position embedding: 0, 1, 2, ... */
  readonly positions: readonly OnnxValue[];
  /** Pick rows of an embedding of a few kinds of tokens: 0 for all tokens of one text. */
  readonly types: readonly OnnxValue[];
}

/** The most rows that a table of token types has; BERT's has two. A table of positions is longer. */
const MOST_TYPES = 4;

/**
 * Tells the inputs of a text tower apart.
 *
 * @param output what the tower computes
 * @param picks what picks the row that is read out: the end-of-text token is looked for among the ids
 * @throws DesapError `ERR_GRAPH` for an input of unknown meaning
 */
export function tokenInputs(graph: Graph, output: string, picks: readonly OnnxNode[]): TokenInputs {
  const needed = ancestors(graph, output);
  const used = new Set(needed.flatMap((node) => node.inputs));
  const inputs = graph.model.inputs.filter((input) => used.has(input.name));
  const tables = new Map(inputs.map((input) => [input, tablesOf(graph, needed, input)]));
  const embeds = inputs.filter((input) => tables.get(input)!.length > 0);
  const ids = idsAmong(graph, embeds, picks) ?? byRows(embeds, tables);
  const fail = (looked: string, found: string) =>
    new DesapError('ERR_GRAPH', `${graph.model.name}: looked for ${looked}; found ${found}`);
  if (ids === undefined)
    throw fail(
      'a token embedding that an input picks rows of',
      `the inputs ${inputs.map((input) => input.name).join(', ') || 'none'}`,
    );
  const further = embeds.filter((input) => input !== ids);
  const isType = (input: OnnxValue) => tables.get(input)!.every((rows) => rows <= MOST_TYPES);
  const masks = inputs.filter((input) => !embeds.includes(input));
  for (const mask of masks)
    if (!isMask(graph, mask))
      throw fail('token ids, positions, token types or a mask in each input', `'${mask.name}', which is none of them`);
  return { ids, masks, positions: further.filter((input) => !isType(input)), types: further.filter(isType) };
}

/** The one input whose numbers say which row is read out. */
function idsAmong(graph: Graph, embeds: readonly OnnxValue[], picks: readonly OnnxNode[]): OnnxValue | undefined {
  const places = picks.flatMap((node) => node.inputs.slice(1));
  const found = embeds.filter((input) => places.some((place) => dependsOn(graph, place, input.name)));
  return found.length === 1 ? found[0] : undefined;
}

/** Whether an input's numbers, and not only its shape, have a part in a value. */
function dependsOn(graph: Graph, value: string, input: string): boolean {
  const open = [value];
  const seen = new Set<string>();
  for (let at = open.pop(); at !== undefined; at = open.pop()) {
    if (at === input) return true;
    if (seen.has(at) || !graph.sourcesOf(at).integers) continue;
    seen.add(at);
    for (const before of graph.producer(at)?.inputs ?? []) open.push(before);
  }
  return false;
}

function byRows(embeds: readonly OnnxValue[], tables: ReadonlyMap<OnnxValue, number[]>): OnnxValue | undefined {
  const rows = (input: OnnxValue) => (tables.get(input) ?? []).reduce((most, count) => Math.max(most, count), 0);
  return [...embeds].sort((a, b) => rows(b) - rows(a))[0];
}

/** Row counts of the constant tables that an input picks rows of. */
function tablesOf(graph: Graph, nodes: readonly OnnxNode[], input: OnnxValue): number[] {
  return nodes.flatMap((node) => {
    if (pickedBy(graph, node) !== input.name) return [];
    const table = graph.tensor(node.inputs[0]);
    return table?.dims.length === 2 ? [table.dims[0]] : [];
  });
}

/**
 * The graph input that picks rows with a Gather, however its numbers were moved, repeated or cast on the way; null when
 * constants or computed numbers pick them, or the node is no Gather.
 */
export function pickedBy(graph: Graph, node: OnnxNode): string | null {
  if (node.op !== 'Gather' && node.op !== 'GatherBlockQuantized') return null;
  const source = graph.unmoved(node.inputs[1]);
  return graph.model.inputs.some((input) => input.name === source) ? source : null;
}

/** What stands between a mask and the scores that it is added to or selects from. */
const MASKS = new Set([
  ...['Equal', 'Not', 'And', 'Or', 'Less', 'LessOrEqual', 'Greater', 'GreaterOrEqual', 'Where', 'Mul', 'Sub', 'Add'],
  ...['Max', 'Min', 'Slice', 'Concat', 'Tile', 'Gather', 'GatherND', 'CumSum', 'ReduceSum', 'Neg', 'Trilu'],
  ...MOVES,
  ...PASS,
]);

/** Whether an input goes into the scores of an attention otherwise than through an embedding. */
function isMask(graph: Graph, input: OnnxValue): boolean {
  const open = [input.name];
  const seen = new Set<string>();
  for (let at = open.pop(); at !== undefined; at = open.pop())
    for (const { op, outputs } of graph.consumers(at)) {
      if (op === 'Softmax' || op === 'ReduceMax' || op.endsWith('Attention')) return true;
      if (!MASKS.has(op) || seen.has(outputs[0])) continue;
      seen.add(outputs[0]);
      open.push(outputs[0]);
    }
  return false;
}
