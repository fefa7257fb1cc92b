/** The other half of models/tiny-llava, as a server runs it: positions 0 .. S - 1, greedy. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { ROOT } from '../support.js';
import type { StandInModel } from './stand-in.js';
import type { Read } from './torch-reader.js';

const FOLDER = join(ROOT, 'models/tiny-llava');
const json = async (name: string) => JSON.parse(await readFile(join(FOLDER, name), 'utf8'));

export async function tinyLlava(): Promise<StandInModel> {
  const config = await json('config.json');
  const tokenizer = new Tokenizer(await json('tokenizer.json'), await json('tokenizer_config.json'));
  const embedTokens = await InferenceSession.create(join(FOLDER, 'onnx/embed_tokens.onnx'));
  const decoder = await InferenceSession.create(join(FOLDER, 'onnx/decoder_model_merged.onnx'));
  const width: number = config.text_config.hidden_size;
  const idsOf = (question: string): number[] => tokenizer.encode(`<image>${question}<ans>`).ids;
  const int64 = (values: number[]) => new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
  const embed = async (ids: number[]) =>
    (await embedTokens.run({ input_ids: int64(ids) })).inputs_embeds.data as Float32Array;

  async function wholeOf(rows: readonly Read[], question: string): Promise<Float32Array> {
    const ids = idsOf(question);
    const at = ids.indexOf(config.image_token_id);
    const parts = [await embed(ids.slice(0, at)), ...rows.map(({ values }) => values), await embed(ids.slice(at + 1))];
    return Float32Array.from(parts.flatMap((part) => [...part]));
  }

  return {
    hiddenSize: width,
    textTokens: (question) => idsOf(question).length - 1,
    async *answer(rows, question) {
      let embeds = question === null ? rows[0].values : await wholeOf(rows, question);
      let cache: Record<string, Tensor> = Object.fromEntries(
        decoder.inputMetadata.flatMap((input) =>
          input.isTensor && input.name.startsWith('past_key_values')
            ? [
                [
                  input.name,
                  new Tensor('float32', new Float32Array(0), [1, Number(input.shape[1]), 0, Number(input.shape[3])]),
                ],
              ]
            : [],
        ),
      );
      let length = 0;
      for (let step = 0; step < 8; step++) {
        const count = embeds.length / width;
        const positions = Array.from({ length: count }, (_, i) => length + i);
        length += count;
        const { logits, ...present } = await decoder.run({
          inputs_embeds: new Tensor('float32', embeds, [1, count, width]),
          attention_mask: int64(new Array(length).fill(1)),
          position_ids: int64(positions),
          ...cache,
        });
        const last = (logits.data as Float32Array).subarray(-logits.dims[2]);
        const id = last.indexOf(last.reduce((a, b) => Math.max(a, b)));
        if (id === config.eos_token_id[0]) return;
        yield tokenizer.decode([id], { skip_special_tokens: true });
        if (config.eos_token_id.includes(id)) return;
        cache = Object.fromEntries(
          Object.entries(present).map(([name, value]) => [name.replace('present', 'past_key_values'), value as Tensor]),
        );
        embeds = await embed([id]);
      }
    },
  };
}
