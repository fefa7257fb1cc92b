/** Rows of visual tokens that a decoder takes besides the embeddings, as Qwen3-VL's deepstack features: Transformers.js feeds none. */
import type { Tensor } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import type { OrtModule } from '../onnx/edit.js';
import { floatToHalf } from '../tensor.js';
import type { PrunedFeatures } from '../vision/vision-model.js';
import type { ModelSession, ModelTensor } from './model.js';

/** One input of a decoder. */
interface FurtherInput {
  readonly name: string;
  readonly type: 'float32' | 'float16';
  /** Axes that it has. */
  readonly rank: number;
}

/** An output of the encoder besides the features, with its extents as far as the file says them. */
export interface FurtherOutput {
  readonly name: string;
  readonly shape: readonly (number | string)[];
}

/** Where the visual tokens of a shortened prompt are: their rows in the order of the slots. */
interface Placed {
  /** [rows * slots]: the image's place and the row among its kept ones, or null. */
  readonly tokens: readonly ({ readonly image: number; readonly row: number } | null)[];
  readonly kept: readonly PrunedFeatures[];
}

/**
 * A decoder's session that is fed such rows: those noted for the embeddings that it is run on, else zeros. An input of as many axes as
 * the encoder's output takes the rows of kept tokens, sequence by sequence; one with an axis more takes them at their places,
 * [.., B, S, W], and zeros elsewhere.
 */
export class FurtherInputs {
  /** The session, as if it had no such inputs. */
  readonly session: ModelSession;
  readonly #inputs: readonly FurtherInput[];
  readonly #placed = new WeakMap<object, Placed>();
  /** Layers of each input whose rows are stacked, once that is known. */
  readonly #layers = new Map<string, number>();

  /**
   * @param outputs of the encoder besides the features
   * @returns null for a decoder that takes none of them
   */
  static of(decoder: ModelSession, outputs: readonly FurtherOutput[], ort: OrtModule): FurtherInputs | null {
    const isTaken = decoder.inputNames.some((input) => outputs.some(({ name }) => name === input));
    return isTaken ? new FurtherInputs(decoder, outputs, ort) : null;
  }

  private constructor(
    decoder: ModelSession,
    outputs: readonly FurtherOutput[],
    private readonly ort: OrtModule,
  ) {
    const names = outputs.map(({ name }) => name);
    this.#inputs = decoder.inputMetadata.flatMap((input): FurtherInput[] => {
      if (!names.includes(input.name)) return [];
      if (input.isTensor && (input.type === 'float32' || input.type === 'float16')) {
        // A prompt without images may come first: what is fed it has layers too.
        const stacked = outputs.find(({ name, shape }) => name === input.name && shape.length === 3);
        const layers = stacked && [stacked.shape[0], input.shape[0]].find((extent) => typeof extent === 'number');
        if (layers !== undefined) this.#layers.set(input.name, layers as number);
        return [{ name: input.name, type: input.type, rank: input.shape.length }];
      }
      throw new DesapError(
        'ERR_GRAPH',
        `model.sessions.decoder_model_merged: got the input ${input.name}, wanted floats`,
      );
    });
    const isOwn = (name: string) => !names.includes(name);
    this.session = Object.create(decoder, {
      inputNames: { value: decoder.inputNames.filter(isOwn) },
      inputMetadata: { value: decoder.inputMetadata.filter(({ name }) => isOwn(name)) },
      run: { value: (feeds: Record<string, Tensor>) => decoder.run({ ...feeds, ...this.#feeds(feeds.inputs_embeds) }) },
      release: { value: () => decoder.release() },
    }) as ModelSession;
  }

  /**
   * Notes the kept rows of a prompt.
   * @param embeds of the shortened prompt, [B, S, W]
   * @param slots for each sequence the column that each slot holds
   * @param images columns of the tokens of each
   */
  note(
    embeds: ModelTensor,
    slots: readonly Int32Array[],
    images: readonly { readonly sequence: number; readonly columns: readonly number[] }[],
    kept: readonly PrunedFeatures[],
  ): void {
    const at = new Map<string, { image: number; row: number }>();
    for (const [image, { sequence, columns }] of images.entries())
      for (const [row, index] of kept[image].indices.entries()) at.set(`${sequence} ${columns[index]}`, { image, row });
    const tokens = slots.flatMap((row, sequence) =>
      Array.from(row, (column) => at.get(`${sequence} ${column}`) ?? null),
    );
    this.#placed.set(embeds.data, { tokens, kept });
  }

  #feeds(embeds: Tensor): Record<string, Tensor> {
    const placed = this.#placed.get(embeds.data as object);
    const [rows, slots, width] = embeds.dims;
    return Object.fromEntries(
      this.#inputs.map((input) => [input.name, this.#tensor(input, [rows, slots, width], placed)]),
    );
  }

  #tensor({ name, type, rank }: FurtherInput, [rows, slots, width]: readonly number[], placed?: Placed): Tensor {
    const outputs = placed?.kept.map(({ further }) => further?.[name] as Tensor) ?? [];
    const [first] = outputs;
    if (first?.dims.length === 3) this.#layers.set(name, first.dims[0]);
    const layers = this.#layers.get(name) ?? 1;
    const isStacked = this.#layers.has(name);
    const isPlaced = rank > (isStacked ? 3 : 2);
    const tokens = placed?.tokens ?? [];
    const count = isPlaced ? rows * slots : tokens.filter((token) => token !== null).length;
    const data = new Float32Array(layers * count * width);
    for (let layer = 0; layer < layers; layer++) {
      let next = layer * count;
      for (const [slot, token] of tokens.entries()) {
        const row = isPlaced ? layer * count + slot : next;
        if (token === null) continue;
        next++;
        const { data: all, dims } = outputs[token.image];
        const from = (layer * dims[dims.length - 2] + token.row) * width;
        data.set((all as Float32Array).subarray(from, from + width), row * width);
      }
    }
    const dims = [...(isStacked ? [layers] : []), ...(isPlaced ? [rows, slots] : [count]), width];
    return type === 'float16'
      ? new this.ort.Tensor('float16', Uint16Array.from(data, floatToHalf), dims)
      : new this.ort.Tensor('float32', data, dims);
  }
}
