/** The tower of an encoder with a last block of its own, cut at a block: which rows go on behind the cut, and what is known of the others. */
import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { mismatch } from '../errors.js';
import type { Backend } from '../index.js';
import { concatenated, type Matrix, rowsOf } from '../methods/matrix.js';
import { Once } from '../once.js';
import type { LastBy } from '../onnx/block-cut.js';
import { BLOCK_OUTPUT, FEATURES, HIDDEN, ORDER, TASK_ROWS } from '../onnx/block-values.js';
import type { OrtModule } from '../onnx/edit.js';
import type { BlockEncoder } from '../onnx/last-block.js';
import { checkAt } from '../onnx/tower-cut.js';
import { tilesAtOnce } from './at-once.js';
import { type EncoderRun, type Sequence, type TileRows, tensorsOf } from './block-family.js';
import {
  type BlockEngine,
  type BlockRun,
  connect,
  type DroppedTokens,
  type HiddenRows,
  type Outputs,
  splitRun,
  wholeRun,
} from './block-run.js';
import { allRows, CutTower, type CutTowerOptions, type Entered } from './cut-tower.js';
import { hostMemory } from './host-memory.js';
import { meanRows } from './mean-rows.js';
import { unitsThatStay } from './row-rules.js';
import type { RunNames } from './session.js';
import { type Staying, spread, stayingRows } from './staying.js';
import { checkRule, type RowRule, type TowerChoice, unitsKept } from './tower-options.js';

/** Rules that read no class row and no weights of the block behind the cut. */
const RULES: readonly RowRule[] = ['distance', 'random'];

/**
 * Checks the option against an encoder.
 * @throws DesapError `ERR_VALUE` for a block or a rule that it does not have; `ERR_GRAPH` where it has no place to cut
 */
export function checkBlockTower({ model, blocks }: BlockEncoder, choice: TowerChoice): void {
  checkRule(choice, RULES, 'of an encoder without class token');
  checkAt(model.name, choice.at, blocks());
}

/** How an open cut tower is used. */
interface CutUse {
  readonly choice: TowerChoice;
  readonly last: LastBy;
  readonly backend: Backend;
  /** Rows of one run of a session, where one tile does not have more. */
  readonly rowsAtOnce: number;
}

/** An encoder in two parts, open, with the rule that says which rows stay. */
export class BlockTower {
  /** Patches of a visual token. */
  readonly #patches = new Once<number>();

  private constructor(
    private readonly tower: CutTower,
    private readonly use: CutUse,
  ) {}

  /** @throws DesapError as `BlockEncoder.cutAt` and `CutTower.open` */
  static async open(
    ort: OrtModule,
    encoder: BlockEncoder,
    { session, trials, ...use }: CutUse & Pick<CutTowerOptions, 'session' | 'trials'>,
  ): Promise<BlockTower> {
    const cut = encoder.cutAt(use.choice.at, use.last);
    return new BlockTower(await CutTower.open(ort, cut, { session, trials, tolerance: encoder.tolerance }), use);
  }

  /** Takes the inputs of the file. */
  get front(): InferenceSession {
    return this.tower.front;
  }

  /**
   * One run, to the features.
   * @param isWhole whether no row is dropped
   * @returns null where the choice drops none
   */
  async run(
    engine: BlockEngine,
    run: EncoderRun,
    { names, isWhole }: { readonly names: RunNames; readonly isWhole: boolean },
  ): Promise<BlockRun | null> {
    const entered = await this.#enter(engine.ort, run, names);
    const { dims } = entered.states;
    const all = run.sequences(dims);
    if (isWhole) return this.#finish(engine, entered, { all, staying: null, names });
    const patches = all.reduce((sum, sequence) => sum + sequence.patches, 0);
    const each = await this.#patches.get(() => this.#patchesOfToken(engine, entered, patches, names));
    const tiles = run.tiles(dims, [patches / each, 1]);
    const chosen: TileChoice[] = [];
    for (const tile of tiles) chosen.push(await this.#choose(entered, tile));
    if (chosen.every(({ isAll }) => isAll)) return null;
    const staying = stayingRows(
      dims,
      all,
      chosen.map(({ rows }) => rows),
    );
    const made = await this.#finish(engine, entered, { all, staying, names });
    const everything = async () => {
      const whole = await this.#finish(engine, entered, { all, staying: null, names });
      whole.free();
      return whole.outputs[FEATURES];
    };
    return { ...made, dropped: { ...tokensOf(chosen, tiles, made.outputs), everything } };
  }

  release(): Promise<void> {
    return this.tower.release();
  }

  /** By some tiles at a time where the front hands out their states alone. */
  async #enter(ort: OrtModule, { feeds, parts }: EncoderRun, names: RunNames): Promise<Entered> {
    const { front } = this.tower;
    const runs = parts && front.outputNames.length === 1 ? parts : [feeds];
    const each: Entered[] = [];
    for (const own of runs) each.push(await this.tower.enter(tensorsOf(ort, own, front.inputNames), names));
    if (each.length === 1) return each[0];
    const { rows, states } = each[0];
    const items = each.reduce((sum, one) => sum + one.items, 0);
    const all = concatenated(each.map((one) => one.states.data as Float32Array));
    const dims = [items, ...states.dims.slice(1)];
    return { states: new ort.Tensor('float32', all, dims), outputs: {}, items, rows };
  }

  /** The connector makes as many tokens of rows of zeros. */
  async #patchesOfToken(engine: BlockEngine, entered: Entered, patches: number, names: RunNames): Promise<number> {
    const { dims, data } = entered.states;
    const zeros = new engine.ort.Tensor('float32', new Float32Array(data.length), dims);
    const features = (await connect(engine, entered.outputs, zeros, names))[TASK_ROWS];
    const tokens = features.data.length / features.dims[features.dims.length - 1];
    if (Number.isInteger(patches / tokens)) return patches / tokens;
    throw mismatch(
      'ERR_GRAPH',
      engine.encoder.model.name,
      `${tokens} visual tokens of ${patches} patches`,
      'as many patches for each',
    );
  }

  async #choose({ states }: Entered, tile: TileRows): Promise<TileChoice> {
    const { choice, backend } = this.use;
    const { firstRow, patches, unit, tokens } = tile;
    const width = states.dims[states.dims.length - 1];
    const data = (states.data as Float32Array).subarray(firstRow * width, (firstRow + patches) * width);
    const units = unit === null ? { data, rows: patches, cols: width } : meansOf(data, width, unit, tokens);
    const every = Int32Array.from({ length: patches }, (_, patch) => firstRow + patch);
    const count = unitsKept(choice, tokens);
    if (count >= tokens) return { isAll: true, units, rows: every, stays: new Uint8Array(tokens).fill(1) };
    const stays = new Uint8Array(tokens);
    for (const token of await unitsThatStay(choice.by, { backend, states: units }, count)) stays[token] = 1;
    const rows = every.filter((_, patch) => stays[unit?.[patch] ?? patch] === 1);
    return { isAll: false, units, rows, stays };
  }

  /** The rest of the tower, the last block and the connector. */
  async #finish(
    engine: BlockEngine,
    entered: Entered,
    { all, staying, names }: { all: readonly Sequence[]; staying: Staying | null; names: RunNames },
  ): Promise<BlockRun> {
    const { device } = engine.head;
    const late = await this.#leave(engine, entered, staying, names);
    const { [HIDDEN]: states, ...tables } = late;
    const memory = hostMemory(states.dims, device);
    memory.data.set(states.data as Float32Array);
    const hidden: HiddenRows = { ...memory, dims: states.dims };
    const rows = staying ? { sequences: staying.sequences, staying } : { sequences: all };
    try {
      const given = { ...entered.outputs, ...tables };
      const { tail } = engine;
      if (tail !== null) return await splitRun({ ...engine, tail }, hidden, given, rows, names);
      const { [TASK_ROWS]: features, ...order } = await connect(
        engine,
        given,
        this.#ends(engine, late, staying),
        names,
      );
      return wholeRun(engine, hidden, { ...given, ...order, [FEATURES]: features }, rows);
    } catch (error) {
      hidden.free();
      throw error;
    }
  }

  /** The sum that ends the last block, as the file computes it, with zeros for rows that were dropped. */
  #ends({ ort }: BlockEngine, { [BLOCK_OUTPUT]: ends }: Outputs, staying: Staying | null): Tensor {
    if (staying === null) return ends;
    const width = ends.dims[ends.dims.length - 1];
    return new ort.Tensor('float32', spread(staying, ends.data as Float32Array, width), staying.dims);
  }

  /**
   * Items of which as many rows stay go on together, as many of them as are fast; their rows follow one another then, in the order of the
   * items.
   */
  async #leave({ ort }: BlockEngine, entered: Entered, staying: Staying | null, names: RunNames): Promise<Outputs> {
    const rows = staying ? rowsOfItems(entered, staying) : allRows(entered);
    const groups: Outputs[] = [];
    const places = new Array<{ group: number; at: number; items: number }>(rows.length);
    const counts = new Set(rows.map(({ length }) => length));
    for (const count of counts) {
      const all = [...rows.keys()].filter((item) => rows[item].length === count);
      const atOnce = entered.states.dims.length === 2 ? all.length : tilesAtOnce(count, this.use.rowsAtOnce);
      for (let first = 0; first < all.length; first += atOnce) {
        const of = all.slice(first, first + atOnce);
        for (const [at, item] of of.entries()) places[item] = { group: groups.length, at, items: of.length };
        const own = of.map((item) => rows[item]);
        groups.push(await this.tower.leave(entered, own, { of, names }));
      }
    }
    if (groups.length === 1) return groups[0];
    const isEven = counts.size === 1;
    const joined = Object.entries(groups[0]).map(([name, { dims }]) => {
      const each = places.map(({ group, at, items }) => {
        const data = groups[group][name].data as Float32Array;
        return data.subarray((at * data.length) / items, ((at + 1) * data.length) / items);
      });
      const width = dims[dims.length - 1];
      const all = concatenated(each);
      const lead = isEven ? [rows.length, ...dims.slice(1, -1)] : [...dims.slice(2).map(() => 1), all.length / width];
      return [name, new ort.Tensor('float32', all, [...lead, width])];
    });
    return Object.fromEntries(joined);
  }
}

/** What of a tile goes on. */
interface TileChoice {
  readonly isAll: boolean;
  /** The states of its units at the cut. */
  readonly units: Matrix;
  /** Its rows that stay, among all rows of the run. */
  readonly rows: Int32Array;
  /** 1 for each unit that stays. */
  readonly stays: Uint8Array;
}

/** The mean of the rows of each unit. */
function meansOf(data: Float32Array, width: number, unit: Int32Array, tokens: number): Matrix {
  const counts = new Int32Array(tokens);
  for (const token of unit) counts[token]++;
  return { data: meanRows(data, width, { assignment: unit, counts }), rows: tokens, cols: width };
}

/** Of each item, an image or a tile of [B, N, D], its rows that stay. */
function rowsOfItems({ items, rows }: Entered, staying: Staying): Int32Array[] {
  const own = Array.from({ length: items }, () => [] as number[]);
  for (const some of staying.rows) for (const row of some) own[Math.floor(row / rows)].push(row % rows);
  return own.map((some) => Int32Array.from(some));
}

/** What is known of all tokens, in the order of the features. */
function tokensOf(
  chosen: readonly TileChoice[],
  tiles: readonly TileRows[],
  outputs: Outputs,
): Omit<DroppedTokens, 'everything'> {
  const [{ units }] = chosen;
  const count = tiles.reduce((sum, { tokens }) => sum + tokens, 0);
  const stays = new Uint8Array(count);
  const states = { data: new Float32Array(count * units.cols), rows: count, cols: units.cols };
  for (const [t, { firstToken }] of tiles.entries()) {
    stays.set(chosen[t].stays, firstToken);
    states.data.set(chosen[t].units.data, firstToken * units.cols);
  }
  if (!(ORDER in outputs)) return { stays, states: states.data };
  const order = Int32Array.from(outputs[ORDER].data as BigInt64Array, Number);
  return { stays: Uint8Array.from(order, (token) => stays[token]), states: rowsOf(states, order).data };
}
