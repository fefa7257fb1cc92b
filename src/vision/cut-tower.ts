import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import { type AnyTensor, type CrossingKind, crossed, crossingKind } from '../onnx/crossing.js';
import { type OrtModule, openGraph } from '../onnx/edit.js';
import { relativeError } from '../onnx/head/compare.js';
import { STATES, type StateExtents, type TowerCut } from '../onnx/tower-cut.js';
import { allOrNone, type RunNames, runSession } from './session.js';

export type Outputs = Readonly<Record<string, Tensor>>;

/** What the front of a tower made of some items: images or tiles. */
export interface Entered extends StateExtents {
  /** Hidden states at the cut, float32: [B, N, D], or [N, D]. */
  readonly states: Tensor;
  /** What the front hands out by name: crossing values, and the cut's `early` outputs. */
  readonly outputs: Outputs;
}

/** How a cut tower is opened. */
export interface CutTowerOptions {
  readonly session?: InferenceSession.SessionOptions;
  /** What a session of the whole tower takes: images of each size that tells counts of rows from other extents. One is enough. */
  readonly trials: (whole: InferenceSession) => Promise<readonly Record<string, Tensor>[]>;
  /** What the file's arithmetic rounds, relative to the largest magnitude. */
  readonly tolerance: number;
}

const FRONT = { argument: 'image', graph: 'the front of the vision tower' };
const REST = { argument: 'image', graph: 'the rest of the vision tower' };

/** A vision tower over onnxruntime that runs in two parts; between them rows are dropped. */
export class CutTower {
  private constructor(
    readonly cut: TowerCut,
    private readonly ort: OrtModule,
    readonly front: InferenceSession,
    private readonly rest: InferenceSession,
    private readonly kinds: readonly CrossingKind[],
  ) {}

  /**
   * Opens both parts, and checks on trial images that they compute what the whole tower computes, and that no count of rows stayed
   * in the rest: with every row twice, what a softmax over keys makes of each is the same, so that all has to come out twice.
   * The whole tower is closed before the parts are opened: memory holds the weights once.
   *
   * @throws DesapError `ERR_HEAD_MISMATCH` where numbers differ; `ERR_GRAPH` where ONNX Runtime does not run a part
   */
  static async open(ort: OrtModule, cut: TowerCut, { session, trials, tolerance }: CutTowerOptions): Promise<CutTower> {
    const samples = await wholeSamples(ort, cut, { session, trials, tolerance });
    return allOrNone(async (opened) => {
      const close = (one: InferenceSession) => one.release();
      const front = opened(await openGraph(ort, cut.front, session), close);
      const entered: Entered[] = [];
      for (const { feeds } of samples) entered.push(await enter(front, feeds, FRONT));
      const kinds = cut.crossing.map((name) =>
        crossingKind(entered.map(({ outputs, items, rows }) => ({ tensor: any(outputs[name]), items, rows }))),
      );
      const rest = opened(await openGraph(ort, cut.rest(entered[0]), extended(session)), close);
      const tower = new CutTower(cut, ort, front, rest, kinds);
      for (const [i, one] of entered.entries()) await tower.#confirm(one, samples[i].outputs, tolerance);
      return tower;
    });
  }

  /**
   * Runs the tower in front of the cut.
   * @param feeds what the whole tower takes
   */
  enter(feeds: Record<string, Tensor>, names: RunNames = FRONT): Promise<Entered> {
    return enter(this.front, feeds, names);
  }

  /**
   * Runs the tower behind the cut.
   *
   * @param rows of each item, as many of each, ascending
   * @param how `of`: the items that they are of, default all; `into`: memory for the hidden states at the end
   * @returns the cut's `late` outputs, [B, S, D], or [S, D] where the states are [N, D]
   */
  async leave(
    entered: Entered,
    rows: readonly Int32Array[],
    { of, into, names = REST }: { of?: readonly number[]; into?: Float32Array; names?: RunNames } = {},
  ): Promise<Outputs> {
    const { cut, ort, kinds } = this;
    const { items, outputs } = entered;
    const chosen = { of: of ?? rows.map((_, item) => item), rows };
    const tensor = ({ type, data, dims }: AnyTensor) => new ort.Tensor(type as 'float32', data as Float32Array, dims);
    const isAll =
      chosen.of.length === items &&
      rows.every((one) => one.length === entered.rows && one.every((row, i) => row === i));
    const crossing = cut.crossing.map((name, i) => {
      const seen = { tensor: any(outputs[name]), items, rows: entered.rows };
      return [name, isAll ? outputs[name] : tensor(crossed(cut.name, kinds[i], seen, chosen))];
    });
    const states = isAll ? entered.states : tensor(someStates(entered, chosen.of, rows));
    const feeds = { [STATES]: states, ...Object.fromEntries(crossing) };
    const [hidden, ...others] = cut.late;
    if (into === undefined) return runSession(this.rest, names, feeds);
    // ONNX Runtime writes into a given output only when its own Tensor class holds it.
    const place = new ort.Tensor('float32', into, states.dims);
    const fetches = { [hidden]: place, ...Object.fromEntries(others.map((name) => [name, null])) };
    return { ...(await runSession(this.rest, names, feeds, fetches)), [hidden]: place };
  }

  /**
   * Runs the whole tower on some of the rows.
   * @param choose of the states at the cut: the rows of each item that stay, ascending, as many of each
   */
  async run(
    feeds: Record<string, Tensor>,
    choose: (entered: Entered) => Promise<readonly Int32Array[]> | readonly Int32Array[],
  ): Promise<{ readonly entered: Entered; readonly rows: readonly Int32Array[]; readonly late: Outputs }> {
    const entered = await this.enter(feeds);
    const rows = await choose(entered);
    return { entered, rows, late: await this.leave(entered, rows) };
  }

  async release(): Promise<void> {
    await Promise.all([this.front.release(), this.rest.release()]);
  }

  async #confirm(entered: Entered, wanted: Outputs, tolerance: number): Promise<void> {
    const { cut } = this;
    const compare = (got: Outputs, names: readonly string[], what: string, copies = 1) => {
      for (const name of names) {
        const { dims } = wanted[name];
        const values = numbersOf(got[name]);
        const others = repeated(numbersOf(wanted[name]), dims[dims.length - 1] ?? 1, copies);
        // Of zeros alone there is no largest to relate to.
        const isSame = values.length === others.length && values.every((value, i) => value === others[i]);
        const error = isSame ? 0 : relativeError(values, others);
        if (!(error <= tolerance))
          throw new DesapError(
            'ERR_HEAD_MISMATCH',
            `${cut.name}: got ${what} that differs from the whole tower's '${name}' by ${error.toExponential(1)} relative to the largest, in front of block ${cut.at}, wanted at most ${tolerance}`,
          );
      }
    };
    compare(entered.outputs, cut.early, 'a front of the tower');
    const all = allRows(entered);
    compare(await this.#tried(entered, all), cut.late, 'a tower in two parts');
    const twice = all.map((rows) => repeated(rows, 1, 2));
    compare(await this.#tried(entered, twice), cut.late, 'a tower with every row twice', 2);
  }

  #tried(entered: Entered, rows: readonly Int32Array[]): Promise<Outputs> {
    return this.leave(entered, rows).catch((cause: Error) => {
      throw new DesapError(
        'ERR_GRAPH',
        `${this.cut.name}: onnxruntime does not run the tower behind block ${this.cut.at} on ${rows[0].length} rows: ${cause.message}`,
        { cause },
      );
    });
  }
}

/**
 * Without the optimisations of the last level. They are for convolutions, of which the rest has none; and they have made ONNX Runtime crash
 * on parts in float16, whose shapes are not recorded.
 */
function extended({ graphOptimizationLevel: level = 'all', ...session }: InferenceSession.SessionOptions = {}) {
  return { ...session, graphOptimizationLevel: level === 'all' ? ('extended' as const) : level };
}

/** All rows of each item. */
export function allRows({ items, rows }: StateExtents): Int32Array[] {
  return Array.from({ length: items }, () => Int32Array.from({ length: rows }, (_, row) => row));
}

/** What the whole tower makes of trial images. */
async function wholeSamples(ort: OrtModule, { whole, late, early }: TowerCut, { session, trials }: CutTowerOptions) {
  const opened = await openGraph(ort, whole, session);
  try {
    const samples: { feeds: Record<string, Tensor>; outputs: Outputs }[] = [];
    const fetches = Object.fromEntries([...late, ...early].map((name) => [name, null]));
    const about = { argument: 'a trial image', graph: 'the vision tower' };
    for (const [t, feeds] of (await trials(opened)).entries()) {
      // It has to run the first of them; encoders that take no videos fail on them.
      const run = runSession(opened, { ...about, isTentative: t > 0 }, feeds, fetches);
      const outputs = await (t === 0 ? run : run.catch(() => null));
      if (outputs !== null) samples.push({ feeds, outputs });
    }
    return samples;
  } finally {
    await opened.release();
  }
}

async function enter(front: InferenceSession, feeds: Record<string, Tensor>, names: RunNames): Promise<Entered> {
  // A graph may have no use for an input of the file.
  const used = Object.fromEntries(Object.entries(feeds).filter(([name]) => front.inputNames.includes(name)));
  const { [STATES]: states, ...outputs } = await runSession(front, names, used);
  const { dims } = states;
  return { states, outputs, items: dims.length === 2 ? 1 : dims[0], rows: dims[dims.length - 2] };
}

function someStates({ states, rows: all }: Entered, of: readonly number[], rows: readonly Int32Array[]): AnyTensor {
  const { dims } = states;
  const width = dims[dims.length - 1];
  const data = new Float32Array(rows.reduce((sum, own) => sum + own.length, 0) * width);
  let at = 0;
  for (const [i, own] of rows.entries())
    for (const row of own) {
      const start = (of[i] * all + row) * width;
      data.set(numbers(states).subarray(start, start + width), at);
      at += width;
    }
  const count = rows[0].length;
  return { type: 'float32', data, dims: dims.length === 2 ? [count, width] : [rows.length, count, width] };
}

/** Every row some times, its copies one behind the other. */
function repeated<T extends Float32Array | Int32Array>(rows: T, width: number, copies: number): T {
  const own = new (rows.constructor as new (length: number) => T)(copies * rows.length);
  for (let from = 0; from < rows.length; from += width)
    for (let copy = 0; copy < copies; copy++) own.set(rows.subarray(from, from + width), copies * from + copy * width);
  return own;
}

/** The numbers of an output of any type. */
function numbersOf({ type, data }: Tensor): Float32Array {
  return type === 'float32' ? (data as Float32Array) : Float32Array.from(data as ArrayLike<number>, Number);
}

const numbers = ({ data }: Tensor) => data as Float32Array;
const any = ({ type, data, dims }: Tensor): AnyTensor => ({ type, data: data as ArrayLike<unknown>, dims });
