import { ancestors, type Graph } from './graph.js';
import { pickedBy } from './token-inputs.js';

/**
 * Rows of the position embedding of a tower: of the constant [N, D] or [1, N, D] that is added to the token embeddings,
 * as a whole or in rows.
 *
 * @param first a value that the first layer computes
 * @param width D
 * @param apart graph inputs that pick rows of other tables, those of the token embedding among them
 * @returns null when there is none
 */
export function positionCount(
  graph: Graph,
  first: string,
  width: number,
  apart: ReadonlySet<string> = new Set(),
): number | null {
  for (const node of ancestors(graph, first)) {
    if (node.op !== 'Add' && node.op !== 'SkipLayerNormalization') continue;
    for (const side of node.inputs.slice(0, 2)) {
      const value = graph.unmoved(side);
      const added = graph.producer(value);
      // An 8-bit embedding is picked from first and made floating-point then.
      const source = added?.op === 'DequantizeLinear' ? graph.producer(graph.origin(added.inputs[0])) : added;
      const isPacked = source?.op === 'GatherBlockQuantized';
      const isPick = source !== undefined && (isPacked || source.op === 'Gather' || source.op === 'Slice');
      if (isPick && apart.has(pickedBy(graph, source) ?? '')) continue;
      const dims = graph.tensor(isPick ? source.inputs[0] : value)?.dims ?? [];
      if (dims.length >= 2 && (isPacked || dims[dims.length - 1] === width)) return dims[dims.length - 2];
    }
  }
  return null;
}
