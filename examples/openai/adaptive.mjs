// As pruned.mjs, but each picture has its own number of visual tokens, and all requests go out at once. Two of the ways that vLLM survives
// that (docs/serving.md has all):
//
//   node examples/openai/adaptive.mjs gate     one prefill at a time
//   node examples/openai/adaptive.mjs prompt   whole prompts as embeddings; the server has --enable-prompt-embeds

import { toImageEmbeds, toPromptEmbeds } from 'desap/serving';
import OpenAI from 'openai';
import { oneAtATime } from './gate.mjs';
import { hiddenSize, openSight } from './sight.mjs';

const [way = 'gate', question = 'what is the large thing ?'] = process.argv.slice(2);
const client = new OpenAI();
const sight = await openSight();
const gate = oneAtATime();
const common = { model: process.env.MODEL ?? 'tiny', temperature: 0, max_tokens: 8, stream: true };
const served = { modelType: 'llava', hiddenSize };

function gated({ features }) {
  const content = [toImageEmbeds(features, served), { type: 'text', text: question }];
  return gate(() => client.chat.completions.create({ ...common, messages: [{ role: 'user', content }] }));
}

async function whole(kept) {
  return client.completions.create({ ...common, ...toPromptEmbeds(await sight.prompt(question, kept), served) });
}

async function answer(file, keep) {
  const kept = await sight.prune(file, question, keep);
  let text = '';
  for await (const { choices } of await (way === 'prompt' ? whole : gated)(kept))
    text += choices[0]?.delta?.content ?? choices[0]?.text ?? '';
  return `${file}, ${keep} visual tokens: ${text}`;
}

const answers = await Promise.all(sight.samples.map((file, i) => answer(file, 16 + 8 * i)));
console.log(answers.join('\n'));
await sight.dispose();
