import type { InferenceSession, Tensor } from 'onnxruntime-common';
import type { BlockHead, Encoding, SiglipReadOut } from '../index.js';
import { COS, FEATURES, type ORDER, ROWS, SIN, TASK_ROWS } from '../onnx/block-values.js';
import type { OrtModule } from '../onnx/edit.js';
import type { BlockEncoder } from '../onnx/last-block.js';
import { throughTail } from '../onnx/split-encoder.js';
import { float32 } from '../tensor.js';
import type { Sequence } from './block-family.js';
import { type HostMemory, hostMemory } from './host-memory.js';
import { type RunNames, runSession } from './session.js';
import { settled } from './settled.js';
import { type Staying, spread, spreadSequence } from './staying.js';

/** What a run of an encoder needs of its model. */
export interface BlockEngine {
  readonly ort: OrtModule;
  readonly encoder: BlockEncoder;
  /** Where the encoder is split: what stands between its last attention and the connector. Null: the encoder's own session has it all. */
  readonly tail: InferenceSession | null;
  readonly connector: InferenceSession;
  readonly head: BlockHead;
  readonly encoding: Encoding;
  /** How SigLIP's read-out is used; null: the connector takes the attention. */
  readonly readOut: { readonly saliency: 'columns' | 'probe' } | null;
}

export type Outputs = Readonly<Record<string, Tensor>>;

/** Hidden states [B, N, D], or [N, D]. */
export interface HiddenRows extends HostMemory {
  readonly dims: readonly number[];
}

/** What the kernels say of the sequences of a run. */
export interface Attended {
  /** Of each sequence: the saliency of its patches, and SigLIP's read-out where the block has one; or what went wrong. */
  readonly sequences: readonly PromiseSettledResult<{
    readonly saliency: Float32Array;
    readonly siglip: SiglipReadOut | null;
  }>[];
  /** The decoupled attention with the dims of the hidden states, zeros in padding and where it went wrong; null: not wanted. */
  readonly attention: HostMemory | null;
  /** Of all of them. */
  readonly milliseconds: number;
}

/** One run of an encoder, behind its session. */
export interface BlockRun {
  /** What there is by name: features of the file, and what the connector needs. */
  readonly outputs: Outputs;
  /** Dims of the hidden states, of all rows. */
  readonly hidden: readonly number[];
  /** Milliseconds that the kernels have taken already. */
  readonly attended: number;
  /** @param attends whether the decoupled attention is wanted; its memory is the caller's from then on */
  attend(attends: boolean): Promise<Attended>;
  /** What is known of tokens that a cut tower dropped; null where it dropped none. */
  readonly dropped: DroppedTokens | null;
  /** Lets go of what the kernels read. Safe to call again. */
  free(): void;
}

/** What is known of the visual tokens of a run of which some were dropped, in the order of the features. */
export interface DroppedTokens {
  /** 1 for each token that stayed, otherwise 0. */
  readonly stays: Uint8Array;
  /** Their states at the cut, [M, D]: the means of their rows. */
  readonly states: Float32Array;
  /** The features of all tokens, with none dropped, [M, W]. */
  everything(): Promise<Tensor>;
}

/** Which rows the kernels have, where those are not all. */
export interface RunRows {
  readonly sequences: readonly Sequence[];
  readonly staying?: Staying;
}

/** A run whose session made the features itself: the kernels compute when they are asked. */
export function wholeRun(
  engine: BlockEngine,
  hidden: HiddenRows,
  outputs: Outputs,
  { sequences, staying }: RunRows,
): BlockRun {
  return {
    outputs,
    hidden: staying?.dims ?? hidden.dims,
    dropped: null,
    attended: 0,
    async attend(attends) {
      const attention = attends ? hostMemory(hidden.dims, engine.head.device) : null;
      try {
        const attended = { ...(await attend(engine, hidden, outputs, sequences, { attention })), attention };
        return staying ? spreadAttended(attended, staying, engine.head) : attended;
      } catch (error) {
        attention?.free();
        throw error;
      }
    },
    free: hidden.free,
  };
}

/**
 * A run whose session ended in front of the last block: the kernels compute its own attention and the decoupled one in one go, tail and
 * connector make the features. Frees the hidden states, unless it fails.
 *
 * @param names what messages call what the caller gave
 */
export async function splitRun(
  engine: BlockEngine & { readonly tail: InferenceSession },
  hidden: HiddenRows,
  given: Outputs,
  { sequences, staying }: RunRows,
  names: RunNames,
): Promise<BlockRun> {
  const { head, tail, ort, readOut } = engine;
  const { dims } = hidden;
  const memory = () => hostMemory(dims, head.device);
  const selfAttention = memory();
  let attention: HostMemory | null = null;
  try {
    attention = readOut ? null : memory();
    const places = { attention, selfAttention };
    let attended: Attended = { ...(await attend(engine, hidden, given, sequences, places)), attention };
    const both = { hidden: hidden.data, attention: selfAttention.data, dims };
    await throughTail(ort, (feeds) => runSession(tail, names, feeds), both);
    hidden.free();
    const ends = staying ? spread(staying, selfAttention.data, head.block.width) : selfAttention.data;
    if (staying) attended = spreadAttended(attended, staying, head);
    attention = attended.attention;
    const rows = new ort.Tensor('float32', ends, staying?.dims ?? dims);
    const { [TASK_ROWS]: features, ...order } = await connect(engine, given, rows, names);
    return {
      outputs: { ...given, ...order, [FEATURES]: features },
      hidden: rows.dims,
      dropped: null,
      attended: attended.milliseconds,
      attend: async () => attended,
      free: () => attention?.free(),
    };
  } catch (error) {
    attention?.free();
    throw error;
  } finally {
    selfAttention.free();
  }
}

/** What the kernels say of rows that stayed, among all rows. The memory of their attention is freed. */
function spreadAttended(
  { sequences, attention, milliseconds }: Attended,
  staying: Staying,
  { device, block: { width } }: BlockHead,
): Attended {
  const all = attention && hostMemory(staying.dims, device);
  if (attention && all) spread(staying, attention.data, width, all.data);
  attention?.free();
  return {
    sequences: sequences.map((one, t) => {
      if (one.status === 'rejected') return one;
      const { saliency, siglip } = one.value;
      const scores = (values: Float32Array) => spreadSequence(staying, t, values);
      const patches = staying.all[t].patches;
      const read = siglip && {
        ...{ global: siglip.global, probeSaliency: scores(siglip.probeSaliency) },
        embeddings: float32(spreadSequence(staying, t, siglip.embeddings.data as Float32Array, width), [
          patches,
          width,
        ]),
      };
      return { status: one.status, value: { saliency: scores(saliency), siglip: read } };
    }),
    attention: all,
    milliseconds,
  };
}

/** Rows through the connector: {@link TASK_ROWS}, and {@link ORDER} where there is one. */
export function connect(
  { connector, encoder }: Pick<BlockEngine, 'connector' | 'encoder'>,
  outputs: Outputs,
  rows: Tensor,
  names: RunNames,
): Promise<Record<string, Tensor>> {
  const crossing = Object.fromEntries(encoder.crossing.map((name) => [name, outputs[name]]));
  return runSession(connector, names, { ...crossing, [ROWS]: rows });
}

async function attend(
  { head, encoding }: BlockEngine,
  hidden: HiddenRows,
  outputs: Outputs,
  sequences: readonly Sequence[],
  { attention, selfAttention = null }: { attention: HostMemory | null; selfAttention?: HostMemory | null },
): Promise<Omit<Attended, 'attention'>> {
  const start = performance.now();
  const { width } = head.block;
  const of = (data: Float32Array, { firstRow, patches }: Sequence, columns = width) =>
    data.subarray(firstRow * columns, (firstRow + patches) * columns);
  const table = (name: string, sequence: Sequence) => {
    const { data, dims } = outputs[name];
    const columns = dims[dims.length - 1];
    return { data: of(data as Float32Array, sequence, columns), dims: [sequence.patches, columns] };
  };
  const place = (memory: HostMemory | null, sequence: Sequence) =>
    memory && (memory.inPlace ? of(memory.data, sequence) : new Float32Array(sequence.patches * width));
  const all = await settled(sequences, async (some) => {
    const inputs = some.map((sequence) => ({
      hidden: { data: of(hidden.data, sequence), dims: [sequence.patches, width] },
      ...(COS in outputs && { cos: table(COS, sequence), sin: table(SIN, sequence) }),
      attention: place(attention, sequence),
      selfAttention: place(selfAttention, sequence),
    }));
    const analyses = await head.analyzeBatch(inputs, { encoding });
    return analyses.map((analysis, i) => {
      const { saliency, siglip } = analysis;
      for (const [memory, rows] of [
        [attention, analysis.attention],
        [selfAttention, analysis.selfAttention],
      ] as const)
        if (memory && !memory.inPlace) of(memory.data, some[i]).set(rows?.data as Float32Array);
      analysis.dispose();
      return { saliency, siglip };
    });
  });
  const isFailed = (i: number) => all[i].status === 'rejected';
  if (attention)
    fillBetween(
      attention.data,
      sequences.filter((_, i) => !isFailed(i)),
      width,
    );
  if (selfAttention) fillBetween(selfAttention.data, sequences, width);
  // Features of a sequence that is not finite are not, either.
  for (const [i, sequence] of sequences.entries())
    if (isFailed(i) && selfAttention) of(selfAttention.data, sequence).fill(Number.NaN);
  return { sequences: all, milliseconds: performance.now() - start };
}

/** Zeros in all rows that belong to none of some sequences. */
function fillBetween(rows: Float32Array, sequences: readonly Sequence[], width: number): void {
  let end = 0;
  for (const { firstRow, patches } of sequences) {
    rows.fill(0, end, firstRow * width);
    end = (firstRow + patches) * width;
  }
  rows.fill(0, end);
}
