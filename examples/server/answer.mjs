// What a worker does behind pruning: the language model of a LLaVA folder, greedy, a word at a time. The pool imports it in each worker.
import { readFile } from 'node:fs/promises';
import { Tokenizer } from '@huggingface/tokenizers';
import { compact } from 'desap/onnxruntime';
import { InferenceSession, Tensor } from 'onnxruntime-node';

const MOST_TOKENS = 64;
const int64 = (values) => new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);

/** @type {import('desap/server').OpenContinuation} */
export default async function open({ model, threads }) {
  const json = async (name) => JSON.parse(await readFile(`${model}/${name}`, 'utf8'));
  const { image_token_id: imageTokenId, eos_token_id: ends } = await json('config.json');
  const tokenizer = new Tokenizer(await json('tokenizer.json'), await json('tokenizer_config.json'));
  // The threads of this worker, at rest between runs: vision, pruner and language model take turns.
  const session = { intraOpNumThreads: threads, extra: { session: { intra_op: { allow_spinning: '0' } } } };
  const start = (name) => InferenceSession.create(`${model}/onnx/${name}.onnx`, session);
  const [embedTokens, decoder] = await Promise.all(['embed_tokens', 'decoder_model_merged'].map(start));
  const embed = async (input_ids) => (await embedTokens.run({ input_ids })).inputs_embeds;
  const emptyCache = decoder.inputMetadata
    .filter(({ name }) => name.startsWith('past_key_values'))
    .map(({ name, shape }) => [name, new Tensor('float32', new Float32Array(0), [1, shape[1], 0, shape[3]])]);

  return async function* answer({ features, kept, question, signal }) {
    const { ids } = tokenizer.encode(`<image>${question}<ans>`);
    ids.splice(ids.indexOf(imageTokenId), 1, ...new Array(kept.assignment.length).fill(imageTokenId));
    const prompt = compact({ inputIds: ids, imageTokenId, kept });
    let inputs_embeds = await embed(prompt.inputIds);
    const at = prompt.inputIds.data.indexOf(BigInt(imageTokenId));
    inputs_embeds.data.set(features.data, at * inputs_embeds.dims[2]);
    let { attentionMask: attention_mask, positionIds: position_ids } = prompt;
    let cache = Object.fromEntries(emptyCache);
    for (let step = 0; step < MOST_TOKENS && !signal.aborted; step++) {
      const { logits, ...present } = await decoder.run({ inputs_embeds, attention_mask, position_ids, ...cache });
      const last = logits.data.subarray(-logits.dims[2]);
      const next = last.indexOf(last.reduce((a, b) => Math.max(a, b)));
      const word = tokenizer.decode([next], { skip_special_tokens: true });
      if (word !== '') yield step > 0 ? ` ${word}` : word;
      if ([ends].flat().includes(next)) return;
      cache = Object.fromEntries(
        Object.entries(present).map(([name, value]) => [name.replace('present', 'past_key_values'), value]),
      );
      inputs_embeds = await embed(int64([next]));
      attention_mask = int64(new Array(attention_mask.dims[1] + 1).fill(1));
      position_ids = int64([prompt.nextPosition + step]);
    }
  };
}
