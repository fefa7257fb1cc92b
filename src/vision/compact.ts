import { types } from 'node:util';
import { describe, invalid, mismatch } from '../errors.js';
import type { PruneResult } from '../index.js';
import { options as checked, entries, fields, type OptionNames } from '../options.js';
import { integer, integerData, isArray, object, oneOf, plain, Tensor } from '../tensor.js';

/**
 * Whether the language model sees the kept tokens renumbered without gaps (`compact`) or at the places that they had among all
 * visual tokens (`original`).
 */
export type Positions = (typeof POSITIONS)[number];
export const POSITIONS = ['compact', 'original'] as const;

/** What {@link compact} needs of a `PruneResult`: which patches were kept, and of how many (the length of `assignment`). */
export type KeptPatches = Pick<PruneResult, 'indices' | 'assignment'>;

/** What {@link compact} takes. */
export interface CompactOptions {
  /** The prompt of one sequence, [1, L] or [L], int64, with one `imageTokenId` for each patch of each image. */
  inputIds: Tensor | BigInt64Array | readonly number[];
  /** [1, L] or [L], int64: 0 where the sequence is padded; default: all ones. */
  attentionMask?: Tensor | BigInt64Array | readonly number[];
  /** The id that stands for one patch, negative in Phi-3.5-vision; several where images and videos of a prompt have ids of their own. */
  imageTokenId: number | readonly number[];
  /** The result for the image, or one result for each image in the order of the prompt. */
  kept: KeptPatches | readonly KeptPatches[];
  /**
   * The positions that the prompt has already, int64 [1, L] or [R, 1, L] (R = 3 for M-RoPE): each token that stays keeps its
   * column. In place of `positions`.
   */
  positionIds?: Tensor;
  /** Default `compact`. */
  positions?: Positions;
}

/** A shortened prompt of L' ids, [1, L'] int64 each; `positionIds` [R, 1, L'] when they were given so. */
export interface CompactPrompt {
  readonly inputIds: Tensor;
  readonly attentionMask: Tensor;
  /** For decoders that take `position_ids`; padding has position 1, as Hugging Face's generation gives it. */
  readonly positionIds: Tensor;
  /** The position that the first generated token has. */
  readonly nextPosition: number;
}

/**
 * Takes the dropped visual tokens out of a prompt, for whoever puts the decoder's input together: the ids that remain have one
 * image token for each kept patch, in the order of `kept.indices`.
 *
 * @throws DesapError `ERR_SHAPE` when the prompt has not one image token per patch, `ERR_DTYPE`, `ERR_VALUE`
 */
export function compact(options: CompactOptions): CompactPrompt {
  const { attentionMask, imageTokenId, positionIds, positions: asked, ...given } = checked('options', options, NAMES);
  const positions = asked ?? 'compact';
  if (positionIds !== undefined && asked !== undefined)
    throw mismatch('ERR_VALUE', 'positions', `${describe(positions)} and positionIds`, 'one of the two');
  oneOf('positions', positions, POSITIONS);
  const ids = int64('inputIds', given.inputIds);
  const mask =
    attentionMask === undefined ? new BigInt64Array(ids.length).fill(1n) : int64('attentionMask', attentionMask);
  if (mask.length !== ids.length)
    throw mismatch('ERR_SHAPE', 'attentionMask', `${mask.length} elements`, `${ids.length}, as many as inputIds`);
  const visual = listOf('imageTokenId', imageTokenId).map((id) =>
    BigInt(integer('imageTokenId', id, Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER)),
  );
  const visible = keptFlags(given.kept, positions === 'original' || positionIds !== undefined);
  const count = ids.reduce((sum, id) => sum + Number(visual.includes(id)), 0);
  if (count !== visible.length)
    throw mismatch(
      'ERR_SHAPE',
      'inputIds',
      `${count} image tokens (id ${visual.join(', ')})`,
      `${visible.length}, one per patch`,
    );

  const rows = positionIds && positionRows(positionIds, mask);
  const columns: number[] = [];
  const out = { ids: [] as bigint[], mask: [] as bigint[], positions: [] as bigint[] };
  let [patch, next] = [0, 0];
  for (let i = 0; i < ids.length; i++) {
    const stays = !visual.includes(ids[i]) || visible[patch++];
    if (stays) {
      columns.push(i);
      out.ids.push(ids[i]);
      out.mask.push(mask[i]);
      out.positions.push(mask[i] === 0n ? 1n : BigInt(next));
    }
    if (mask[i] !== 0n && (stays || positions === 'original')) next++;
  }
  const tensor = (values: bigint[]) => new Tensor('int64', BigInt64Array.from(values), [1, values.length]);
  return {
    inputIds: tensor(out.ids),
    attentionMask: tensor(out.mask),
    positionIds: rows ? rows.at(columns) : tensor(out.positions),
    nextPosition: rows ? rows.next : next,
  };
}

const NAMES: OptionNames<CompactOptions> = {
  ...{ inputIds: true, attentionMask: true, imageTokenId: true, kept: true, positionIds: true, positions: true },
};

/** Given positions: some of their columns, and the position behind the last token's, which a video's last frame may exceed. */
function positionRows(
  positionIds: Tensor,
  mask: BigInt64Array,
): { at(columns: readonly number[]): Tensor; next: number } {
  const { length } = mask;
  object('positionIds', positionIds, 'an int64 tensor');
  const { data, dims } = integerData('positionIds', positionIds, 'int64');
  if (!types.isBigInt64Array(data)) throw invalid('ERR_DTYPE', 'positionIds', data, 'int64');
  const rows = dims.length === 3 ? dims[0] : 1;
  if (dims.length < 2 || dims.length > 3 || dims.at(-2) !== 1 || dims.at(-1) !== length)
    throw invalid('ERR_SHAPE', 'positionIds.dims', dims, `[1, ${length}] or [rows, 1, ${length}]`);
  return {
    at: (columns) => {
      const kept = Array.from({ length: rows }, (_, r) => columns.map((column) => data[r * length + column]));
      return new Tensor('int64', BigInt64Array.from(kept.flat()), [...dims.slice(0, -1), columns.length]);
    },
    next: 1 + Math.max(-1, ...Array.from({ length: rows }, (_, r) => Number(data[r * length + mask.lastIndexOf(1n)]))),
  };
}

/**
 * One flag for each patch of all images.
 * @param isPlaced whether tokens have the positions of their own places, which ascend
 */
function keptFlags(kept: KeptPatches | readonly KeptPatches[], isPlaced: boolean): boolean[] {
  return listOf('kept', kept).flatMap((one, i) => {
    const name = isArray(kept) ? `kept[${i}]` : 'kept';
    const given = fields(name, object(name, one, KEPT), ['indices', 'assignment']);
    const [indices, assignment] = [indicesOf(given.indices), indicesOf(given.assignment)];
    if (indices === null || assignment === null) throw invalid('ERR_VALUE', name, one, KEPT);
    if (isPlaced && indices.some((index: number, k: number) => k > 0 && index < indices[k - 1]))
      throw mismatch(
        'ERR_VALUE',
        name,
        "tokens in the order of layout: 'public'",
        "layout: 'raster', or positions: 'compact' without positionIds: each token would have another's position",
      );
    const flags = new Array<boolean>(assignment.length).fill(false);
    for (const index of indices) flags[integer(`${name}.indices`, index, 0, flags.length - 1)] = true;
    return flags;
  });
}

const KEPT = 'a result of prune, or one for each image: { indices, assignment }';

function indicesOf(value: unknown): readonly number[] | Int32Array | null {
  if (types.isInt32Array(value)) return plain(value);
  return isArray(value) ? entries('kept', value as readonly number[]) : null;
}

/** One or several, as a list. */
function listOf<T>(argument: string, value: T | readonly T[]): T[] {
  return isArray(value) ? entries(argument, value as readonly T[]) : [value as T];
}

/** @throws DesapError `ERR_VALUE`, `ERR_DTYPE`, `ERR_SHAPE` */
function int64(name: string, value: Tensor | BigInt64Array | readonly number[]): BigInt64Array {
  if (types.isBigInt64Array(value)) return plain(value);
  const wanted = 'an int64 tensor, a BigInt64Array or an array of integers';
  object(name, value, wanted);
  if (isArray(value)) {
    const ids = entries(name, value as readonly number[]);
    const bad = ids.findIndex((id) => !Number.isSafeInteger(id));
    if (bad >= 0) throw invalid('ERR_VALUE', `${name}[${bad}]`, ids[bad], 'an integer');
    return BigInt64Array.from(ids, BigInt);
  }
  const { data, dims } = integerData(name, value as Tensor, wanted);
  if (!types.isBigInt64Array(data)) throw invalid('ERR_DTYPE', name, data, wanted);
  if (dims.length > 2 || (dims.length === 2 && dims[0] !== 1))
    throw invalid('ERR_SHAPE', `${name}.dims`, dims, '[1, L]: one sequence at a time');
  return data;
}
