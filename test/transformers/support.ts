/** What the tests of attached models share: loading, and decoding by hand without any of the code under test. */
import {
  AutoModelForImageTextToText,
  AutoProcessor,
  env,
  type PreTrainedModel,
  type Processor,
  RawImage,
  Tensor,
} from '@huggingface/transformers';

export type Inputs = Record<string, Tensor>;

/** A seed that no earlier run had; tests have it in their names. `DESAP_SEED` repeats a run. */
export const FRESH = Number(process.env.DESAP_SEED ?? Math.floor(Math.random() * 1e6));

/** Options that make a small model generate a fixed count of tokens. */
export const EIGHT = { max_new_tokens: 8, eos_token_id: null as unknown as number };

export async function load(root: string, id: string): Promise<{ processor: Processor; model: PreTrainedModel }> {
  env.allowRemoteModels = false;
  env.localModelPath = root;
  return {
    processor: await AutoProcessor.from_pretrained(id),
    model: await AutoModelForImageTextToText.from_pretrained(id, { dtype: 'fp32' }),
  };
}

export function photo(number: number): Promise<RawImage> {
  return RawImage.read(`models/eval/images/${String(number).padStart(3, '0')}.png`);
}

/** Ids [1, n] of a text, without the tokens that begin a sequence. */
export function tokens({ tokenizer }: Processor, text: string): Tensor {
  if (!tokenizer) throw new Error('a processor without tokenizer');
  return tokenizer(text, { add_special_tokens: false }).input_ids;
}

/** The ids of a whole sequence. */
export async function ids(output: Promise<unknown>): Promise<number[][]> {
  const result = await output;
  const sequences = result instanceof Tensor ? result : (result as { sequences: Tensor }).sequences;
  return sequences.tolist().map((row: bigint[]) => row.map(Number));
}

/** The same, without the prompt: sliced as users slice it. */
export async function answer(inputs: Inputs, output: Promise<unknown>): Promise<number[][]> {
  return (await ids(output)).map((row) => row.slice(inputs.input_ids.dims[1]));
}

export function int64(values: readonly (number | bigint)[], dims: number[]): Tensor {
  return new Tensor('int64', BigInt64Array.from(values, BigInt), dims);
}

/** A prompt put together by hand. */
export interface HandMade {
  /** [1, L, W]. */
  readonly embeds: Tensor;
  /** For each prompt token and as many new ones as are asked for: its position, one number or one for each axis of M-RoPE. */
  readonly positions: (index: number) => readonly number[];
}

/**
 * Greedy decoding through the decoder's own session: no cache, the whole sequence again for each token.
 * @param never ids that are not generated
 */
export async function decodeByHand(
  model: PreTrainedModel,
  prompt: HandMade,
  count: number,
  never: readonly number[] = [],
): Promise<number[]> {
  const [, , width] = prompt.embeds.dims;
  let rows = Float32Array.from(prompt.embeds.data as Float32Array);
  const generated: number[] = [];
  while (generated.length < count) {
    const logits = await logitsByHand(model, rows, width, prompt.positions);
    for (const id of never) logits[id] = Number.NEGATIVE_INFINITY;
    generated.push(logits.indexOf(Math.max(...logits)));
    const next = await embed(model, generated.slice(-1));
    rows = Float32Array.from([...rows, ...(next.data as Float32Array)]);
  }
  return generated;
}

/** Logits behind the last of some rows. */
export async function logitsByHand(
  model: PreTrainedModel,
  rows: Float32Array,
  width: number,
  positions: HandMade['positions'],
): Promise<number[]> {
  const { decoder_model_merged: session = model.sessions.model } = model.sessions;
  const length = rows.length / width;
  const feeds: Record<string, unknown> = {
    inputs_embeds: new Tensor('float32', rows, [1, length, width]).ort_tensor,
    attention_mask: int64(new Array(length).fill(1), [1, length]).ort_tensor,
  };
  const places = Array.from({ length }, (_, i) => positions(i));
  const axes = places[0].length;
  const dims = axes === 1 ? [1, length] : [axes, 1, length];
  if (session.inputNames.includes('position_ids'))
    feeds.position_ids = int64(
      Array.from({ length: axes }, (_, axis) => places.map((place) => place[axis])).flat(),
      dims,
    ).ort_tensor;
  for (const { name, shape } of session.inputMetadata) {
    if (name.startsWith('past_key_values'))
      feeds[name] = new Tensor('float32', new Float32Array(0), [1, shape[1], 0, shape[3]]).ort_tensor;
    // The state of a convolution begins with zeros.
    if (name.startsWith('past_conv'))
      feeds[name] = new Tensor('float32', new Float32Array(shape[1] * shape[2]), [1, shape[1], shape[2]]).ort_tensor;
  }
  const { logits } = await session.run(feeds);
  return [...(logits.data as Float32Array).slice(-logits.dims[2])];
}

export async function embed(model: PreTrainedModel, tokens: readonly number[]): Promise<Tensor> {
  return model.encode_text({ input_ids: int64(tokens, [1, tokens.length]) });
}
