// Pruning inside of a Transformers.js model: the line with `attach` is all that is new, the rest is ordinary code. Run it from a clone,
// after `npm run build`:
//
//   node examples/transformers.mjs [image] [question] [visual tokens to keep]
import { fileURLToPath } from 'node:url';
import { AutoModelForImageTextToText, AutoProcessor, env, RawImage } from '@huggingface/transformers';
import { attach } from 'desap/transformers';

env.allowRemoteModels = false;
env.localModelPath = fileURLToPath(new URL('../models/', import.meta.url));
const [image = `${env.localModelPath}eval/images/000.png`, question = 'what is the large thing ?', keep = '16'] =
  process.argv.slice(2);

const processor = await AutoProcessor.from_pretrained('tiny-llava');
const model = await AutoModelForImageTextToText.from_pretrained('tiny-llava', { dtype: 'fp32' });

const clip = `${env.localModelPath}tiny-clip`;
const detach = await attach(model, { clip, model: 'tiny-llava', keep: Number(keep) });

const inputs = await processor(await RawImage.read(image), `<image>${question}<ans>`);
const answer = async (more) => {
  const output = await model.generate({ ...inputs, max_new_tokens: 8, ...more });
  const answers = output.slice(null, [inputs.input_ids.dims[1], null]);
  return processor.batch_decode(answers, { skip_special_tokens: true })[0].trim();
};
console.log(`${question} ${await answer()}`);
console.log(`with 8 visual tokens: ${await answer({ desap: { keep: 8 } })}`);
console.log(`with all of them: ${await answer({ desap: { keep: 'all' } })}`);

await detach();
await model.dispose();
