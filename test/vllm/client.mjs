// What the cases send, and how answers are compared with Hugging Face's.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { toImageEmbeds, toPromptEmbeds } from 'desap/serving';

const COMMON = { model: 'tiny', temperature: 0, max_tokens: 12, ignore_eos: true, return_token_ids: true };
const TIMEOUT = 300_000;

export const text = (words) => ({ type: 'text', text: words });
export const picture = (folder, number) => {
  const png = readFileSync(join(folder, `picture${number}.png`)).toString('base64');
  return { type: 'image_url', image_url: { url: `data:image/png;base64,${png}` } };
};

/** Status, token ids, log-probabilities and tokens of the prompt of an answer. */
export async function post(base, path, body) {
  const asked = path.includes('chat') ? { logprobs: true, top_logprobs: 1 } : { logprobs: 1 };
  try {
    const response = await fetch(base + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...COMMON, ...asked, ...body }),
      signal: AbortSignal.timeout(TIMEOUT),
    });
    const json = await response.json();
    const choice = json.choices?.[0];
    return {
      status: response.status,
      error: choice ? null : (json.error?.message ?? JSON.stringify(json)),
      ids: choice?.token_ids,
      logprobs: choice?.logprobs?.content?.map(({ logprob }) => logprob) ?? choice?.logprobs?.token_logprobs,
      usage: json.usage,
    };
  } catch (error) {
    return { status: 0, error: String(error.cause ?? error) };
  }
}

/** Chunks of a streamed chat. */
export async function* streamed(base, content, more) {
  const stream = { stream: true, stream_options: { include_usage: true } };
  const body = {
    ...COMMON,
    logprobs: true,
    top_logprobs: 1,
    messages: [{ role: 'user', content }],
    ...stream,
    ...more,
  };
  const response = await fetch(`${base}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  const decoder = new TextDecoder();
  let rest = '';
  for await (const bytes of response.body) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split('\n');
    rest = lines.pop();
    for (const line of lines.filter((one) => one.startsWith('data: {'))) {
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

export const chat = (base, content, more) =>
  post(base, '/v1/chat/completions', { messages: [{ role: 'user', content }], ...more });
export const completion = (base, body) => post(base, '/v1/completions', body);

/** How an answer compares with the reference of its case. */
export function compared(name, answer, reference) {
  if (answer.error) return { name, right: false, said: `${answer.status} ${answer.error.slice(0, 160)}` };
  const { ids } = reference;
  const same = ids.findIndex((id, i) => answer.ids[i] !== id);
  const count = same < 0 ? ids.length : same;
  const apart = Math.max(0, ...reference.logprobs.slice(0, count).map((x, i) => Math.abs(x - answer.logprobs[i])));
  const tokens = answer.usage.prompt_tokens;
  return {
    name,
    right: count === ids.length && tokens === reference.prompt_tokens,
    ids: `${count}/${ids.length}`,
    apart,
    tokens: `${tokens} of ${reference.prompt_tokens}`,
  };
}

const floats = (file) => {
  const { buffer, byteOffset, length } = readFileSync(file);
  return new Float32Array(buffer.slice(byteOffset, byteOffset + length));
};

/** What Hugging Face made of the pictures of a model: rows, embeddings, answers. */
export function referenceOf(folder) {
  const about = JSON.parse(readFileSync(join(folder, 'reference.json'), 'utf8'));
  const { D } = about;
  const features = [1, 2].map((number) => floats(join(folder, `features${number}.f32`)));
  const embeddings = floats(join(folder, 'embed.f32'));
  /** Some rows of a picture, [K, D]. */
  const rows = (image, kept) => {
    const data = new Float32Array(kept.length * D);
    for (const [k, row] of kept.entries()) data.set(features[image - 1].subarray(row * D, (row + 1) * D), k * D);
    return { data, dims: [kept.length, D] };
  };
  /** The whole prompt of a case, [S, D]. */
  const prompt = ({ prompt_ids: ids, keep, images }) => {
    const visual = keep.flatMap((kept, i) => kept.map((row) => [images[i], row]));
    const data = new Float32Array(ids.length * D);
    ids.forEach((id, s) => {
      const [image, row] = id === about.image_token_id ? visual.shift() : [];
      const [from, at] = image ? [features[image - 1], row] : [embeddings, id];
      data.set(from.subarray(at * D, (at + 1) * D), s * D);
    });
    return { data, dims: [ids.length, D] };
  };
  return { ...about, rows, prompt };
}

/** The content of a message with the kept rows of a case. */
export const contentOf = ({ rows, D }, { images, keep, question }, modelType, options) => [
  ...toImageEmbeds(
    images.map((image, i) => rows(image, keep[i])),
    { modelType, hiddenSize: D, dtype: 'fp32', ...options },
  ),
  text(question),
];

export const promptOf = (reference, one, modelType, options) =>
  toPromptEmbeds(reference.prompt(one), { modelType, hiddenSize: reference.D, dtype: 'fp32', ...options });
