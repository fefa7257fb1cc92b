import { DesapError, invalid } from '../errors.js';
import type { PruneResult } from '../index.js';
import { Tensor } from '../tensor.js';

/**
 * Whether the language model sees the kept tokens renumbered without gaps (`compact`) or at the places that they had among all
 * visual tokens (`original`).
 */
export type Positions = 'compact' | 'original';

/** What {@link compact} needs of a `PruneResult`: which patches were kept, and of how many (the length of `assignment`). */
export type KeptPatches = Pick<PruneResult, 'indices' | 'assignment'>;

export interface CompactOptions {
  /** The prompt of one sequence, [1, L] or [L], int64, with one `imageTokenId` for each patch of each picture. */
  inputIds: Tensor | BigInt64Array | readonly number[];
  /** [1, L] or [L], int64: 0 where the sequence is padded; default: all ones. */
  attentionMask?: Tensor | BigInt64Array | readonly number[];
  imageTokenId: number;
  /** The result for the picture, or one result for each picture in the order of the prompt. */
  kept: KeptPatches | readonly KeptPatches[];
  /** Default `compact`. */
  positions?: Positions;
}

/** A shortened prompt of L' ids, [1, L'] int64 each. */
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
  const { imageTokenId, positions = 'compact' } = options;
  if (positions !== 'compact' && positions !== 'original')
    throw invalid('ERR_VALUE', 'positions', positions, 'compact | original');
  const ids = int64('inputIds', options.inputIds);
  const mask = options.attentionMask
    ? int64('attentionMask', options.attentionMask)
    : new BigInt64Array(ids.length).fill(1n);
  if (mask.length !== ids.length)
    throw invalid('ERR_SHAPE', 'attentionMask', `${mask.length} elements`, `${ids.length}, as many as inputIds`);
  const visible = keptFlags('indices' in options.kept ? [options.kept] : options.kept);
  const image = BigInt(imageTokenId);
  const count = ids.reduce((sum, id) => sum + Number(id === image), 0);
  if (count !== visible.length)
    throw invalid(
      'ERR_SHAPE',
      'inputIds',
      `${count} image tokens (id ${imageTokenId})`,
      `${visible.length}, one per patch`,
    );

  const out = { ids: [] as bigint[], mask: [] as bigint[], positions: [] as bigint[] };
  let [patch, next] = [0, 0];
  for (let i = 0; i < ids.length; i++) {
    const stays = ids[i] !== image || visible[patch++];
    if (stays) {
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
    positionIds: tensor(out.positions),
    nextPosition: next,
  };
}

/** One flag for each patch of all pictures. */
function keptFlags(pictures: readonly KeptPatches[]): boolean[] {
  return pictures.flatMap(({ indices, assignment }) => {
    const flags = new Array<boolean>(assignment.length).fill(false);
    for (const index of indices) {
      if (!(index >= 0 && index < flags.length))
        throw invalid('ERR_VALUE', 'kept.indices', index, `0 to ${flags.length - 1}`);
      flags[index] = true;
    }
    return flags;
  });
}

function int64(name: string, value: Tensor | BigInt64Array | readonly number[]): BigInt64Array {
  if (value instanceof BigInt64Array) return value;
  if (Array.isArray(value)) return BigInt64Array.from(value as number[], BigInt);
  const { data, dims } = value as Tensor;
  if (!(data instanceof BigInt64Array)) throw new DesapError('ERR_DTYPE', `${name}: wanted an int64 tensor`);
  if (dims.length > 2 || (dims.length === 2 && dims[0] !== 1))
    throw invalid('ERR_SHAPE', `${name}.dims`, dims, '[1, L]: one sequence at a time');
  return data;
}
