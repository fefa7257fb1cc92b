/** A CLIP tower that drops rows inside: what of each tile goes on behind the cut, and what is known of the others. */
import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { mismatch } from '../errors.js';
import type { Backend } from '../index.js';
import { concatenated, type Matrix, rowsOf, tensor, withoutClassToken } from '../methods/matrix.js';
import type { TapName } from '../methods/method.js';
import { Once } from '../once.js';
import { trialPixels } from '../onnx/head/pixels.js';
import type { AttentionWeights } from '../onnx/head/recompute.js';
import { readTaps } from '../onnx/head/taps.js';
import { pixelTensor } from '../onnx/head/trial.js';
import { HIDDEN_STATES, type OrtModule, type TowerStructure } from '../onnx/index.js';
import { enteringStates } from '../onnx/split.js';
import { clipTowerCut, type TowerCut } from '../onnx/tower-cut.js';
import { tilesAtOnce } from './at-once.js';
import { type ClipTower, type Rows, someTiles, type TileCut, type TowerRun, type TowerTile } from './clip-tower.js';
import { allRows, CutTower, type Entered, type Outputs } from './cut-tower.js';
import { asEncoding, rethrow } from './prune-together.js';
import { nearestKept, unitsThatStay } from './row-rules.js';
import type { RunNames } from './session.js';
import { TowerBatch } from './tower-batch.js';
import { checkRule, ROW_RULES, type TowerChoice, unitsKept } from './tower-options.js';

/** The rules that look into the block behind the cut. */
const LOOKING: readonly TowerChoice['by'][] = ['class-token', 'flow'];

/** How a tower of a file is cut. */
export interface ClipCutPlan {
  readonly structure: TowerStructure;
  readonly cut: TowerCut;
  readonly choice: TowerChoice;
  /** Blocks from the cut on whose entering states are kept. */
  readonly tapped: readonly number[];
}

/**
 * Cuts the tower of a file.
 * @param named taps that the model is opened with, and their blocks
 * @throws DesapError `ERR_VALUE` for a block or a rule that the tower does not have, and for taps in front of the cut; `ERR_GRAPH`
 */
export function planClipCut(
  structure: TowerStructure,
  choice: TowerChoice,
  named: ReadonlyMap<TapName, number>,
): ClipCutPlan {
  const { at } = choice;
  const rules = ROW_RULES.filter((rule) => structure.classToken || rule !== 'class-token');
  checkRule(choice, rules, 'of a tower without class token');
  for (const [name, block] of named)
    if (block < at)
      throw mismatch(
        'ERR_VALUE',
        'taps',
        `'${name}', block ${block}, beside tower.at: ${at}`,
        'blocks behind the cut: those in front have rows that are dropped',
      );
  const tapped = [...new Set(named.values())];
  return { structure, cut: clipTowerCut(structure, at, tapped), choice, tapped };
}

/** A cut tower, open, with the rule that says which rows stay. */
export class ClipCut implements ClipTower {
  #released: Promise<void> | null = null;

  private constructor(
    private readonly ort: OrtModule,
    private readonly tower: CutTower,
    private readonly plan: ClipCutPlan,
    private readonly backend: Backend,
    /** Of the block behind the cut, where the rule looks into it. */
    private readonly weights: AttentionWeights | null,
  ) {}

  /**
   * @param heads H, for a graph that does not say it
   * @param tolerance what the file's arithmetic rounds, relative to the largest magnitude
   * @throws DesapError as `CutTower.open` and `readTaps`
   */
  static async open(
    ort: OrtModule,
    plan: ClipCutPlan,
    how: { backend: Backend; heads: number; tolerance: number; session?: InferenceSession.SessionOptions },
  ): Promise<ClipCut> {
    const { structure, cut, choice } = plan;
    const { backend, heads, tolerance, session } = how;
    const block = choice.at;
    const weights = LOOKING.includes(choice.by)
      ? await readTaps(ort, structure, { blocks: [block], heads }, session)
      : null;
    const trials = async () => [{ [structure.pixels.name]: pixelTensor(ort, trialPixels(structure)) }];
    const tower = await CutTower.open(ort, cut, { session, trials, tolerance });
    return new ClipCut(ort, tower, plan, backend, weights?.get(block) ?? null);
  }

  get input(): InferenceSession {
    return this.tower.front;
  }

  async states(pixels: Tensor, names: RunNames): Promise<Tensor> {
    const entered = await this.tower.enter(this.#feeds(pixels), names);
    return (await this.tower.leave(entered, allRows(entered), { names }))[HIDDEN_STATES];
  }

  async run(pixels: Tensor, how: TowerRun): Promise<TowerTile[]> {
    const count = pixels.dims[0];
    const tiles: TowerTile[] = [];
    try {
      // One tile tells how many rows each has.
      let atOnce = Number.isFinite(how.rowsAtOnce) ? 1 : count;
      for (let at = 0; at < count; ) {
        const first = at;
        const end = Math.min(count, at + atOnce);
        const some = someTiles(this.ort, pixels, first, end);
        const own = await this.#run(some, { ...how, units: (tile, patches) => how.units(first + tile, patches) });
        tiles.push(...own);
        atOnce = tilesAtOnce(own[0].rows, how.rowsAtOnce);
        at = end;
      }
      return tiles;
    } catch (error) {
      for (const { batch } of tiles) void batch.release();
      throw error;
    }
  }

  /** Tiles of which as many rows stay go on together. */
  async #run(pixels: Tensor, { names, device, units }: TowerRun): Promise<TowerTile[]> {
    const entered = await this.tower.enter(this.#feeds(pixels), names);
    const chosen: Chosen[] = [];
    for (let tile = 0; tile < entered.items; tile++)
      chosen.push(await this.#choose(entered, tile, units(tile, entered.rows - this.#classRows)));
    const tiles = new Array<TowerTile>(entered.items);
    const batches: TowerBatch[] = [];
    try {
      for (const count of new Set(chosen.map(({ rows }) => rows.length))) {
        const of = [...chosen.keys()].filter((tile) => chosen[tile].rows.length === count);
        const rows = of.map((tile) => chosen[tile].rows);
        const batch = new TowerBatch([of.length, count, entered.states.dims[2]], device);
        batches.push(batch);
        const late = await this.tower.leave(entered, rows, { of, into: batch.data, names });
        for (const block of this.plan.tapped)
          batch.tapped(block, this.#entering(block, entered, late, { of, rows }), 0);
        for (const [index, tile] of of.entries())
          tiles[tile] = { batch, index, rows: entered.rows, cut: chosen[tile].cut };
      }
      return tiles;
    } catch (error) {
      for (const batch of batches) batch.discard();
      throw error;
    }
  }

  /** The units of a tile that stay, and all its rows that go on. */
  async #choose(entered: Entered, tile: number, units: Int32Array | null): Promise<Chosen> {
    const { backend, weights } = this;
    const { choice, structure } = this.plan;
    const { classToken } = structure;
    const [all] = allRows({ items: 1, rows: entered.rows });
    const first = this.#classRows;
    const patches = units ?? all.subarray(0, entered.rows - first);
    const count = unitsKept(choice, patches.length);
    if (count >= patches.length) return { rows: all, cut: null };
    const hidden = rowsOfTile(entered.states, tile);
    const states = rowsOf(withoutClassToken(hidden, classToken), patches);
    const stayed = await unitsThatStay(
      choice.by,
      { backend, states, ...(weights && { block: { tap: { hidden, weights }, classToken, patches } }) },
      count,
    ).catch(rethrow(asEncoding));
    const those = new Set(stayed);
    const dropped = Int32Array.from(patches.keys()).filter((unit) => !those.has(unit));
    const whole = new Once<Rows>();
    return {
      rows: Int32Array.from([...all.subarray(0, first), ...stayed.map((unit) => first + patches[unit])]),
      cut: {
        stayed,
        nearest: (kept) => nearestKept(backend, states, { kept: kept.map((one) => stayed[one]), dropped }),
        whole: () =>
          whole.get(async () => {
            const late = await this.tower.leave(entered, [all], { of: [tile] });
            return tensor(rowsOfTile(late[HIDDEN_STATES], 0)) as Rows;
          }),
      },
    };
  }

  /** The rows that go on as they enter a block from the cut on. */
  #entering(
    block: number,
    { states }: Entered,
    late: Outputs,
    { of, rows }: { of: readonly number[]; rows: readonly Int32Array[] },
  ): Float32Array {
    if (block > this.plan.choice.at) return late[enteringStates(block)].data as Float32Array;
    return concatenated(of.map((tile, i) => rowsOf(rowsOfTile(states, tile), rows[i]).data));
  }

  get #classRows(): number {
    return Number(this.plan.structure.classToken);
  }

  #feeds(pixels: Tensor): Record<string, Tensor> {
    return { [this.plan.structure.pixels.name]: pixels };
  }

  release(): Promise<void> {
    this.#released ??= this.tower.release();
    return this.#released;
  }
}

interface Chosen {
  readonly rows: Int32Array;
  readonly cut: TileCut | null;
}

/** The rows of one tile; nothing is copied. */
function rowsOfTile({ data, dims: [, rows, width] }: Tensor, tile: number): Matrix {
  const size = rows * width;
  return { data: (data as Float32Array).subarray(tile * size, (tile + 1) * size), rows, cols: width };
}
