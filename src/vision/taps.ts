/** Blocks of a CLIP tower that methods look into. */
import type { InferenceSession } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import { checkTaps, type TapName } from '../methods/method.js';
import type { OrtModule } from '../onnx/edit.js';
import type { AttentionWeights } from '../onnx/head/recompute.js';
import { readTaps } from '../onnx/head/taps.js';
import { blocksBefore } from '../onnx/split.js';
import type { TowerStructure } from '../onnx/tower.js';

/** What `taps` asks for: blocks by the names of taps, and what was read of them. */
export class Taps {
  private constructor(
    private readonly named: ReadonlyMap<TapName, number>,
    private readonly weights: ReadonlyMap<number, AttentionWeights>,
  ) {}

  /**
   * Reads the blocks of a tower.
   * @throws DesapError as {@link readTaps}
   */
  static async read(
    ort: OrtModule,
    tower: TowerStructure,
    { named, heads }: { readonly named: ReadonlyMap<TapName, number>; readonly heads: number },
    session?: InferenceSession.SessionOptions,
  ): Promise<Taps> {
    const blocks = [...new Set(named.values())];
    return new Taps(named, blocks.length === 0 ? new Map() : await readTaps(ort, tower, { blocks, heads }, session));
  }

  /** Tapped blocks, each once. */
  get blocks(): readonly number[] {
    return [...this.weights.keys()];
  }

  /** A tapped block and its weights; null where it was not opened. */
  get(name: TapName): { readonly block: number; readonly weights: AttentionWeights } | null {
    const block = this.named.get(name);
    return block === undefined ? null : { block, weights: this.weights.get(block) as AttentionWeights };
  }
}

/**
 * The block of each tap in a tower of L, of which its file has all but the last: 0, round(5 L / 24), L - 2. The last is in the head.
 * @throws DesapError `ERR_VALUE` for what is no list of taps; `ERR_GRAPH` for one that the tower does not have
 */
export function tapBlocks(taps: readonly TapName[], tower: TowerStructure): ReadonlyMap<TapName, number> {
  const before = blocksBefore(tower);
  const L = before + 1;
  const blocks = { first: 0, local: Math.floor((5 * L) / 24 + 0.5), penultimate: L - 2, last: null };
  const named = new Map<TapName, number>();
  for (const name of checkTaps(taps)) {
    const block = blocks[name];
    if (block === null) continue;
    if (block < 0 || block >= before)
      throw new DesapError(
        'ERR_GRAPH',
        `${tower.graph.model.name}: looked for the tap '${name}', block ${block} of a tower; found ${before} blocks in front of the last`,
      );
    named.set(name, block);
  }
  return named;
}
