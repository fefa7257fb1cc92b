import type { OnnxNode } from '../format/messages.js';
import { DataType } from '../format/proto.js';
import { ancestors, type Graph } from './graph.js';

/** A form that numbers in a graph are rounded to. */
type Precision = 'float32' | 'float16' | 'bfloat16' | 'int8' | 'int4';

/**
 * Relative errors that rounding explains, from the finest form to the coarsest: float32 sums in another order, and from
 * float16 on what exports of a CLIP tower differ by (3e-3, 5e-2, 2e-1 at most), with room for deeper ones. Hidden states
 * of two towers that have nothing in common differ by about 1.
 */
const TOLERANCE: Readonly<Record<Precision, number>> = {
  float32: 1e-4,
  float16: 1e-2,
  bfloat16: 5e-2,
  int8: 1e-1,
  int4: 3e-1,
};

/**
 * The relative error that rounding explains in a value: that of the coarsest form that numbers have on the way to it.
 *
 * @param from a value to start from in place of the graph inputs
 */
export function toleranceOf(graph: Graph, value: string, from?: string): number {
  const nodes = ancestors(graph, value, from);
  return nodes.reduce((most, node) => Math.max(most, TOLERANCE[precisionOf(graph, node)]), TOLERANCE.float32);
}

function precisionOf(graph: Graph, { op, inputs, attributes }: OnnxNode): Precision {
  if (op === 'MatMulBnb4') return 'int4';
  if (op === 'MatMulNBits' || op === 'GatherBlockQuantized')
    return (attributes.get('bits')?.i ?? 4) > 4 ? 'int8' : 'int4';
  if (op === 'DequantizeLinear' && FOUR_BITS.has(graph.tensor(inputs[0])?.type ?? 0)) return 'int4';
  if (/Integer|[Qq]uantize|QLinear|QAttention/.test(op)) return 'int8';
  const types = [attributes.get('to')?.i, ...inputs.map((input) => graph.model.initializers.get(input)?.type)];
  if (types.includes(DataType.bfloat16)) return 'bfloat16';
  return types.includes(DataType.float16) ? 'float16' : 'float32';
}

const FOUR_BITS: ReadonlySet<number> = new Set([DataType.uint4, DataType.int4]);
