import { DesapError } from '../../errors.js';
import type { OnnxNode } from '../format/messages.js';
import type { Graph } from './graph.js';
import type { Norms } from './norm.js';
import { slicesOf } from './slice.js';

/**
 * Some rows of a token sequence: learnt ones (class token, registers; null when their count cannot be told), the patches, or some
 * of them or in another order.
 */
type Rows = { readonly learnt: number | null } | 'patches' | 'cut or reordered patches';

/** What the rows of a token sequence are, and how they lie. */
export interface TokenRows {
  /** In the order of the rows; null when that cannot be told. */
  readonly parts: readonly Rows[] | null;
  /** Whether the sequence lies as [batch, N, D]; otherwise as [N, batch, D]. */
  readonly batchFirst: boolean;
}

const PATCHES: TokenRows = { parts: ['patches'], batchFirst: true };

/**
 * What the tokens that enter the first layer were joined from, read backwards through position embedding, norm and moves.
 *
 * @param value the hidden states in front of the first layer
 * @param width D
 */
export function tokenRows(graph: Graph, norms: Norms, value: string, width: number): TokenRows {
  return new Sequences(graph, norms, width).rows(value, 0);
}

/** Deeper than any exporter puts parts of a sequence into one another, and more of them than any sequence has. */
const MOST_NESTED = 32;
const MOST_PARTS = 64;

/** Sequences that are joined or cut out of each other. Each is looked at once, however often it is used. */
class Sequences {
  private readonly known = new Map<string, TokenRows>();
  private readonly scales = new Set<string>();

  constructor(
    private readonly graph: Graph,
    private readonly norms: Norms,
    private readonly width: number,
  ) {}

  rows(value: string, depth: number): TokenRows {
    if (depth > MOST_NESTED) return { ...PATCHES, parts: null };
    const rows = this.known.get(value) ?? this.read(value, depth + 1);
    this.known.set(value, rows);
    return rows;
  }

  private read(value: string, depth: number): TokenRows {
    const { graph } = this;
    let turns = 0;
    const found = (rows: TokenRows): TokenRows => ({
      parts: rows.parts,
      batchFirst: turns % 2 === 0 ? rows.batchFirst : !rows.batchFirst,
    });
    for (let at = graph.origin(value); ; ) {
      const norm = this.norms.behind(at);
      const node = graph.producer(at);
      const summands = norm?.summands ?? (node !== undefined && ADDS.has(node.op) ? node.inputs : null);
      if (summands !== null) {
        // Position embeddings do not depend on the pixels, whether they are constant or computed from the image's size.
        const own = summands.filter(
          (summand) => graph.sourcesOf(summand).floats && !isScale(graph, summand, this.scales),
        );
        if (own.length !== 1) return found({ ...PATCHES, parts: null });
        at = graph.origin(own[0]);
      } else if (node?.op === 'Concat') return found(this.joined(node, depth));
      else if (node !== undefined && VIEWS.has(node.op)) {
        if (node.op === 'Transpose' && node.attributes.get('perm')?.ints?.[0] !== 0) turns++;
        at = graph.origin(node.inputs[0]);
      } else if (node !== undefined && slicesOf(graph, node)?.length === 0) at = graph.origin(node.inputs[0]);
      else if (node?.op === 'Slice') return found(cutOut(graph, node, this.rows(node.inputs[0], depth)));
      else return found(node !== undefined && PICKS.has(node.op) ? { ...PATCHES, parts: null } : PATCHES);
    }
  }

  private joined({ inputs }: OnnxNode, depth: number): TokenRows {
    const { graph, width } = this;
    const isLearnt = (input: string) => !graph.sourcesOf(input).floats;
    const rows = inputs.map((input) =>
      isLearnt(input)
        ? { parts: [{ learnt: learntRows(graph, input, width) }], batchFirst: true }
        : this.rows(input, depth),
    );
    const count = rows.reduce((sum, row) => sum + (row.parts?.length ?? Number.POSITIVE_INFINITY), 0);
    const parts = count > MOST_PARTS ? null : rows.flatMap((row) => row.parts ?? []);
    const image = rows[inputs.findIndex((input) => !isLearnt(input))] ?? PATCHES;
    // Where two parts of the image are joined, neither is the patches in their order.
    const images = parts?.filter((part) => typeof part === 'string').length;
    return { parts: images === 1 ? parts : null, batchFirst: image.batchFirst };
  }
}

/**
 * Whether a value is the scale of what was quantised at run time, or a product of that with others.
 * @param known such values, which grow
 */
function isScale(graph: Graph, value: string, known: Set<string>): boolean {
  const open = [value];
  const seen = new Set<string>();
  for (let at = open.pop(); at !== undefined; at = open.pop()) {
    const source = graph.origin(at);
    if (seen.has(source) || known.has(source)) continue;
    seen.add(source);
    const node = graph.producer(source);
    if (node?.op === 'DynamicQuantizeLinear' && node.outputs[1] === source) continue;
    if (node?.op !== 'Mul') return false;
    open.push(...node.inputs.slice(0, 2).filter((input) => graph.sourcesOf(input).floats));
  }
  for (const scale of seen) known.add(scale);
  return true;
}

/** The rows of a sequence that a Slice takes: some learnt ones from the first on, or all from one on. */
function cutOut(graph: Graph, node: OnnxNode, rows: TokenRows): TokenRows {
  const range = sliced(graph, node, rows.batchFirst ? 1 : 0);
  if (range === 'other axis') return rows;
  const [head, ...rest] = rows.parts ?? [];
  if (range === null || head === undefined) return { ...rows, parts: null };
  if (typeof head === 'string') return { ...rows, parts: ['cut or reordered patches'] };
  const count = head.learnt ?? 1;
  if (range.isTail && range.first === count) return { ...rows, parts: rest };
  const isHead = range.first === 0 && range.single && count === 1;
  return { ...rows, parts: isHead ? [head] : ['cut or reordered patches'] };
}

const ADDS = new Set(['Add', 'Sum', 'Mul', 'Div', 'BiasAdd']);
const VIEWS = new Set(['Reshape', 'Transpose', 'Squeeze', 'Unsqueeze', 'Flatten']);
const PICKS = new Set(['Gather', 'GatherND', 'GatherElements', 'Split', 'ScatterND', 'Where', 'Pad']);

/** Rows of a learnt tensor that is repeated for each image of a batch. */
function learntRows(graph: Graph, value: string, width: number): number | null {
  const tensor = graph.tensor(graph.unmoved(value));
  const count = tensor === null ? 0 : tensor.dims.reduce((product, extent) => product * extent, 1) / width;
  return Number.isInteger(count) && count > 0 ? count : null;
}

/** The rows of a sequence that operators take, from `first` on: one, without its token axis, or all. */
export interface RowsTaken {
  /** Negative: counted from the end. */
  readonly first: number;
  readonly single: boolean;
  /** Whether they are all rows from the first on, in their order. */
  readonly isTail: boolean;
}

const ALL: RowsTaken = { first: 0, single: false, isTail: true };

/**
 * Which rows of a sequence [batch, N, D] (or [N, batch, D]) operators take, the last one first.
 * @returns null when it cannot be told
 */
export function rowsTaken(graph: Graph, picks: readonly OnnxNode[], batchFirst: boolean): RowsTaken | null {
  let axis = batchFirst ? 1 : 0;
  let taken = ALL;
  for (const node of [...picks].reverse()) {
    const isPick = node.op === 'Gather' || node.op === 'Slice';
    if (node.op === 'Transpose') axis = node.attributes.get('perm')?.ints?.indexOf(axis) ?? axis;
    if (!isPick) {
      if (!ARRANGES.has(node.op)) return null;
      continue;
    }
    const next = node.op === 'Gather' ? gathered(graph, node, axis) : sliced(graph, node, axis);
    if (next === null) return null;
    if (next === 'other axis') continue;
    if (taken !== ALL) {
      // A single row that was cut out before: [0:1], then row 0 of it.
      if (taken.single && next.first === 0) continue;
      if (taken.isTail && next.first >= 0 && taken.first >= 0) taken = { ...next, first: taken.first + next.first };
      else return null;
    } else taken = next;
  }
  return taken;
}

const ARRANGES = new Set([
  'Transpose',
  'Reshape',
  'Squeeze',
  'Unsqueeze',
  'Flatten',
  'Identity',
  'Cast',
  'CastLike',
  'Dropout',
]);
const RANK = 3;

function gathered(graph: Graph, node: OnnxNode, tokens: number): RowsTaken | 'other axis' | null {
  const axis = node.attributes.get('axis')?.i ?? 0;
  const rows = graph.constants.numbers(node.inputs[1]);
  if (rows === null || rows.length === 0) return null;
  if ((axis + RANK) % RANK !== tokens) return rows.length === 1 ? 'other axis' : null;
  const isTail = rows.length > 1 && rows.every((row, i) => row === rows[0] + i);
  return { first: rows[0], single: rows.length === 1, isTail };
}

function sliced(graph: Graph, node: OnnxNode, tokens: number): RowsTaken | 'other axis' | null {
  const ranges = slicesOf(graph, node);
  if (ranges === null) return null;
  const range = ranges.find(({ axis }) => (axis + RANK) % RANK === tokens);
  if (range === undefined) return 'other axis';
  const { start, end, step } = range;
  const single = end - start === 1 || (start === -1 && end > 0);
  return { first: start, single, isTail: step === 1 && !single && end >= 2 ** 31 - 1 };
}

/**
 * Whether row 0 of the hidden states is a class token, and all others are patches.
 *
 * @param takenBy what row the read-out takes, or from which one on the projector takes them; null when it cannot be told
 * @throws DesapError `ERR_GRAPH` for any other order of rows
 */
export function hasClassToken(graph: Graph, { parts }: TokenRows, takenBy: RowsTaken | null): boolean {
  const { name } = graph.model;
  const refuse = (found: string) =>
    new DesapError('ERR_GRAPH', `${name}: looked for patch rows behind at most one class token; found ${found}`);
  const learnt = parts?.filter((part) => typeof part === 'object') ?? [];
  const isLearntFirst =
    learnt.length === 0 || (learnt.length === 1 && parts?.[0] === learnt[0] && (learnt[0].learnt ?? 1) === 1);
  if (parts !== null && !(isLearntFirst && parts.at(-1) === 'patches'))
    throw refuse(parts.map(describeRows).join(', ') || 'no rows');
  if (takenBy?.single && takenBy.first !== 0)
    throw refuse(`a read-out of row ${takenBy.first < 0 ? 'N' : ''}${takenBy.first}`);
  if (takenBy && !takenBy.single && (!takenBy.isTail || takenBy.first < 0 || takenBy.first > 1))
    throw refuse(
      `a projector of ${takenBy.isTail ? `the rows from ${takenBy.first} on` : 'rows in an order of their own'}`,
    );
  return learnt.length === 1 || takenBy?.single === true || takenBy?.first === 1;
}

const describeRows = (rows: Rows): string =>
  typeof rows === 'string' ? rows : rows.learnt === 1 ? '1 learnt row' : `${rows.learnt ?? 'some'} learnt rows`;
