/** Which image tokens of a prompt are one image's. A pure function over ids; nothing is known of models here. */

/** Ids of the tokens beside the last piece of an image. */
export interface MarkIds {
  readonly beforeLast?: bigint;
  readonly afterLast?: bigint;
}

/** The image tokens of one image. */
export interface Span {
  readonly sequence: number;
  /** Columns of each piece: image tokens without others between. */
  readonly pieces: readonly (readonly number[])[];
}

/**
 * The images of a batch of prompts, sequence by sequence. An image ends with the first piece that has a mark beside it, and with its
 * sequence.
 *
 * @param ids [rows * columns]
 * @returns null where no piece has a mark beside it
 */
export function imageSpans(
  ids: BigInt64Array,
  [rows, columns]: readonly number[],
  token: bigint,
  { beforeLast, afterLast }: MarkIds,
): Span[] | null {
  const spans: Span[] = [];
  let isMarked = false;
  for (let sequence = 0; sequence < rows; sequence++) {
    const row = ids.subarray(sequence * columns, (sequence + 1) * columns);
    let pieces: number[][] = [];
    for (let column = row.indexOf(token); column >= 0; column = row.indexOf(token, column)) {
      const first = column;
      while (row[column] === token) column++;
      pieces.push(Array.from({ length: column - first }, (_, i) => first + i));
      const isBeside = (mark: bigint | undefined, at: number) => mark !== undefined && row[at] === mark;
      if (!isBeside(beforeLast, first - 1) && !isBeside(afterLast, column)) continue;
      isMarked = true;
      spans.push({ sequence, pieces });
      pieces = [];
    }
    if (pieces.length > 0) spans.push({ sequence, pieces });
  }
  return isMarked ? spans : null;
}
