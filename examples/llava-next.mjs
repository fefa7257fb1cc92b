// One image in tiles and one question over plain onnxruntime-node: the ONNX files of a LLaVA-NeXT, with pruning of each tile between its
// vision tower and its projector. Run it from a clone, after `npm run build`:
//
//   node examples/llava-next.mjs [image] [question] [visual tokens to keep of each tile]
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { Tokenizer } from '@huggingface/tokenizers';
import { AnyresImageProcessor, compact, openVisionModel } from 'desap/onnxruntime';
import { InferenceSession, Tensor } from 'onnxruntime-node';

const models = fileURLToPath(new URL('../models/', import.meta.url));
const llava = `${models}tiny-llava-next`;
const [image = `${models}eval-next/images/000.png`, question = 'what color is the circle ?', keep = '16'] =
  process.argv.slice(2);

const json = async (name) => JSON.parse(await readFile(`${llava}/${name}`, 'utf8'));
const { image_token_id: imageTokenId, eos_token_id: endTokens } = await json('config.json');
const tokenizer = new Tokenizer(await json('tokenizer.json'), await json('tokenizer_config.json'));
const images = await AnyresImageProcessor.open(llava);
const embedTokens = await InferenceSession.create(`${llava}/onnx/embed_tokens.onnx`);
const decoder = await InferenceSession.create(`${llava}/onnx/decoder_model_merged.onnx`);
const vision = await openVisionModel(llava, { clip: `${models}tiny-clip` });

// 1. The whole image and its tiles, each pruned for the question; newlines stay where a patch of their row does.
const [encoded] = await vision.encode(await images.process(image));
const kept = await encoded.prune(question, { keep: Number(keep) });

// 2. The prompt with one image token for each patch and newline, and then without those of the dropped ones. Those that are left keep
//    their positions.
const { ids } = tokenizer.encode(`<image>${question}<ans>`);
ids.splice(ids.indexOf(imageTokenId), 1, ...new Array(encoded.tokenCount).fill(imageTokenId));
const prompt = compact({ inputIds: ids, imageTokenId, kept, positions: 'original' });

// 3. The embeddings of the prompt, with the features in place of the image tokens.
const embed = async (input_ids) => (await embedTokens.run({ input_ids })).inputs_embeds;
let inputs_embeds = await embed(prompt.inputIds);
inputs_embeds.data.set(kept.features.data, prompt.inputIds.data.indexOf(BigInt(imageTokenId)) * inputs_embeds.dims[2]);

// 4. Greedy decoding with the key-value cache.
const int64 = (values) => new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
let { attentionMask: attention_mask, positionIds: position_ids } = prompt;
let cache = Object.fromEntries(
  decoder.inputMetadata
    .filter(({ name }) => name.startsWith('past_key_values'))
    .map(({ name, shape }) => [name, new Tensor('float32', new Float32Array(0), [1, shape[1], 0, shape[3]])]),
);
const answer = [];
while (answer.length < 8) {
  const { logits, ...present } = await decoder.run({ inputs_embeds, attention_mask, position_ids, ...cache });
  const last = logits.data.subarray(-logits.dims[2]);
  answer.push(last.indexOf(last.reduce((a, b) => Math.max(a, b))));
  if (endTokens.includes(answer.at(-1))) break;
  cache = Object.fromEntries(
    Object.entries(present).map(([name, value]) => [name.replace('present', 'past_key_values'), value]),
  );
  inputs_embeds = await embed(int64(answer.slice(-1)));
  attention_mask = int64(new Array(attention_mask.dims[1] + 1).fill(1));
  position_ids = int64([prompt.nextPosition + answer.length - 1]);
}
console.log(`${question} ${tokenizer.decode(answer, { skip_special_tokens: true })}`);
console.log(
  `${kept.indices.length} of ${encoded.tokenCount} visual tokens; of each tile: ${kept.tileCounts.join(' ')}`,
);

encoded.dispose();
await Promise.all([vision.dispose(), embedTokens.release(), decoder.release()]);
