// The half of a LLaVA that stays in Node: vision tower, pruner and projector; for whole prompts the embeddings of the text too.
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { Tokenizer } from '@huggingface/tokenizers';
import { compact, ImageProcessor, openVisionModel } from 'desap/onnxruntime';
import { InferenceSession } from 'onnxruntime-node';

const models = fileURLToPath(new URL('../../models/', import.meta.url));
const llava = `${models}tiny-llava`;
const json = async (name) => JSON.parse(await readFile(`${llava}/${name}`, 'utf8'));
const config = await json('config.json');
const tokenizer = new Tokenizer(await json('tokenizer.json'), await json('tokenizer_config.json'));

export const hiddenSize = config.text_config.hidden_size;
const IMAGE = config.image_token_id;
// What the chat template of the model makes of a picture and a question.
const written = (question) => tokenizer.encode(`<image>${question}<ans>`).ids;

export async function openSight() {
  const processor = await ImageProcessor.open(llava);
  const vision = await openVisionModel(llava, { clip: `${models}tiny-clip` });
  const embedTokens = await InferenceSession.create(`${llava}/onnx/embed_tokens.onnx`);
  return {
    samples: ['000', '001', '002'].map((name) => `${models}eval/images/${name}.png`),
    textTokens: (question) => written(question).length - 1,
    prune: async (file, question, keep) =>
      vision.prune({ pixelValues: await processor.process(file) }, question, { keep }),
    /** The embeddings of the whole prompt, [1, S, D]: the text's, with the kept rows in place of the image tokens. */
    async prompt(question, kept) {
      const ids = written(question);
      ids.splice(ids.indexOf(IMAGE), 1, ...new Array(kept.assignment.length).fill(IMAGE));
      const { inputIds } = compact({ inputIds: ids, imageTokenId: IMAGE, kept });
      const { inputs_embeds } = await embedTokens.run({ input_ids: inputIds });
      inputs_embeds.data.set(kept.features.data, inputIds.data.indexOf(BigInt(IMAGE)) * hiddenSize);
      return inputs_embeds;
    },
    dispose: () => Promise.all([vision.dispose(), embedTokens.release()]),
  };
}
