import { ancestors, type Graph } from './graph.js';

/**
 * Rows of the position embedding of a tower: of the constant [N, D] or [1, N, D] that is added to the token embeddings,
 * as a whole or in rows that are not picked by a graph input (those are the token embeddings themselves).
 *
 * @param firstInput a value that enters the first layer
 * @param width D
 * @returns null when there is none
 */
export function positionCount(graph: Graph, firstInput: string, width: number): number | null {
  for (const node of ancestors(graph, firstInput)) {
    if (node.op !== 'Add') continue;
    for (const side of node.inputs) {
      const source = graph.producer(graph.origin(side));
      const isPick = source !== undefined && (source.op === 'Gather' || source.op === 'Slice');
      if (isPick && graph.model.inputs.some((input) => input.name === graph.origin(source.inputs[1]))) continue;
      const dims = graph.tensor(isPick ? source.inputs[0] : side)?.dims ?? [];
      if (dims.length >= 2 && dims[dims.length - 1] === width) return dims[dims.length - 2];
    }
  }
  return null;
}
