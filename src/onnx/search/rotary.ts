import { DesapError } from '../../errors.js';
import type { Builder } from '../format/builder.js';
import type { OnnxNode } from '../format/messages.js';
import { renamed } from '../format/write.js';
import { MOVES, PASS } from './constants.js';
import { describeNode, type Graph } from './graph.js';
import type { Linears } from './linear.js';

/** Operators that move or take elements or change their type, and compute nothing; what they carry is their first input. */
export const CARRIES: ReadonlySet<string> = new Set([...MOVES, ...PASS, 'Slice', 'Split', 'Gather']);

/** Operators that rotations are written in. Transposes are none: both ends of a rotation have the same axes. */
const ROTATES = new Set([
  ...['Add', 'Sub', 'Mul', 'Neg', 'Concat', 'Slice', 'Split', 'Gather'],
  ...['Reshape', 'Squeeze', 'Unsqueeze', 'Cast', 'CastLike', 'Identity'],
]);

/** An operand of an attention: a rotary embedding, and how its result gets to the attention. */
export interface Rotated {
  /** The value that is rotated, and the result; of the same axes, up to how the last axes are split. */
  readonly plain: string;
  readonly turned: string;
  /** Operators behind the rotation that move elements, the first one first, each with the output that is gone on with. */
  readonly moves: readonly { readonly node: OnnxNode; readonly output: string }[];
}

/** Whether the image has a part in a value; masks, rotations and orders come from the grid alone. */
export function hasPixels(graph: Graph, value: string): boolean {
  return value !== '' && !graph.isConstant(value) && graph.sourcesOf(value).floats;
}

/**
 * Walks back from an operand of an attention, past moves and scalar factors, to the rotation of queries or keys that come out of a
 * linear layer.
 *
 * @throws DesapError `ERR_GRAPH` with the operator in the way
 */
export function rotatedBehind(graph: Graph, linears: Linears, operand: string, what: 'queries' | 'keys'): Rotated {
  const refuse = (node: OnnxNode | undefined, why: string) =>
    new DesapError(
      'ERR_GRAPH',
      `${graph.model.name}: looked for ${why} of the ${what} of the last attention; found ${node ? describeNode(node) : 'a graph input'}`,
    );
  const moves: Rotated['moves'][number][] = [];
  for (let at = operand; ; ) {
    const node = graph.producer(at);
    const factor = node && factorOf(graph, node);
    if (node && CARRIES.has(node.op)) {
      moves.unshift({ node, output: at });
      at = node.inputs[0];
    } else if (factor) {
      at = factor;
    } else {
      const plain = node && rotatedBy(graph, node);
      if (!plain) throw refuse(node, 'the rotation');
      const wrong = strangerBehind(graph, linears, plain);
      if (wrong !== null) throw refuse(wrong, 'a linear layer in front of the rotation');
      return { plain, turned: at, moves };
    }
  }
}

/** Sends a value through copies of the moves behind a rotation, in place of its result; factors are left out. */
export function moved({ moves }: Rotated, from: string, prefix: string, builder: Builder): string {
  return moves.reduce((at, { node, output }) => {
    const own = (value: string) => `${prefix}/${value}`;
    const rename = (value: string) =>
      value === node.inputs[0] ? at : node.outputs.includes(value) ? own(value) : value;
    builder.include([renamed(node, rename)]);
    return own(output);
  }, from);
}

/** For a Mul or Div by a scalar: what it scales. */
function factorOf(graph: Graph, { op, inputs: [a, b] }: OnnxNode): string | null {
  const isScalar = (value: string) => !hasPixels(graph, value) && graph.constants.scalar(value, 1) !== null;
  if ((op === 'Mul' || op === 'Div') && isScalar(b)) return a;
  return op === 'Mul' && isScalar(a) ? b : null;
}

/**
 * The value whose rotary embedding a node ends: one operator, or sums of products with values that the image has no part in (cosines
 * and sines). All ways back must meet in that value. Null when they do not, or when nothing is multiplied.
 */
export function rotatedBy(graph: Graph, node: OnnxNode): string | null {
  if (node.op === 'RotaryEmbedding') return node.inputs[0];
  if (node.op !== 'Add' && node.op !== 'Sub' && node.op !== 'Concat') return null;
  const seen = ({ inputs }: OnnxNode) => inputs.filter((value) => hasPixels(graph, value));
  const open = new Set(seen(node));
  let products = 0;
  if (open.size < 2) return null;
  while (open.size > 1) {
    const [deepest] = [...open].sort((a, b) => graph.depth(b) - graph.depth(a));
    const producer = graph.producer(deepest);
    if (producer === undefined || !ROTATES.has(producer.op)) return null;
    const from = seen(producer);
    if (producer.op === 'Mul') {
      if (from.length !== 1) return null;
      products++;
    }
    open.delete(deepest);
    for (const value of from) open.add(value);
  }
  return products > 1 ? [...open][0] : null;
}

/** The operator that keeps a value from being the (packed) result of a linear layer; null when nothing does. */
function strangerBehind(graph: Graph, linears: Linears, value: string): OnnxNode | null {
  let at = value;
  while (linears.behind(at) === undefined) {
    const node = graph.producer(at);
    const isBias = node?.op === 'Add' && node.inputs.filter((input) => hasPixels(graph, input)).length === 1;
    const isPassed = node !== undefined && (isBias || CARRIES.has(node.op) || factorOf(graph, node) !== null);
    if (!isPassed) return node ?? null;
    at = node.inputs.find((input) => hasPixels(graph, input)) as string;
  }
  return null;
}
