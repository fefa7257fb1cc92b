// A video and a question over plain onnxruntime-node: the ONNX files of a Video-LLaVA, with pruning of each frame between its vision tower
// and its projector. The model here has random weights: it shows what goes where, and says nothing. Run it from a clone, after
// `npm run build`; a video file needs ffmpeg:
//
//   node examples/video.mjs [video] [question] [visual tokens to keep of each frame]
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { Tokenizer } from '@huggingface/tokenizers';
import { compact, ImageProcessor, openVisionModel, videoFrames } from 'desap/onnxruntime';
import { InferenceSession, Tensor } from 'onnxruntime-node';

const root = fileURLToPath(new URL('..', import.meta.url));
const llava = `${root}test/fixtures/families/video_llava`;
const [video, question = 'what happens?', keep = '4'] = process.argv.slice(2);

const json = async (name) => JSON.parse(await readFile(`${llava}/${name}`, 'utf8'));
const { video_token_index: videoTokenId } = await json('config.json');
const tokenizer = new Tokenizer(await json('tokenizer.json'), await json('tokenizer_config.json'));
const images = await ImageProcessor.open(llava);
const embedTokens = await InferenceSession.create(`${llava}/onnx/embed_tokens.onnx`);
const decoder = await InferenceSession.create(`${llava}/onnx/decoder_model_merged.onnx`);
const vision = await openVisionModel(llava, { clip: `${llava}/clip` });

// 1. Eight frames: of a video file, or images that are there already.
const stills = Array.from({ length: 8 }, (_, i) => `${root}models/eval/images/00${i}.png`);
const pixelValuesVideos = await images.video(video ? await videoFrames(video) : stills);

// 2. The frames, each pruned for the question; the class row of each stays.
const [encoded] = await vision.encode({ pixelValuesVideos });
const kept = await encoded.prune(question, { keep: Number(keep) });

// 3. The prompt with one video token for each patch and class row, and then without those of the dropped patches.
const { ids } = tokenizer.encode(`USER: <video> ${question} ASSISTANT:`);
ids.splice(ids.indexOf(videoTokenId), 1, ...new Array(encoded.tokenCount).fill(videoTokenId));
const prompt = compact({ inputIds: ids, imageTokenId: videoTokenId, kept });

// 4. The embeddings of the prompt, with the features in place of the video tokens.
const embed = async (input_ids) => (await embedTokens.run({ input_ids })).inputs_embeds;
const inputs_embeds = await embed(prompt.inputIds);
inputs_embeds.data.set(kept.features.data, prompt.inputIds.data.indexOf(BigInt(videoTokenId)) * inputs_embeds.dims[2]);

// 5. The first token that the language model says. A whole loop is in examples/llava-next.mjs.
const empty = decoder.inputMetadata
  .filter(({ name }) => name.startsWith('past_key_values'))
  .map(({ name, shape }) => [name, new Tensor('float32', new Float32Array(0), [1, shape[1], 0, shape[3]])]);
const { attentionMask: attention_mask, positionIds: position_ids } = prompt;
const { logits } = await decoder.run({ inputs_embeds, attention_mask, position_ids, ...Object.fromEntries(empty) });
const last = logits.data.subarray(-logits.dims[2]);
console.log(`${question} token ${last.indexOf(last.reduce((a, b) => Math.max(a, b)))}`);
console.log(
  `${kept.indices.length} of ${encoded.tokenCount} visual tokens; of each frame: ${kept.tileCounts.join(' ')}`,
);

encoded.dispose();
await Promise.all([vision.dispose(), embedTokens.release(), decoder.release()]);
