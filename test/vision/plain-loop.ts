/** Greedy decoding over plain onnxruntime-node, as a user's own pipeline does it: a folder's embedding table and decoder. */
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';

/** A prompt put together by hand. */
export interface Prompt {
  /** [1, L]. */
  readonly inputIds: ort.Tensor;
  /** [1, L]; [3, 1, L] for M-RoPE. */
  readonly positionIds: ort.Tensor;
  readonly nextPosition: number;
  /** Rows for the visual tokens, one image after the other: [1, K, W] each. */
  readonly features: readonly ort.Tensor[];
}

/** A decoder with its cache, and the embedding table that goes with it. */
export class PlainLoop {
  private constructor(
    private readonly table: ort.InferenceSession,
    private readonly decoder: ort.InferenceSession,
    private readonly visual: readonly number[],
  ) {}

  /** @param visual ids that stand for visual tokens */
  static async open(folder: string, ...visual: number[]): Promise<PlainLoop> {
    const open = (name: string) => ort.InferenceSession.create(join(folder, 'onnx', `${name}.onnx`));
    return new PlainLoop(await open('embed_tokens'), await open('decoder_model_merged'), visual);
  }

  /** @param never ids that are not generated */
  async generate({ inputIds, positionIds, nextPosition, features }: Prompt, count: number, never: readonly number[]) {
    let embeds = await this.#embed(inputIds.data as BigInt64Array);
    place(embeds, inputIds, this.visual, features);
    let [positions, cache, length] = [positionIds, this.#emptyCache(), 0];
    const ids: number[] = [];
    for (;;) {
      length += embeds.dims[1];
      const feeds: Record<string, ort.Tensor> = { inputs_embeds: embeds, position_ids: positions, ...cache };
      feeds.attention_mask = new ort.Tensor('int64', new BigInt64Array(length).fill(1n), [1, length]);
      if (this.decoder.inputNames.includes('num_logits_to_keep'))
        feeds.num_logits_to_keep = new ort.Tensor('int64', [1n], []);
      const { logits, ...present } = await this.decoder.run(feeds);
      const last = Array.from((logits.data as Float32Array).slice(-logits.dims[2]));
      for (const id of never) last[id] = Number.NEGATIVE_INFINITY;
      ids.push(last.indexOf(Math.max(...last)));
      if (ids.length === count) return ids;
      cache = Object.fromEntries(
        Object.entries(present).map(([name, value]) => [name.replace('present', 'past_key_values'), value]),
      );
      embeds = await this.#embed(ids.slice(-1).map(BigInt));
      const next = BigInt(nextPosition + ids.length - 1);
      const dims = positionIds.dims.with(-1, 1);
      positions = new ort.Tensor('int64', new BigInt64Array(dims[0]).fill(next), dims);
    }
  }

  async #embed(ids: BigInt64Array | readonly bigint[]): Promise<ort.Tensor> {
    const input = new ort.Tensor('int64', BigInt64Array.from(ids), [1, ids.length]);
    return (await this.table.run({ [this.table.inputNames[0]]: input }))[this.table.outputNames[0]];
  }

  #emptyCache(): Record<string, ort.Tensor> {
    return Object.fromEntries(
      this.decoder.inputMetadata.flatMap((input) => {
        if (!input.name.startsWith('past_key_values') || !input.isTensor) return [];
        const dims = [1, Number(input.shape[1]), 0, Number(input.shape[3])];
        return [[input.name, new ort.Tensor('float32', new Float32Array(0), dims)]];
      }),
    );
  }

  async release(): Promise<void> {
    await Promise.all([this.table.release(), this.decoder.release()]);
  }
}

/** Writes the images' rows over the embeddings of the visual tokens. */
function place(embeds: ort.Tensor, ids: ort.Tensor, visual: readonly number[], features: readonly ort.Tensor[]): void {
  const width = embeds.dims[2];
  const rows = features.flatMap(({ data }) => [...(data as Float32Array)]);
  let row = 0;
  for (const [at, id] of (ids.data as BigInt64Array).entries())
    if (visual.includes(Number(id)))
      (embeds.data as Float32Array).set(rows.slice(row * width, ++row * width), at * width);
  if (rows.length !== row * width) throw new Error(`${rows.length / width} rows for ${row} visual tokens`);
}
