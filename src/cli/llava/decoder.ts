import { types } from 'node:util';
import type { InferenceSession } from 'onnxruntime-common';
import { DesapError, invalid } from '../../errors.js';
import { Tensor } from '../../tensor.js';
import { atRest, openSession, runSession } from '../../vision/session.js';

const DECODER = { argument: 'embeds', graph: 'the decoder' };

/** One greedy decoding: the prompt's embeddings and when to stop. */
export interface GenerateOptions {
  /** The prompt, float32 [1, L, W]. */
  embeds: Tensor;
  /** int64 [1, L]. */
  positionIds: Tensor;
  /** The position of the first generated token. */
  nextPosition: number;
  maxNewTokens: number;
  /** Token ids that end the answer. The one that is generated belongs to it. */
  endTokens: ReadonlySet<number>;
  /** Token ids that are never generated. */
  suppressed: ReadonlySet<number>;
  /** Embeddings of token ids, float32 [1, n, W]. */
  embed(ids: readonly number[]): Promise<Tensor>;
}

/** Generated token ids, and milliseconds until the first (`prefill`) and of all others (`decode`). */
export interface Generated {
  readonly ids: readonly number[];
  readonly timings: { readonly prefill: number; readonly decode: number };
}

/** `decoder_model_merged.onnx` with its key-value cache: one sequence, greedy. */
export class Decoder {
  private constructor(private readonly session: InferenceSession) {}

  /** @throws DesapError `ERR_FILE`, `ERR_GRAPH` when it is not such a decoder */
  static async open(path: string): Promise<Decoder> {
    const session = await openSession(path, atRest());
    for (const name of ['inputs_embeds', 'attention_mask'])
      if (!session.inputNames.includes(name))
        throw new DesapError(
          'ERR_GRAPH',
          `${path}: got the inputs ${session.inputNames.join(', ')}, wanted ${name} among them`,
        );
    return new Decoder(session);
  }

  /**
   * Whether the graph takes `position_ids`. A graph without that input counts positions itself, by the attention mask or by the
   * cache's length. Masked padding leaves no gaps in either, so kept tokens cannot have their original positions there.
   */
  get takesPositions(): boolean {
    return this.session.inputNames.includes('position_ids');
  }

  /**
   * The most likely continuation, token by token.
   * @throws DesapError `ERR_VALUE` for `maxNewTokens`
   */
  async generate(options: GenerateOptions): Promise<Generated> {
    const { endTokens, maxNewTokens } = options;
    if (!Number.isInteger(maxNewTokens) || maxNewTokens < 1)
      throw invalid('ERR_VALUE', 'maxNewTokens', maxNewTokens, 'a positive integer');
    const start = performance.now();
    let length = options.embeds.dims[1];
    const run = async (embeds: Tensor, positions: Tensor, cache: Record<string, Tensor>) => {
      const { logits, cache: next } = await this.#step(embeds, length, positions, cache);
      return { best: lastArgMax(logits, options.suppressed), cache: next };
    };
    let step = await run(options.embeds, options.positionIds, this.#emptyCache());
    const prefilled = performance.now();
    const ids = [step.best];
    while (ids.length < maxNewTokens && !endTokens.has(ids[ids.length - 1])) {
      const position = int64([options.nextPosition + ids.length - 1]);
      length++;
      step = await run(await options.embed(ids.slice(-1)), position, step.cache);
      ids.push(step.best);
    }
    return { ids, timings: { prefill: prefilled - start, decode: performance.now() - prefilled } };
  }

  async #step(embeds: Tensor, length: number, positions: Tensor, cache: Record<string, Tensor>) {
    const feeds: Record<string, Tensor> = { inputs_embeds: embeds, ...cache };
    feeds.attention_mask = new Tensor('int64', new BigInt64Array(length).fill(1n), [1, length]);
    if (this.takesPositions) feeds.position_ids = positions;
    if (this.session.inputNames.includes('num_logits_to_keep'))
      feeds.num_logits_to_keep = new Tensor('int64', [1n], []);
    if (this.session.inputNames.includes('use_cache_branch'))
      feeds.use_cache_branch = new Tensor('bool', [length > embeds.dims[1]], [1]);
    const outputs = await runSession(this.session, DECODER, feeds);
    const next = Object.entries(outputs).flatMap(([name, tensor]) =>
      name.startsWith('present') ? [[name.replace('present', 'past_key_values'), tensor] as const] : [],
    );
    return { logits: outputs.logits, cache: Object.fromEntries(next) };
  }

  #emptyCache(): Record<string, Tensor> {
    const empty = this.session.inputMetadata.flatMap((input) => {
      if (!input.name.startsWith('past_key_values') || !input.isTensor) return [];
      // Symbolic extents are the batch, which is 1, and the past length, which is 0.
      const dims = input.shape.map((extent, axis) =>
        typeof extent === 'number' && extent > 0 ? extent : axis === 0 ? 1 : 0,
      );
      const data = input.type === 'float16' ? new Uint16Array(0) : new Float32Array(0);
      return [[input.name, new Tensor(input.type as 'float32', data as Float32Array, dims)] as const];
    });
    return Object.fromEntries(empty);
  }

  /** Frees the session. */
  dispose(): Promise<void> {
    return this.session.release();
  }
}

/** An int64 tensor [1, n]. */
export function int64(values: readonly number[]): Tensor {
  return new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
}

/** The id of the largest logit at the last position of [1, n, vocabulary], without suppressed ids; equal logits: the lower id. */
function lastArgMax(logits: Tensor | undefined, suppressed: ReadonlySet<number>): number {
  if (!types.isFloat32Array(logits?.data))
    throw new DesapError(
      'ERR_GRAPH',
      `logits: got ${logits?.type ?? 'no such output'}, wanted a float32 output; export the decoder with float32 inputs and outputs`,
    );
  const row = logits.data.subarray(logits.data.length - (logits.dims.at(-1) ?? 0));
  let best = -1;
  for (let id = 0; id < row.length; id++) if (!suppressed.has(id) && (best < 0 || row[id] > row[best])) best = id;
  return best;
}
