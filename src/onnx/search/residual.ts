import type { OnnxNode } from '../format/messages.js';
import { ancestors, type Graph } from './graph.js';
import { SKIP_NORMS } from './last-block.js';

/**
 * The values that enter the blocks of an encoder, first block first, walked back along the residual stream: a block is two sums,
 * `h = x + f(x)` and `y = h + g(h)`, whatever its attention is (loops and fused operators too).
 *
 * @param last what enters the last block that counts; it is the last of the values
 */
export function enteringBlocks(graph: Graph, last: string): string[] {
  const entering = [last];
  for (let at = residualOf(graph, last); at !== null; at = residualOf(graph, entering[0])) {
    const before = residualOf(graph, at);
    if (before === null) break;
    entering.unshift(before);
  }
  return entering;
}

/** For a sum `x + f(x)`: x. Null for anything else, as the sum of patches and positions is. */
function residualOf(graph: Graph, sum: string): string | null {
  const at = graph.origin(sum);
  const node = graph.producer(at);
  if (node === undefined) return null;
  const [a, b] = summandsOf(graph, node, at);
  if (a === undefined || b === undefined) return null;
  const [x, further] = graph.depth(a) < graph.depth(b) ? [a, b] : [b, a];
  return isBehind(graph, graph.origin(x), further) ? x : null;
}

/** The summands that hold something of the image. */
function summandsOf(graph: Graph, { op, inputs, outputs }: OnnxNode, sum: string): string[] {
  const isSum = op === 'Add' || op === 'Sum' || (SKIP_NORMS[op] !== undefined && outputs[3] === sum);
  return isSum ? inputs.filter((value) => value !== '' && graph.sourcesOf(value).floats).slice(0, 2) : [];
}

/** Whether the operator that writes a value has a part in another: a fused norm hands out the sum beside what it normalises. */
function isBehind(graph: Graph, value: string, other: string): boolean {
  return ancestors(graph, other).some(({ outputs }) => outputs.includes(value));
}
