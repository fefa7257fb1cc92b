import { types } from 'node:util';
import { ABORTABLE, type Abortable, abortable } from './abort.js';
import { type BlockWeights, checkBlock, copyBlock, loadBlock } from './block-weights.js';
import {
  type AnalyzeTimings,
  after,
  type BlockOutput,
  type BlockStates,
  type Driver,
  type DriverBlock,
  type MaybePromise,
  orElse,
} from './devices/driver.js';
import { type Backend, createBackend, driverOf } from './devices/kernel-api.js';
import { queued, typed } from './devices/native-error.js';
import { type DeviceOptions, openWith } from './devices/open.js';
import { DISPOSE } from './dispose-symbols.js';
import { invalid, mismatch, notFinite } from './errors.js';
import { HostBuffer } from './host-buffer.js';
import { ENCODINGS, type Encoding } from './kernels/kernels.js';
import { entries, type OptionNames, options } from './options.js';
import { rotaryTables } from './rotary-tables.js';
import {
  assertAlive,
  float32,
  float32Array,
  floatData,
  integer,
  isArray,
  matrix,
  object,
  oneOf,
  type Tensor,
  type TensorLike,
} from './tensor.js';
import { traced } from './trace.js';
import { type Units, unitsOf } from './units.js';

/** One sequence of an encoder: an image, a tile or a frame. N rows, D width, dh = D / H. */
export interface BlockInput {
  /** Hidden states that enter the last block, [N, D] or [1, N, D], float32 or float16. Memory of a `HostBuffer` is read in place. */
  readonly hidden: TensorLike;
  /** The first rows are patches, the rest is padding: no key, no query, no score. Default: all are patches. */
  readonly valid?: number;
  /** Tables of the encoder's rotary position embedding, [N, dh] each; both, or none. */
  readonly cos?: TensorLike;
  readonly sin?: TensorLike;
  /**
   * [N] the visual token that each patch goes into, from 0 on, none without a patch; entries of padding are not read. Default: each
   * patch is one.
   */
  readonly unit?: Units;
  /**
   * Where the attention's rows are written, [valid, D]: into memory of a `HostBuffer`, and any memory in a synchronous call, as they are
   * computed; into other memory once they are. Null: they are not wanted. Default: a `HostBuffer` of the analysis' own.
   */
  readonly attention?: Float32Array | null;
  /**
   * Where the rows of the block's own attention are written, [valid, D], as those of `attention` are. They share the scores of the
   * saliency, so that they cost one product of N x N less than by themselves. Default, and null: they are not wanted.
   */
  readonly selfAttention?: Float32Array | null;
}

/** Options of {@link BlockHead.analyze}. */
export interface BlockOptions extends Omit<BlockInput, 'hidden'> {
  /** Operands of the decoupled attention, Table 4(b) of the paper; default `qq`. */
  readonly encoding?: Encoding;
}

const SEQUENCE: OptionNames<Omit<BlockInput, 'hidden'>> = {
  valid: true,
  cos: true,
  sin: true,
  unit: true,
  attention: true,
  selfAttention: true,
};
const INPUT: OptionNames<BlockInput> = { hidden: true, ...SEQUENCE };
const BATCH_OPTIONS: OptionNames<Pick<BlockOptions, 'encoding'>> = { encoding: true };
const OPTIONS: OptionNames<BlockOptions> = { ...SEQUENCE, ...BATCH_OPTIONS };

/** SigLIP's read-out of one sequence. */
export interface SiglipReadOut {
  /** A_d: each patch through the value path of the pooling head, unit rows [valid, D]. */
  readonly embeddings: Tensor;
  /** v_s: the whole head over all patches, a unit vector [D]. */
  readonly global: Float32Array;
  /** The probe's attention, mean over heads, [valid]: another saliency. */
  readonly probeSaliency: Float32Array;
}

/**
 * The last block of an encoder without class token, on one device: decoupled attention (eq. 2) and saliency (eq. 4) from the hidden states
 * that enter it. What CLIP's `Pruner` is for towers with CLIP's read-out, this is for all others; {@link ImageAnalysis.from} goes on from
 * its parts.
 *
 * ```ts
 * using head = await BlockHead.load('encoder.block.safetensors');
 * using block = await head.analyze(hiddenStates, { cos, sin, unit });
 * const rows = await connector(block.attention);                    // [M, W], in the language model's space
 * using image = await ImageAnalysis.from({ patchEmbeddings: rows, saliency: block.unitSaliency, features }, head.backend);
 * ```
 */
export class BlockHead implements Disposable {
  #alive = true;
  readonly #driver: Driver;
  readonly #block: DriverBlock;
  readonly #ownsDevice: boolean;

  private constructor(
    driver: Driver,
    driverBlock: DriverBlock,
    ownsDevice: boolean,
    /** Shape of the block: width D, heads H, its norm, and whether it has SigLIP's read-out. */
    readonly block: Pick<BlockWeights, 'width' | 'heads' | 'norm'> & { readonly siglip: boolean },
    /** Single kernels on the same device. */
    readonly backend: Backend,
  ) {
    this.#driver = driver;
    this.#block = driverBlock;
    this.#ownsDevice = ownsDevice;
  }

  /**
   * Loads a block onto a device.
   *
   * @param source path or bytes of a `.safetensors` block, or the weights themselves
   * @param where an open device, which stays the caller's, or the options of one that is opened here and freed with the block
   * @throws DesapError `ERR_FILE`, `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, `ERR_NOT_FINITE` for the block; `ERR_DEVICE_UNAVAILABLE` with the
   *   reason for the device; `ERR_OUT_OF_MEMORY`. A GPU that cannot take the block (heads wider than 128, D beyond 16384: `ERR_VALUE`), has
   *   no room for it or fails is passed over by the device `auto`
   */
  static async load(
    source: string | Uint8Array | ArrayBuffer | BlockWeights,
    where: DeviceOptions | Backend = {},
  ): Promise<BlockHead> {
    const isFile = typeof source === 'string' || types.isUint8Array(source) || types.isAnyArrayBuffer(source);
    const weights = isFile
      ? await loadBlock(source)
      : checkBlock(object('source', source, "a block: its file's path or bytes, or its weights"));
    const { width, heads, norm, siglip } = weights;
    const shape = { width, heads, norm, siglip: siglip !== null };
    const create = (driver: Driver, block: BlockWeights) => typed(() => driver.createBlock(block));
    const open = driverOf(where);
    if (open) return new BlockHead(open, await create(open, weights), false, shape, where as Backend);
    const read = (again: boolean) => (again && !isFile ? copyBlock(weights) : weights);
    const { made, driver, fallback } = await openWith('where', where as DeviceOptions, read, create);
    return new BlockHead(driver, made, true, shape, createBackend(driver, fallback));
  }

  /** `cpu`, `cuda:0`, `reference`. `fallback` of {@link BlockHead.backend} says why `auto` took it. */
  get device(): string {
    return this.#driver.device;
  }

  /** The device in words: instruction set and threads, or the GPU. */
  get deviceDescription(): string {
    return this.#driver.deviceDescription;
  }

  /** Arithmetic of the matrix products: `fp32`, or the coarser one that was accepted and is used. The reference says `fp32`. */
  get precision(): Backend['precision'] {
    return this.#driver.precision;
  }

  /**
   * The part that no question changes, of one image: with L = norm1(X), Q, K, V = L W^T + b, for the first `valid` rows
   *
   *     attention = out(softmax(Q Q^T / sqrt(dh)) V)                                         per head, no rotation
   *     saliency = mean over heads and queries of softmax(rot(Q) rot(K)^T / sqrt(dh))        rot(x) = x cos + turn(x) sin
   *     selfAttention = out(softmax(rot(Q) rot(K)^T / sqrt(dh)) V)                           the encoder's own
   *     unitSaliency[u] = mean of saliency over the patches of unit u
   *
   * @param hidden hidden states that enter the encoder's last block, [N, D] or [1, N, D], float32 or float16. Memory of a
   *   `HostBuffer` is read in place; other memory is copied first.
   * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, `ERR_DETACHED`, `ERR_NOT_FINITE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`; on a GPU
   *   `ERR_DEVICE_FAILED`, `ERR_DEVICE_LOST`
   */
  async analyze(hidden: TensorLike, given: BlockOptions & Abortable = {}): Promise<BlockAnalysis> {
    const { signal, ...choice } = options('options', given, { ...OPTIONS, ...ABORTABLE });
    const work = async () => this.#analyzeOne(hidden, choice, false);
    const [image] = await traced('BlockHead.analyze', () => abortable(signal, work, disposeAll));
    return image;
  }

  /** {@link BlockHead.analyze}, on the calling thread; the kernels read and write any memory in place. */
  analyzeSync(hidden: TensorLike, options: BlockOptions = {}): BlockAnalysis {
    const [image] = this.#analyzeOne(hidden, options, true) as BlockAnalysis[];
    return image;
  }

  /**
   * Several images, tiles or frames in one call; they may differ in everything. Each result is what `analyze` gives for that one alone,
   * to the bit.
   * @throws as {@link BlockHead.analyze}, with the image; one bad image fails the call
   */
  async analyzeBatch(
    images: readonly BlockInput[],
    given: Pick<BlockOptions, 'encoding'> & Abortable = {},
  ): Promise<BlockAnalysis[]> {
    const { signal, ...choice } = options('options', given, { ...BATCH_OPTIONS, ...ABORTABLE });
    const work = async () => this.#analyzeAll(images, choice);
    return traced('BlockHead.analyzeBatch', () => abortable(signal, work, disposeAll));
  }

  #analyzeAll(images: readonly BlockInput[], choice: Pick<BlockOptions, 'encoding'>): MaybePromise<BlockAnalysis[]> {
    if (!isArray(images)) throw invalid('ERR_VALUE', 'images', images, 'a list of { hidden, ... }');
    const inputs = entries('images', images).map((image, b) => {
      const argument = `images[${b}]`;
      return [`${argument}.`, options(argument, object(argument, image, '{ hidden, ... }'), INPUT)] as const;
    });
    return this.#analyze(inputs, choice, false);
  }

  #analyzeOne(hidden: TensorLike, given: BlockOptions, sync: boolean): MaybePromise<BlockAnalysis[]> {
    const { encoding, ...rest } = options('options', given, OPTIONS);
    return this.#analyze([['', { hidden, ...rest }]], { encoding }, sync);
  }

  #analyze(
    inputs: readonly (readonly [prefix: string, input: BlockInput])[],
    { encoding = 'qq' }: Pick<BlockOptions, 'encoding'>,
    sync: boolean,
  ): MaybePromise<BlockAnalysis[]> {
    assertAlive('BlockHead', this.#alive);
    const request = oneOf('encoding', encoding, ENCODINGS);
    const checked = inputs.map(([prefix, input]) => checkInput(prefix, input, this.block));
    refuseOverlaps(
      checked,
      inputs.map(([prefix]) => prefix),
    );
    if (checked.length === 0) return sync ? [] : Promise.resolve([]);
    const places = checked.map(({ hidden, attention }) =>
      attention === undefined ? this.#room([hidden.rows, hidden.cols]) : { data: attention, buffer: null },
    );
    const states = checked.map((input, b): BlockStates => ({ ...input, attention: places[b].data }));
    const analyze = () => {
      const outputs = queued(this.#driver, () => this.#block.analyze(states, request, sync));
      return after(outputs, (all) => all.map((output, b) => new BlockAnalysis(states[b], output, places[b].buffer)));
    };
    return orElse(analyze, (error) => {
      for (const { buffer } of places) buffer?.dispose();
      const { argument, row, image } = error as { argument?: string; row?: number; image?: number };
      throw argument === undefined || row === undefined ? error : notFinite(`${inputs[image ?? 0][0]}${argument}`, row);
    });
  }

  /** Room for the attention of one image. The reference does without native memory. */
  #room(dims: readonly [rows: number, cols: number]): Place {
    if (this.device === 'reference') return { data: new Float32Array(dims[0] * dims[1]), buffer: null };
    const buffer = HostBuffer.forTensor('float32', dims, this.device.startsWith('cuda') ? {} : { pinned: false });
    return { data: buffer.float32(), buffer };
  }

  /** Frees the block, and the device that it opened. Work in flight ends first. */
  dispose(): void {
    if (!this.#alive) return;
    this.#alive = false;
    this.#block.dispose();
    if (this.#ownsDevice) this.#driver.dispose();
  }

  [DISPOSE](): void {
    this.dispose();
  }
}

/** What the last block says of one image; made by {@link BlockHead.analyze}. */
export class BlockAnalysis implements Disposable {
  #attention: Tensor | null;
  #alive = true;
  readonly #buffer: HostBuffer | null;
  /** Rows that are patches. */
  readonly rows: number;
  /** A_s: the attention that each patch receives, [rows]. */
  readonly saliency: Float32Array;
  /** Its mean over the patches of each visual token; null without `unit`. */
  readonly unitSaliency: Float32Array | null;
  /** The rows of the block's own attention behind its output projection, [rows, D], in the memory that was given for them; else null. */
  readonly selfAttention: Tensor | null;
  /** SigLIP's read-out, where the block has one. */
  readonly siglip: SiglipReadOut | null;
  /** Milliseconds per stage. */
  readonly timings: AnalyzeTimings;

  /** @internal `buffer`: where the attention was written, when it belongs to the analysis */
  constructor(
    { hidden: { rows, cols }, attention, selfAttention }: BlockStates,
    output: BlockOutput,
    buffer: HostBuffer | null,
  ) {
    const { saliency, unitSaliency, siglip, timings } = output;
    this.#attention = attention && float32(attention, [rows, cols]);
    this.#buffer = buffer;
    this.rows = rows;
    this.saliency = saliency;
    this.unitSaliency = unitSaliency;
    this.selfAttention = selfAttention && float32(selfAttention, [rows, cols]);
    this.siglip = siglip && { ...siglip, embeddings: float32(siglip.embeddings, [rows, cols]) };
    this.timings = timings;
  }

  /**
   * The attention's rows behind its output projection, [rows, D]: what a connector takes in place of the encoder's output. Null where
   * they were not wanted.
   * @throws DesapError `ERR_DISPOSED`
   */
  get attention(): Tensor | null {
    assertAlive('BlockAnalysis', this.#alive);
    return this.#attention;
  }

  /** Gives the attention's memory back, where it is the analysis' own. Safe to call again. */
  dispose(): void {
    this.#alive = false;
    this.#attention = null;
    this.#buffer?.dispose();
  }

  [DISPOSE](): void {
    this.dispose();
  }
}

function disposeAll(analyses: readonly BlockAnalysis[]): void {
  for (const analysis of analyses) analysis.dispose();
}

/** Where the attention of one image is written, and the buffer that was made for it. */
interface Place {
  readonly data: Float32Array | null;
  readonly buffer: HostBuffer | null;
}

/** One image as its caller gave it; `attention` undefined: that is left to the head. */
type Checked = Omit<BlockStates, 'attention'> & { readonly attention: Float32Array | null | undefined };

function checkInput(
  prefix: string,
  { hidden, valid, cos, sin, unit, attention, selfAttention = null }: BlockInput,
  { width, heads }: Pick<BlockWeights, 'width' | 'heads'>,
): Checked {
  const all = matrix(`${prefix}hidden`, hidden, { cols: width });
  const rows = integer(`${prefix}valid`, valid ?? all.rows, 1, all.rows);
  const names = { cos: `${prefix}cos`, sin: `${prefix}sin` };
  const rotated = cos !== undefined || sin !== undefined;
  const tables = { rows: all.rows, cols: width / heads, valid: rows };
  return {
    hidden: { ...all, rows, data: all.data.subarray(0, rows * width) },
    rotary: rotated ? rotaryTables({ cos, sin }, names, tables) : null,
    ...(unit === undefined ? { unit: null, units: rows } : unitsOf(`${prefix}unit`, unit, rows, all.rows)),
    attention: attention == null ? attention : destination(`${prefix}attention`, attention, [rows, width]),
    selfAttention: selfAttention === null ? null : destination(`${prefix}selfAttention`, selfAttention, [rows, width]),
  };
}

function destination(argument: string, data: Float32Array, dims: readonly number[]): Float32Array {
  floatData(argument, { data: float32Array(argument, data, 'a Float32Array, or null'), dims });
  // The caller's own array: it is what the analysis hands out.
  return data;
}

/** What is written may lie neither over what is read nor over what else is written. */
function refuseOverlaps(states: readonly Checked[], prefixes: readonly string[]): void {
  const taken = states.flatMap(({ hidden, rotary }) => [hidden.data, ...(rotary ? [rotary.cos, rotary.sin] : [])]);
  states.forEach((state, b) => {
    for (const output of ['attention', 'selfAttention'] as const) {
      const memory = state[output];
      if (!memory) continue;
      if (taken.some((other) => overlap(memory, other)))
        throw mismatch(
          'ERR_VALUE',
          `${prefixes[b]}${output}`,
          'memory that the call reads or writes',
          'memory of its own',
        );
      taken.push(memory);
    }
  });
}

function overlap(a: ArrayBufferView, b: ArrayBufferView): boolean {
  const [from, until] = [
    Math.max(a.byteOffset, b.byteOffset),
    Math.min(a.byteOffset + a.byteLength, b.byteOffset + b.byteLength),
  ];
  return a.buffer === b.buffer && from < until;
}
