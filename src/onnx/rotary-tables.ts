import type { Builder } from './format/builder.js';
import { renamed } from './format/write.js';
import type { Graph } from './search/graph.js';
import type { Axes } from './search/last-attention.js';
import type { LastBlock } from './search/last-block.js';
import { moved, type Rotated } from './search/rotary.js';

/**
 * The tables of a rotation `x cos + turn(x) sin` by halves, turn([a, b]) = [-b, a]. It is linear in each row, so that constants sent
 * through copies of its operators say them: [1, 0] becomes [cos, sin] of the first and the second half, [0, 1] becomes [-sin, cos].
 * Any other rotation gives tables that numbers refuse (`confirmBlock`).
 *
 * @returns the values of cos and sin, float32 [rows, dh]
 */
export function rotaryTables(
  builder: Builder,
  { graph, rotation, block, heads }: LastBlock,
): { cos: string; sin: string } {
  const { q, queries } = rotation as NonNullable<LastBlock['rotation']>;
  const extent = block.norm.weight.dims[0] / heads;
  const half = extent / 2;
  const probe = (which: 0 | 1) => {
    const pattern = Array.from({ length: extent }, (_, i) => Number(i >= half === (which === 1)));
    const probed = rotated(builder, graph, q, pattern, `desap.turned/${which}`);
    const rows = firstHead(builder, probed, queries.axes, heads, extent);
    const part = (from: number, to: number) =>
      builder.add('Slice', [rows, builder.integers(from), builder.integers(to), builder.integers(-1)]);
    return [part(0, half), part(half, extent)];
  };
  const [[cos1, sin2], [minusSin1, cos2]] = [probe(0), probe(1)];
  const join = (...parts: string[]) => builder.add('Concat', parts, { axis: { i: -1 } });
  return { cos: join(cos1, cos2), sin: join(builder.add('Neg', [minusSin1]), sin2) };
}

/** A row of constants in place of each head of the queries, through the rotation and the moves behind it. */
function rotated(builder: Builder, graph: Graph, q: Rotated, pattern: readonly number[], prefix: string): string {
  const shape = builder.add('Shape', [q.plain]);
  const count = builder.add('Div', [builder.add('Size', [q.plain]), builder.integers(pattern.length)]);
  const all = builder.add('Expand', [
    builder.floats(...pattern),
    builder.concat(builder.reshape(count, builder.integers(1)), builder.integers(pattern.length)),
  ]);
  const probe = builder.cast(builder.reshape(all, shape), graph.elementType(q.plain));
  return moved(
    q,
    computedFrom(builder, graph, new Map([[q.plain, probe]]), q.turned, prefix),
    `${prefix}/moved`,
    builder,
  );
}

/** Of an operand of an attention the rows of its first head, float32 [rows, dh]. */
function firstHead(builder: Builder, value: string, axes: Axes, heads: number, extent: number): string {
  const apart = () => builder.reshape(value, builder.integers(-1, heads, extent));
  // Rows and heads in the order that they lie in: [B, H, L, D] ...
  const tables: Readonly<Record<Axes, () => string>> = {
    BHLD: () => slice(builder, value, -3),
    BHDL: () => turnedLast(builder, slice(builder, value, -3)),
    LBHD: () => slice(builder, value, -2),
    DBHL: () => builder.transpose(builder.reshape(slice(builder, value, -2), builder.integers(extent, -1)), 1, 0),
    BLW: () => slice(builder, apart(), 1),
  };
  return builder.float(builder.reshape(tables[axes](), builder.integers(-1, extent)));
}

/** The first along an axis. */
function slice(builder: Builder, value: string, axis: number): string {
  return builder.add('Slice', [value, builder.integers(0), builder.integers(1), builder.integers(axis)]);
}

/** [.., D, L] as [.., L, D] of any rank. */
function turnedLast(builder: Builder, value: string): string {
  const flat = builder.reshape(value, builder.integers(-1), builder.extents(value, -2, -1));
  return builder.transpose(flat, 0, 2, 1);
}

/** A value again, by copies of the nodes that compute it from some others, with these replaced. */
export function computedFrom(
  builder: Builder,
  graph: Graph,
  replaced: ReadonlyMap<string, string>,
  value: string,
  prefix: string,
): string {
  const names = new Map(replaced);
  for (const node of graph.order) {
    const isMade = node.outputs.some((output) => replaced.has(output));
    if (isMade || !node.inputs.some((input) => names.has(input))) continue;
    for (const output of node.outputs) if (output !== '') names.set(output, `${prefix}/${output}`);
    builder.include([renamed(node, (name) => names.get(name) ?? name)]);
    if (node.outputs.includes(value)) break;
  }
  return names.get(value) as string;
}
