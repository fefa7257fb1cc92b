/** How a prompt and an image become a model's inputs in Transformers.js: its processors differ. */
import type { PreTrainedModel, PreTrainedTokenizer, Processor, RawImage, Tensor } from '@huggingface/transformers';

/** What `generate` takes. */
export type ClientInputs = Readonly<Record<string, Tensor>>;

/** A loaded model with all that makes its inputs. */
export interface ClientParts {
  readonly processor: Processor;
  readonly tokenizer: PreTrainedTokenizer;
  readonly model: PreTrainedModel;
  /** The text of one visual token. */
  readonly imageToken: string;
}

export interface Processing {
  /** @param text with one placeholder, where the image stands */
  call(parts: ClientParts, text: string, image: RawImage): Promise<ClientInputs>;
  /** The prompt of a folder without chat template, which such models do not have. */
  readonly prompt?: string;
  /** What the prompt has in the image's place; default: the text of one visual token. */
  readonly placeholder?: string;
  /** The text of one visual token, where the config has no id of it. */
  readonly visual?: string;
  /** The class that loads the model; default: that of models for images and texts. */
  readonly loader?: 'AutoModelForCausalLM';
}

type Call = (...given: unknown[]) => Promise<ClientInputs>;

export const textFirst: Processing['call'] = ({ processor }, text, image) =>
  (processor as unknown as Call)(text, [image]);

export const imageFirst: Processing['call'] = ({ processor }, text, image) =>
  (processor as unknown as Call)([image], text);

/** Where there is no processor for both: as many placeholders as the model's own encoder gives visual tokens. */
export const expanded: Processing['call'] = async ({ processor, tokenizer, model, imageToken }, text, image) => {
  const { pixel_values } = await (processor.image_processor as unknown as Call)([image]);
  const { dims } = (await model.encode_image({ pixel_values })) as Tensor;
  const count = dims.slice(0, -1).reduce((product, extent) => product * extent, 1);
  const { input_ids, attention_mask } = tokenizer(text.replace(imageToken, () => imageToken.repeat(count)));
  return { input_ids, attention_mask, pixel_values };
};
