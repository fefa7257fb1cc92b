// LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision: rows of any count, and whole prompts.
import { readFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { checkUsage } from 'desap/serving';
import { oneAtATime } from '../../examples/openai/gate.mjs';
import { chat, compared, completion, contentOf, picture, post, promptOf, streamed, text } from './client.mjs';

const KEPT = ['k1', 'k7', 'k16', 'k16_other_question', 'k16_other_rows', 'k16_reversed', 'two_equal'];
const FORMS = ['torch bf16', 'torch fp16', 'npy fp32', 'npy fp16'];
const FIXTURES = new URL('../fixtures/vllm/', import.meta.url);

/** What every server of the kind has to do. */
export async function rowsAndPrompts(base, folder, reference, modelType) {
  const { cases } = reference;
  const found = [];
  const add = async (name, answer, one) => found.push(compared(name, await answer, one));
  await add('the picture itself (image_url)', chat(base, [picture(folder, 1), text(cases.full.question)]), cases.full);
  const send = (one, options) => chat(base, contentOf(reference, one, modelType, options));
  await add(`all ${reference.P} rows, torch fp32`, send(cases.full), cases.full);
  for (const name of KEPT) await add(`${name}, torch fp32`, send(cases[name]), cases[name]);
  for (const form of FORMS) {
    const [format, dtype] = form.split(' ');
    await add(`k16, ${form}`, send(cases.k16, { format, dtype }), cases.k16);
  }
  for (const name of ['k16', 'full'])
    await add(`${name}, whole prompt fp32`, completion(base, promptOf(reference, cases[name], modelType)), cases[name]);
  const answer = await send(cases.k16);
  checkUsage(answer, cases.k16.prompt_tokens);
  return found;
}

/** Many requests at one time. */
export async function together(base, reference, modelType) {
  const same = Array.from({ length: 30 }, (_, i) => reference.cases[KEPT[2 + (i % 4)]]);
  const content = (one) => contentOf(reference, one, modelType);
  const gate = oneAtATime();
  return [
    await atOnce('30 at once, one K', same, (one) => chat(base, content(one))),
    await atOnce('30 at once, 30 different K, whole prompts', reference.many, (one) =>
      completion(base, promptOf(reference, one, modelType)),
    ),
    await atOnce('30 different K through the gate', reference.many, (one) => gated(gate, base, content(one))),
  ];
}

export const different = async (base, reference, modelType) => [
  await atOnce('30 at once, 30 different K, with the plugin', reference.many, (one) =>
    chat(base, contentOf(reference, one, modelType)),
  ),
];

/** The last case: different K at one time end the engine, and the server with it. */
export async function differentEnd(base, reference, modelType, hasEnded) {
  const send = (one) => chat(base, contentOf(reference, one, modelType));
  const answers = await Promise.all(reference.many.map(send));
  for (let waited = 0; waited < 60 && !hasEnded(); waited++) await setTimeout(1000);
  const failed = answers.filter(({ error }) => error !== null);
  const said = `${failed.length} of ${answers.length} requests failed: ${failed[0]?.status} ${failed[0]?.error.slice(0, 60)}`;
  return [{ name: '30 at once, 30 different K, without the plugin: the server ends', right: hasEnded(), said }];
}

/** The requests that the stand-in of the tests is measured by, answered as they were. */
export async function replayed(base, prefixes) {
  const { cases } = JSON.parse(readFileSync(new URL('expected.json', FIXTURES), 'utf8'));
  const found = [];
  for (const { name, path, status, prompt_tokens: tokens } of cases.filter(({ name }) =>
    prefixes.some((prefix) => name.startsWith(prefix)),
  )) {
    const answer = await post(base, path, JSON.parse(readFileSync(new URL(`requests/${name}.json`, FIXTURES), 'utf8')));
    const right = answer.status === status && answer.usage?.prompt_tokens === tokens;
    found.push({
      name: `again: ${name}`,
      right,
      said: `${answer.status}${answer.error ? ` ${answer.error.slice(0, 80)}` : ''}`,
    });
  }
  return found;
}

async function atOnce(name, list, send) {
  const start = performance.now();
  const answers = await Promise.all(list.map(send));
  const seconds = (performance.now() - start) / 1000;
  const each = answers.map((answer, i) => compared(name, answer, list[i]));
  const right = each.filter((one) => one.right);
  const apart = Math.max(0, ...right.map((one) => one.apart));
  return {
    name,
    right: right.length === list.length,
    ids: `${right.length} of ${list.length} requests`,
    apart,
    said: each.find((one) => !one.right)?.said ?? `${seconds.toFixed(1)} s`,
  };
}

/** A streamed answer, through the gate. */
async function gated(gate, base, content) {
  const answer = { status: 200, error: null, ids: [], logprobs: [], usage: null };
  try {
    for await (const { choices, usage } of gate(() => streamed(base, content))) {
      answer.ids.push(...(choices[0]?.token_ids ?? []));
      answer.logprobs.push(...(choices[0]?.logprobs?.content ?? []).map(({ logprob }) => logprob));
      answer.usage = usage ?? answer.usage;
    }
    return answer;
  } catch (error) {
    return { status: 0, error: String(error.cause ?? error) };
  }
}
