// Pictures are seen and pruned in Node, and a vLLM answers about them, streaming. From a clone, after `npm run build`:
//
//   OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none node examples/openai/pruned.mjs [question] [picture ...]
//
// The server runs the same LLaVA, with `--enable-mm-embeds`. All pictures have one number of visual tokens, which is what vLLM needs
// (docs/serving.md); adaptive.mjs is for others.

import { checkUsage, toImageEmbeds } from 'desap/serving';
import OpenAI from 'openai';
import { hiddenSize, openSight } from './sight.mjs';

const KEEP = 16;
const [question = 'what is the large thing ?', ...files] = process.argv.slice(2);
const client = new OpenAI();
const sight = await openSight();

for (const file of files.length > 0 ? files : sight.samples) {
  const { features } = await sight.prune(file, question, KEEP);
  const picture = toImageEmbeds(features, { modelType: 'llava', hiddenSize, rows: KEEP });
  const stream = await client.chat.completions.create({
    model: process.env.MODEL ?? 'tiny',
    messages: [{ role: 'user', content: [picture, { type: 'text', text: question }] }],
    temperature: 0,
    max_tokens: 8,
    stream: true,
    stream_options: { include_usage: true },
  });
  process.stdout.write(`${file}: `);
  for await (const chunk of stream) {
    process.stdout.write(chunk.choices[0]?.delta.content ?? '');
    if (chunk.usage) checkUsage(chunk, sight.textTokens(question) + KEEP);
  }
  process.stdout.write('\n');
}
await sight.dispose();
