/** Which columns of a batch of sequences are left, and where. Pure functions over typed arrays; nothing is known of models here. */

/**
 * Where the slots of a cache come from: for each sequence, the column of the whole prompt that each slot holds, or -1 for padding
 * that was put in. Slots beyond these hold the columns from `columns` on, one by one.
 */
export interface CacheMap {
  readonly slots: readonly Int32Array[];
  readonly columns: number;
  /** For each sequence, columns of the whole prompt that it has lost and that were no visual tokens. */
  readonly marks?: readonly ReadonlySet<number>[];
}

/**
 * Slots for the columns that stay. Sequences that become shorter than others are padded on the left, as generation wants it.
 *
 * @param stays [rows * columns] flags
 */
export function pack(stays: Uint8Array, rows: number, columns: number): Int32Array[] {
  const kept = Array.from({ length: rows }, (_, row) => {
    const columnsLeft: number[] = [];
    for (let column = 0; column < columns; column++) if (stays[row * columns + column]) columnsLeft.push(column);
    return columnsLeft;
  });
  const length = Math.max(...kept.map((one) => one.length));
  return kept.map((one) => {
    const slots = new Int32Array(length).fill(-1);
    slots.set(one, length - one.length);
    return slots;
  });
}

/**
 * The map of a cache of `past` slots and further slots behind them, which hold some of `columns` further columns.
 * @param marks of each sequence, those of the further columns that are lost and no visual tokens
 */
export function append(
  map: CacheMap | null,
  past: number,
  slots: readonly Int32Array[],
  columns: number,
  marks: readonly (readonly number[])[] = [],
): CacheMap {
  const offset = columnsOf(map, past);
  return {
    marks: slots.map(
      (_, r) => new Set([...(map?.marks?.[r] ?? []), ...(marks[r] ?? []).map((column) => column + offset)]),
    ),
    slots: slots.map((row, r) => {
      const head = slotsOf(map, r, past);
      const all = new Int32Array(past + row.length);
      all.set(head);
      all.set(
        row.map((column) => (column < 0 ? -1 : column + offset)),
        past,
      );
      return all;
    }),
    columns: offset + columns,
  };
}

/** Columns of the whole prompt that a cache of `past` slots covers. */
export function columnsOf(map: CacheMap | null, past: number): number {
  return map === null ? past : map.columns + past - map.slots[0].length;
}

/** The columns of the first `length` slots of a sequence. */
export function slotsOf(map: CacheMap | null, row: number, length: number): Int32Array {
  const known = map?.slots[row] ?? new Int32Array(0);
  const next = map?.columns ?? 0;
  return Int32Array.from({ length }, (_, slot) => known[slot] ?? next + slot - known.length);
}

/** Columns that a sequence has lost. */
export function dropped(map: CacheMap | null, row: number): number {
  return map === null ? 0 : map.columns - map.slots[row].reduce((sum, column) => sum + Number(column >= 0), 0);
}

/**
 * Picks columns of an int64 tensor [..., rows, columns] in slot order.
 *
 * @param padding what stands in slots without a column
 * @returns data of [..., rows, slots]
 */
export function pickColumns(
  data: BigInt64Array,
  columns: number,
  slots: readonly Int32Array[],
  padding: bigint,
): BigInt64Array {
  const length = slots[0].length;
  const lines = data.length / columns;
  const picked = new BigInt64Array(lines * length).fill(padding);
  for (let line = 0; line < lines; line++) {
    const row = slots[line % slots.length];
    for (let slot = 0; slot < length; slot++)
      if (row[slot] >= 0) picked[line * length + slot] = data[line * columns + row[slot]];
  }
  return picked;
}
