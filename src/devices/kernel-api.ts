import { types } from 'node:util';
import { type Abortable, abortable, signalOf } from '../abort.js';
import { DISPOSE } from '../dispose-symbols.js';
import { invalid, mismatch } from '../errors.js';
import type { LinearWeights } from '../head.js';
import {
  ALIGNMENTS,
  type Alignment,
  type AlignmentMatrices,
  type KernelArguments,
  type KernelName,
  type KernelResults,
} from '../kernels/kernels.js';
import { type OptionNames, options } from '../options.js';
import { type Rotary, rotaryTables } from '../rotary-tables.js';
import {
  boolean,
  type FloatMatrix,
  finite,
  float32,
  int32Array,
  integer,
  matrix,
  object,
  oneOf,
  plain,
  type Tensor,
  type TensorLike,
  vector,
} from '../tensor.js';
import { type Units, unitsOf } from '../units.js';
import { after, type Driver, type Precision } from './driver.js';
import { queued } from './native-error.js';
import { type DeviceOptions, openDevice } from './open.js';

/**
 * Each kernel alone, on caller-made tensors. Matrices are row-major float32 or float16 (see {@link TensorLike}); a
 * leading extent of 1 is ignored. Symbols: N rows of an image (its patches and, first, a class token where there is one), P patches,
 * D width, H heads, E shared width, T text tokens, K kept patches.
 *
 * Every kernel throws (or rejects with) a `DesapError`: `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, `ERR_DETACHED`,
 * `ERR_NOT_FINITE` where the kernel says so, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`; on a GPU also `ERR_VALUE` for what it does
 * not take (heads wider than 128; rows of more than 16384 elements in layerNorm, unitRows and readOut), `ERR_DEVICE_FAILED`
 * and `ERR_DEVICE_LOST`.
 */
export interface Kernels {
  /** Layer norm over rows, biased variance. x: [N, D]; weight, bias: [D]; gives [N, D]. Fails on NaN and Inf. */
  layerNorm(args: { x: TensorLike; weight: Vector; bias: Vector; epsilon?: number }): Tensor;
  /** Norm without a mean: x / sqrt(mean(x^2) + epsilon) * weight over rows. x: [N, D]; weight: [D]; gives [N, D]. Fails on NaN and Inf. */
  rmsNorm(args: { x: TensorLike; weight: Vector; epsilon?: number }): Tensor;
  /** x W^T + b. x: [N, in]; weight: [out, in]; bias: [out]; gives [N, out]. */
  linear(args: { x: TensorLike; weight: TensorLike; bias?: Vector | null }): Tensor;
  /**
   * Decoupled attention, eq. 2: softmax(Q K^T / sqrt(D / H)) V per head, heads concatenated, no output projection.
   * q, k, v: [N, D]; gives [N, D]. For the paper's qq form pass the same tensor as q and k. No N x N buffer.
   */
  attention(args: { q: TensorLike; k: TensorLike; v: TensorLike; heads: number }): Tensor;
  /**
   * Visual saliency A_s, eq. 4. q, k: [N, D]. With a class token: its attention to the patches, [N - 1]. Without: the mean
   * attention that each token receives, [N]. With `rotary`, tables [N, D / H] of which D / H is even, q and k are turned first:
   * rot(x) = x cos + turn(x) sin for the columns of each head, turn([a, b]) = [-b, a] by halves.
   */
  saliency(args: {
    q: TensorLike;
    k: TensorLike;
    heads: number;
    classToken?: boolean;
    rotary?: { cos: TensorLike; sin: TensorLike } | null;
  }): Float32Array;
  /**
   * An encoder's own attention and the saliency of its weights, in one: softmax(rot(Q) rot(K)^T / sqrt(D / H)) V per head, heads
   * concatenated, no output projection, and the mean of that softmax over heads and rows, which is `saliency` without a class token.
   * q, k, v: [N, D]; `rotary` as for `saliency`; gives context [N, D] and saliency [N]. No N x N buffer.
   */
  selfAttention(args: {
    q: TensorLike;
    k: TensorLike;
    v: TensorLike;
    heads: number;
    rotary?: { cos: TensorLike; sin: TensorLike } | null;
  }): { context: Tensor; saliency: Float32Array };
  /**
   * The mean score of each visual token over the patches that go into it. scores: [N]; unit: [N] the token of each patch, each from 0
   * on at least once; gives a mean for each token.
   */
  pool(args: { scores: Vector; unit: Units }): Float32Array;
  /** Rows divided by their L2 length (at least 1e-12). x: [N, E]; gives [N, E]. Fails on NaN and Inf. */
  unitRows(args: { x: TensorLike }): Tensor;
  /**
   * From the attention's context to A_d: output projection, post norm, visual projection, unit rows.
   * context: [N, D]; out.weight: [D, D]; visualProjection: [E, D]; gives attention [N, D] and embeddings [N, E].
   */
  readOut(args: {
    context: TensorLike;
    out: { weight: TensorLike; bias: Vector };
    postNorm: { weight: Vector; bias: Vector };
    visualProjection: TensorLike;
    epsilon?: number;
  }): { attention: Tensor; embeddings: Tensor };
  /**
   * SigLIP's pooling head on rows and on their whole. h = layer norm of `attention`. Each row by itself through the value path, which is
   * the head on a sequence of one row, gives `embeddings` [N, D]; the probe's attention over all rows gives `saliency` [N], and
   * the head's output `global` [D]. Behind the attention follow `out` and x + fc2 gelu(fc1 norm(x)), with the GELU of tanh; embeddings
   * and global are unit rows.
   * attention: [N, D]; query: [D], the probe behind the head's query projection; key, value, out: weight [D, D]; fc1: weight
   * [F, D]; fc2: weight [D, F]; epsilon of both norms, default 1e-6.
   */
  siglipReadOut(args: {
    attention: TensorLike;
    postNorm: { weight: Vector; bias: Vector };
    query: Vector;
    key: { weight: TensorLike; bias: Vector };
    value: { weight: TensorLike; bias: Vector };
    out: { weight: TensorLike; bias: Vector };
    norm: { weight: Vector; bias: Vector };
    fc1: { weight: TensorLike; bias: Vector };
    fc2: { weight: TensorLike; bias: Vector };
    heads: number;
    epsilon?: number;
  }): { embeddings: Tensor; global: Float32Array; saliency: Float32Array };
  /**
   * Fine-grained cross-modal alignment, eq. 3. visual: [P, E] and text: [T, E], both of unit rows; endOfText: the end-of-text
   * row [E] (default: the last row of text); global: the class token's row of A_d [E]. Gives A_t [P] and, with
   * `matrices`, m, M_V and M_T as [P, T].
   */
  align(args: {
    visual: TensorLike;
    text: TensorLike;
    global: Vector;
    endOfText?: Vector;
    alignment?: Alignment;
    lambda?: number;
    matrices?: boolean;
  }): {
    task: Float32Array;
    matrices: MatrixTensors | null;
  };
  /**
   * Indices of the k largest scores, ascending; equal scores: the lower index. Entries with a set `excluded` byte do not
   * take part. Fails on NaN.
   */
  topK(args: { scores: Vector; k: number; excluded?: Uint8Array | null }): Int32Array;
  /**
   * The two-stage selection: the `taskKeep` largest task scores, then the largest saliencies of the other entries, `keep` in all; ties
   * as in topK. task, saliency: [P]; a map from which nothing is taken may be left out. Gives indices [K], ascending, and source [K],
   * which is 0 where the task scores chose and 1 where the saliency did. Fails on NaN.
   */
  select(args: { task?: Vector | null; saliency?: Vector | null; keep: number; taskKeep: number }): {
    indices: Int32Array;
    source: Uint8Array;
  };
  /**
   * Nearest-centre merge. features: [P, D]; kept: [K] ascending, distinct. Every other row joins the kept row of highest
   * cosine similarity (equal: the first). Gives tokens [K, D] (plain means), assignment [P] (position in kept) and
   * counts [K]. Fails on NaN and Inf.
   */
  merge(args: { features: TensorLike; kept: Int32Array }): {
    tokens: Tensor;
    assignment: Int32Array;
    counts: Int32Array;
  };
  /**
   * Farthest points by cosine distance, 1 - cos: `count` rows of x [P, F], in the order of choice. The next row is always the one whose
   * smallest distance to all chosen so far, `seeds` included, is largest (equal: the lower index). Without seeds the first is the row
   * whose nearest other row is farthest, as DivPrune has it. Seeds are distinct rows, and are not chosen; seeds and count are at most P
   * together. Computes in float32 whatever the device's precision. Fails on NaN and Inf.
   */
  farthestPoints(args: { x: TensorLike; seeds?: Int32Array | null; count: number }): Int32Array;
  /**
   * Greedy MAP of a determinantal point process, as CDPruner has it: `count` rows of x [P, F], in the order of choice, that are
   * relevant and different. With the relevance g [P] and `blend` w from 0 to 1 (default 1): L_ij = (1 - w + w g_i g_j) cos_ij, d_i = L_ii;
   * the next row j is that of the largest d, e = (L_j - sum_s c_s[j] c_s) / sqrt(d_j), c_s = e, d_i -= e_i^2. Where the largest d is at most
   * 1e-5 of the first one, the rows of the largest g^2 follow. Equal values: the lower index. Computes in float32 whatever the device's
   * precision. Fails on NaN and Inf.
   */
  dpp(args: { x: TensorLike; relevance: Vector; count: number; blend?: number }): Int32Array;
}

/** m, M_V and M_T of eq. 3, [P, T] each; the last two are null for the alignment `mean`. */
export interface MatrixTensors {
  readonly similarity: Tensor;
  readonly visualAlignment: Tensor | null;
  readonly textAlignment: Tensor | null;
}

/** The matrices of eq. 3 as tensors. */
export function matrixTensors(matrices: AlignmentMatrices, patches: number, textTokens: number): MatrixTensors {
  const { similarity, visualAlignment, textAlignment } = matrices;
  const dims = [patches, textTokens];
  return {
    similarity: float32(similarity, dims),
    visualAlignment: visualAlignment && float32(visualAlignment, dims),
    textAlignment: textAlignment && float32(textAlignment, dims),
  };
}

/** A vector: a Float32Array, or a float32 tensor of that many elements. */
export type Vector = Float32Array | TensorLike;

/** The same kernels, asynchronous: they do not block the event loop (the `reference` device computes on it), and a signal may end them. */
export type AsyncKernels = {
  [K in keyof Kernels]: (args: Parameters<Kernels[K]>[0], call?: Abortable) => Promise<ReturnType<Kernels[K]>>;
};

/**
 * A device that runs kernels. Called directly they are asynchronous: a caller's own memory is copied first, memory of a
 * `HostBuffer` is read in place. Through `sync` they read any memory in place and return at once.
 */
export interface Backend extends AsyncKernels, Disposable {
  /** `cpu`, `cuda:0`, `reference`. */
  readonly device: string;
  /** In words: instruction set and threads, or the GPU. */
  readonly deviceDescription: string;
  /** Arithmetic of the matrix products: `fp32`, or the coarser one that was accepted and is used. The reference says `fp32`. */
  readonly precision: Precision;
  /** Why `device: 'auto'` did not take a faster device; null where there was none to prefer. */
  readonly fallback: string | null;
  readonly sync: Kernels;
  /** Frees threads and memory; work in flight ends first. */
  dispose(): void;
}

type Checks = {
  [K in KernelName]: {
    names: OptionNames<Parameters<Kernels[K]>[0]>;
    check(args: Parameters<Kernels[K]>[0]): KernelArguments[K];
    wrap(result: KernelResults[K], args: KernelArguments[K]): ReturnType<Kernels[K]>;
  };
};

const single = (argument: string, x: TensorLike, want: { rows?: number; cols?: number } = {}): FloatMatrix => {
  const checked = matrix(argument, x, want);
  if (checked.half) throw mismatch('ERR_DTYPE', argument, 'float16', 'float32 weights');
  return checked;
};

const heads = (value: number, width: number): number => {
  integer('heads', value, 1, width);
  if (width % value !== 0) throw invalid('ERR_VALUE', 'heads', value, `a divisor of the width ${width}`);
  return value;
};

/** A layer's weights, checked for their names. */
const layer = <W>(name: string, given: { weight: W; bias: Vector }) =>
  options<typeof given>(name, object(name, given, '{ weight, bias }'), { weight: true, bias: true });

const linearLayer = (
  name: string,
  given: { weight: TensorLike; bias: Vector },
  { rows, cols }: { rows?: number; cols: number },
): LinearWeights => {
  const { weight, bias } = layer(name, given);
  const matrix = single(`${name}.weight`, weight, { rows, cols });
  return { weight: matrix.data as Float32Array, bias: vector(`${name}.bias`, bias, matrix.rows) };
};

const norm = (name: string, given: { weight: Vector; bias: Vector }, width: number): LinearWeights => {
  const { weight, bias } = layer(name, given);
  return { weight: vector(`${name}.weight`, weight, width), bias: vector(`${name}.bias`, bias, width) };
};

const epsilonOf = (value = 1e-5): number => finite('epsilon', value, Number.MIN_VALUE, 1);

const tables = (given: { cos: TensorLike; sin: TensorLike }, rows: number, cols: number): Rotary =>
  rotaryTables(
    options('rotary', object('rotary', given, '{ cos, sin }'), { cos: true, sin: true }),
    { cos: 'rotary.cos', sin: 'rotary.sin' },
    { rows, cols },
  );

const KERNELS: Checks = {
  layerNorm: {
    names: { x: true, weight: true, bias: true, epsilon: true },
    check: (args) => {
      const x = matrix('x', args.x);
      const [weight, bias] = [vector('weight', args.weight, x.cols), vector('bias', args.bias, x.cols)];
      return { x, weight, bias, epsilon: epsilonOf(args.epsilon) };
    },
    wrap: (y, { x }) => float32(y, [x.rows, x.cols]),
  },
  rmsNorm: {
    names: { x: true, weight: true, epsilon: true },
    check: (args) => {
      const x = matrix('x', args.x);
      return { x, weight: vector('weight', args.weight, x.cols), epsilon: epsilonOf(args.epsilon) };
    },
    wrap: (y, { x }) => float32(y, [x.rows, x.cols]),
  },
  linear: {
    names: { x: true, weight: true, bias: true },
    check: (args) => {
      const x = matrix('x', args.x);
      const weight = single('weight', args.weight, { cols: x.cols });
      return { x, weight, bias: args.bias ? vector('bias', args.bias, weight.rows) : null };
    },
    wrap: (y, { x, weight }) => float32(y, [x.rows, weight.rows]),
  },
  attention: {
    names: { q: true, k: true, v: true, heads: true },
    check: (args) => {
      const q = matrix('q', args.q);
      const same = { rows: q.rows, cols: q.cols };
      return { q, k: matrix('k', args.k, same), v: matrix('v', args.v, same), heads: heads(args.heads, q.cols) };
    },
    wrap: (y, { q }) => float32(y, [q.rows, q.cols]),
  },
  saliency: {
    names: { q: true, k: true, heads: true, classToken: true, rotary: true },
    check: (args) => {
      const q = matrix('q', args.q);
      const classToken = boolean('classToken', args.classToken ?? true);
      if (classToken && q.rows < 2)
        throw invalid('ERR_SHAPE', 'q.dims', [q.rows, q.cols], 'the class token and at least one patch');
      const k = matrix('k', args.k, { rows: q.rows, cols: q.cols });
      const count = heads(args.heads, q.cols);
      const rotary = args.rotary ? tables(args.rotary, q.rows, q.cols / count) : null;
      return { q, k, heads: count, classToken, rotary };
    },
    wrap: (scores) => scores,
  },
  selfAttention: {
    names: { q: true, k: true, v: true, heads: true, rotary: true },
    check: (args) => {
      const q = matrix('q', args.q);
      const same = { rows: q.rows, cols: q.cols };
      const [k, v] = [matrix('k', args.k, same), matrix('v', args.v, same)];
      const count = heads(args.heads, q.cols);
      return { q, k, v, heads: count, rotary: args.rotary ? tables(args.rotary, q.rows, q.cols / count) : null };
    },
    wrap: ({ context, saliency }, { q }) => ({ context: float32(context, [q.rows, q.cols]), saliency }),
  },
  pool: {
    names: { scores: true, unit: true },
    check: (args) => {
      const scores = vector('scores', args.scores);
      return { scores, ...unitsOf('unit', args.unit, scores.length) };
    },
    wrap: (means) => means,
  },
  unitRows: {
    names: { x: true },
    check: (args) => ({ x: matrix('x', args.x) }),
    wrap: (y, { x }) => float32(y, [x.rows, x.cols]),
  },
  readOut: {
    names: { context: true, out: true, postNorm: true, visualProjection: true, epsilon: true },
    check: (args) => {
      const context = matrix('context', args.context);
      const width = context.cols;
      return {
        context,
        out: linearLayer('out', args.out, { rows: width, cols: width }),
        postNorm: norm('postNorm', args.postNorm, width),
        epsilon: epsilonOf(args.epsilon),
        visualProjection: single('visualProjection', args.visualProjection, { cols: width }),
      };
    },
    wrap: ({ attention, embeddings }, { context, visualProjection }) => ({
      attention: float32(attention, [context.rows, context.cols]),
      embeddings: float32(embeddings, [context.rows, visualProjection.rows]),
    }),
  },
  siglipReadOut: {
    names: {
      attention: true,
      postNorm: true,
      query: true,
      key: true,
      value: true,
      out: true,
      norm: true,
      fc1: true,
      fc2: true,
      heads: true,
      epsilon: true,
    },
    check: (args) => {
      const attention = matrix('attention', args.attention);
      const width = attention.cols;
      const square = { rows: width, cols: width };
      const fc1 = linearLayer('fc1', args.fc1, { cols: width });
      return {
        attention,
        postNorm: norm('postNorm', args.postNorm, width),
        query: vector('query', args.query, width),
        key: linearLayer('key', args.key, square),
        value: linearLayer('value', args.value, square),
        out: linearLayer('out', args.out, square),
        norm: norm('norm', args.norm, width),
        fc1,
        fc2: linearLayer('fc2', args.fc2, { rows: width, cols: fc1.bias.length }),
        heads: heads(args.heads, width),
        epsilon: epsilonOf(args.epsilon ?? 1e-6),
      };
    },
    wrap: ({ embeddings, global, saliency }, { attention }) => ({
      embeddings: float32(embeddings, [attention.rows, attention.cols]),
      global,
      saliency,
    }),
  },
  align: {
    names: { visual: true, text: true, global: true, endOfText: true, alignment: true, lambda: true, matrices: true },
    check: (args) => {
      const visual = matrix('visual', args.visual);
      const text = matrix('text', args.text, { cols: visual.cols });
      return {
        visual,
        text,
        endOfText: args.endOfText ? vector('endOfText', args.endOfText, visual.cols) : lastRow(text),
        global: vector('global', args.global, visual.cols),
        alignment: oneOf('alignment', args.alignment ?? 'fcma', ALIGNMENTS),
        lambda: finite('lambda', args.lambda ?? 0.1, -1e6, 1e6),
        matrices: boolean('matrices', args.matrices ?? false),
      };
    },
    wrap: ({ task, matrices }, { visual, text }) => ({
      task,
      matrices: matrices && matrixTensors(matrices, visual.rows, text.rows),
    }),
  },
  topK: {
    names: { scores: true, k: true, excluded: true },
    check: (args) => {
      const scores = vector('scores', args.scores);
      const excluded = args.excluded ? excludedOf(args.excluded, scores.length) : null;
      const candidates =
        excluded === null ? scores.length : excluded.reduce((count, byte) => count + (byte ? 0 : 1), 0);
      return { scores, k: integer('k', args.k, 0, candidates), excluded };
    },
    wrap: (indices) => indices,
  },
  select: {
    names: { task: true, saliency: true, keep: true, taskKeep: true },
    check: (args) => {
      const task = args.task ? vector('task', args.task) : null;
      const saliency = args.saliency ? vector('saliency', args.saliency, task?.length) : null;
      const size = (task ?? saliency)?.length;
      if (size === undefined)
        throw mismatch('ERR_VALUE', 'saliency', 'neither task nor saliency', 'at least one of them');
      const keep = integer('keep', args.keep, 0, size);
      return {
        task,
        saliency,
        keep,
        taskKeep: integer('taskKeep', args.taskKeep, saliency ? 0 : keep, task ? keep : 0),
      };
    },
    wrap: (selected) => selected,
  },
  merge: {
    names: { features: true, kept: true },
    check: (args) => {
      const features = matrix('features', args.features);
      const kept = int32Array('kept', args.kept);
      if (kept.length < 1) throw mismatch('ERR_SHAPE', 'kept', 'no index', 'at least one');
      kept.forEach((index, i) => {
        integer(`kept[${i}]`, index, i === 0 ? 0 : kept[i - 1] + 1, features.rows - 1);
      });
      return { features, kept };
    },
    wrap: ({ tokens, assignment, counts }, { features, kept }) => ({
      tokens: float32(tokens, [kept.length, features.cols]),
      assignment,
      counts,
    }),
  },
  farthestPoints: {
    names: { x: true, seeds: true, count: true },
    check: (args) => {
      const x = matrix('x', args.x);
      const seeds = distinct('seeds', args.seeds ?? new Int32Array(), x.rows);
      return { x, seeds, count: integer('count', args.count, 0, x.rows - seeds.length) };
    },
    wrap: (picked) => picked,
  },
  dpp: {
    names: { x: true, relevance: true, count: true, blend: true },
    check: (args) => {
      const x = matrix('x', args.x);
      return {
        x,
        relevance: vector('relevance', args.relevance, x.rows),
        blend: finite('blend', args.blend ?? 1, 0, 1),
        count: integer('count', args.count, 0, x.rows),
      };
    },
    wrap: (picked) => picked,
  },
};

function excludedOf(given: Uint8Array, length: number): Uint8Array {
  const wanted = `a Uint8Array of ${length} elements`;
  if (!types.isUint8Array(given)) throw invalid('ERR_DTYPE', 'excluded', given, wanted);
  const excluded = plain(given);
  if (excluded.length === length) return excluded;
  throw mismatch('ERR_SHAPE', 'excluded', `${excluded.length} elements`, wanted);
}

/** Rows, each of them once. */
function distinct(argument: string, given: Int32Array, rows: number): Int32Array {
  const indices = int32Array(argument, given);
  const seen = new Set<number>();
  indices.forEach((index, i) => {
    integer(`${argument}[${i}]`, index, 0, rows - 1);
    if (seen.has(index)) throw mismatch('ERR_VALUE', `${argument}[${i}]`, `${index} again`, 'distinct rows');
    seen.add(index);
  });
  return indices;
}

function lastRow(text: FloatMatrix): Float32Array {
  if (text.half) throw mismatch('ERR_DTYPE', 'text', 'float16 without endOfText', 'float32, or endOfText given');
  return (text.data as Float32Array).slice((text.rows - 1) * text.cols);
}

/** Former names of arguments. */
const RENAMED = { query: 'endOfText' };

const drivers = new WeakMap<object, Driver>();

/** The driver under a backend; undefined for anything else. */
export function driverOf(backend: object): Driver | undefined {
  return drivers.get(backend);
}

/** A backend over a driver. */
export function createBackend(driver: Driver, fallback: string | null): Backend {
  const names = Object.keys(KERNELS) as KernelName[];
  const call = (name: KernelName, args: never, sync: boolean) => {
    const { names, check, wrap } = KERNELS[name] as {
      names: OptionNames<object>;
      check(args: object): never;
      wrap(result: unknown, args: unknown): unknown;
    };
    const checked = check(
      options<object>('args', object('args', args as object, `the arguments of ${name}`), names, RENAMED),
    );
    const result = queued<unknown>(driver, () => driver.run(name, checked, sync));
    return after(result, (value) => wrap(value, checked));
  };
  const entries = (sync: boolean) =>
    Object.fromEntries(
      names.map((name) => [
        name,
        sync
          ? (args: never) => call(name, args, true)
          : async (args: never, given?: Abortable) =>
              abortable(signalOf('call', given), async () => call(name, args, false)),
      ]),
    );
  const dispose = () => driver.dispose();
  const backend: Backend = {
    ...(entries(false) as unknown as AsyncKernels),
    sync: entries(true) as unknown as Kernels,
    device: driver.device,
    deviceDescription: driver.deviceDescription,
    precision: driver.precision,
    fallback,
    dispose,
    [DISPOSE]: dispose,
  };
  drivers.set(backend, driver);
  return backend;
}

/**
 * Opens a device for single kernels. A {@link Pruner} opens its own.
 * @throws DesapError `ERR_DEVICE_UNAVAILABLE` with the reason; `ERR_VALUE` for unknown options
 */
export function openBackend(options: DeviceOptions = {}): Backend {
  const { driver, fallback } = openDevice(options);
  return createBackend(driver, fallback);
}
