import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Questions } from '../../src/transformers/question/question.js';
import { cases, PROMPTS, type PromptCase, templates } from '../prompt-cases.js';

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'desap-question-'));
});
afterAll(() => rm(root, { recursive: true }));

/** Reads prompts that are given as text with the questions of a folder. */
class Reader {
  private constructor(
    readonly questions: Questions,
    private readonly tokenizer: Tokenizer,
  ) {}

  /** @param template name of a fixture, or the template itself */
  static async of(name: string, template?: string): Promise<Reader> {
    const folder = await mkdtemp(join(root, 'folder-'));
    await cp(join(PROMPTS, 'tokenizers', name), folder, { recursive: true });
    const own = template && templates.includes(template) ? await templateOf(template) : template;
    if (own !== undefined) await writeFile(join(folder, 'chat_template.jinja'), own);
    const read = async (file: string) => JSON.parse(await readFile(join(folder, file), 'utf8'));
    const tokenizer = new Tokenizer(await read('tokenizer.json'), await read('tokenizer_config.json'));
    return new Reader(await Questions.open(folder), tokenizer);
  }

  read(prompt: string, image = '<image>'): string {
    const { ids } = this.tokenizer.encode(prompt, { add_special_tokens: !/^<(s|bos)>/.test(prompt) });
    return this.questions.read(ids, this.tokenizer.token_to_id(image)!);
  }
}

function templateOf(name: string): Promise<string> {
  return readFile(join(PROMPTS, 'templates', `${name}.jinja`), 'utf8');
}

const REFUSED = { code: 'ERR_VALUE', message: expect.stringMatching(/^question: .*the option question/) };

/** A system text is not marked in these, so that a paragraph of the user's could be one. */
const UNMARKED: Record<string, (one: PromptCase) => boolean> = {
  'mistral-v3': ({ kind, words }) => kind.startsWith('system') || words.includes('\n\n'),
  'gemma-parts': ({ kind, words }) => kind === 'system' || (kind === 'one turn' && words.includes('\n\n')),
};

describe('the user’s words in prompts of Hugging Face’s processor', () => {
  it.each(templates)('%s', async (template) => {
    const own = cases.filter((one) => one.template === template);
    const { questions } = await Reader.of(own[0].tokenizer, template);
    for (const one of own) {
      const read = () => questions.read(one.ids, one.image);
      if (UNMARKED[template]?.(one)) expect(read, JSON.stringify(one)).toThrow(/question: .*system text/);
      // Phi's tokens take the blank behind them: it is not among the ids.
      else expect(read(), one.kind).toBe(template === 'phi-3' ? one.words.replace(/(<\|user\|>) /, '$1') : one.words);
    }
    expect(own.length).toBeGreaterThan(10);
  });

  it('whatever the words are: no template’s own, and none of another’s', () => {
    const kinds = new Set(cases.map(({ kind }) => kind));
    expect([...kinds].sort()).toEqual([
      'one turn',
      'special tokens as words',
      'system',
      'system, three turns',
      'two turns',
    ]);
  });
});

describe('prompts that were written by hand', () => {
  it.each([
    ['an image in front', '<image>\nUSER: what is it?\nASSISTANT:', 'what is it?'],
    ['lines', 'USER: <image>\nwhat is it?\nASSISTANT:', 'what is it?'],
    ['a system text', 'A chat.\nUSER: <image>\nwhat is it?\nASSISTANT:', 'what is it?'],
    ['a system text on the line', 'A chat. USER: <image>\nwho is the USER: bob? ASSISTANT:', 'who is the USER: bob?'],
    ['end tokens', '<s>USER: <image>\nwhat? ASSISTANT: this</s>USER: and that? ASSISTANT:', 'and that?'],
    ['no end tokens', 'USER: <image>\nwhat? ASSISTANT: this USER: and that? ASSISTANT:', 'and that?'],
    ['several lines', 'USER: <image>\nwhat?\nASSISTANT: this\nUSER: and that?\nASSISTANT:', 'and that?'],
    ['an inch', 'USER: <image>\nis it 5" tall? ASSISTANT: yes USER: and wide? ASSISTANT:', 'and wide?'],
    ['inches and end tokens', 'USER: <image>\n5" tall? ASSISTANT: 5"</s>USER: and wide? ASSISTANT:', 'and wide?'],
    [
      'end tokens, and words like roles',
      'USER: <image>\nwho? ASSISTANT: it says USER: bob</s>USER: is USER: bob there? ASSISTANT:',
      'is USER: bob there?',
    ],
    [
      'end tokens, and a conversation as words',
      'USER: <image>\nwho? ASSISTANT: bob</s>USER: is ASSISTANT: a USER: b right? ASSISTANT:',
      'is ASSISTANT: a USER: b right?',
    ],
    ['roles without blanks', 'USER: <image>\nis ASSISTANT:a USER:b right? ASSISTANT:', 'is ASSISTANT:a USER:b right?'],
    ['an end token in front', 'USER: <image>\n</s> is what? ASSISTANT:', '</s> is what?'],
    ['two images', 'USER: <image>\nthe left<image>or the right? ASSISTANT:', 'the left or the right?'],
    ['the image behind', 'USER: what is it?\n<image> ASSISTANT:', 'what is it?'],
    ['a beginning of the answer', 'USER: <image>\nwhat is it? ASSISTANT: It is', 'what is it?'],
    ['no answer asked for', 'USER: <image>\nwhat is it?', 'what is it?'],
    ['the end of an answer in front', 'it is a star</s>USER: <image>\nand that? ASSISTANT:', 'and that?'],
    [
      'a pasted log',
      'USER: <image>\nis\nUSER: a\nASSISTANT: b\nUSER: c\nright? ASSISTANT:',
      'is\nUSER: a\nASSISTANT: b\nUSER: c\nright?',
    ],
    ['another format', '[INST] <image>\nwhat is it? [/INST]', 'what is it?'],
    ['another format with a system text', '<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\nwhat? [/INST]', 'what?'],
  ])('LLaVA-1.5, %s', async (_, prompt, words) => {
    expect((await Reader.of('llama', 'llava-1.5')).read(prompt)).toBe(words);
  });

  it.each([
    [
      'no line ends',
      '<|im_start|>system\nAnswer.<|im_end|><|im_start|>user\n<image>\nwhat?<|im_end|><|im_start|>assistant\n',
      'what?',
    ],
    [
      'an answer begun',
      '<|im_start|>user\n<image>what?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n',
      'what?',
    ],
    [
      'an answer in front',
      ' star.<|im_end|>\n<|im_start|>user\n<image>what?<|im_end|>\n<|im_start|>assistant\n',
      'what?',
    ],
    [
      'two user turns',
      '<|im_start|>user\n<image><|im_end|>\n<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n',
      'what?',
    ],
    ['a finished answer', '<|im_start|>user\n<image>what?<|im_end|>\n<|im_start|>assistant\nthis<|im_end|>\n', 'what?'],
    ['no answer asked for', '<|im_start|>user\n<image>\nwhat?<|im_end|>\n', 'what?'],
    ['no end', '<|im_start|>user\n<image>\nwhat?', 'what?'],
    [
      'a typed answer',
      '<|im_start|>user\n<image>a<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>assistant\n',
      'a<|im_end|>\n<|im_start|>assistant\nb',
    ],
  ])('ChatML, %s', async (_, prompt, words) => {
    for (const template of ['chatml-text', 'llava-onevision'])
      expect((await Reader.of('chatml', template)).read(prompt), template).toBe(words);
  });

  it.each([
    ['llama', 'USER: <image>\nwhat? ASSISTANT: this</s>USER: and "ASSISTANT: x"? ASSISTANT:', 'and "ASSISTANT: x"?'],
    [
      'chatml',
      '<|im_start|>system\nhelp<|im_end|>\n<|im_start|>user\n<|vision_start|><image><|vision_end|>what?<|im_end|>\n<|im_start|>assistant\n',
      'what?',
    ],
    ['llama', '<s>[INST] <image>\nfirst [/INST] answer</s>[INST] second [/INST]', 'second'],
    [
      'llama3',
      '<|start_header_id|>user<|end_header_id|>\n\n<image>what?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n',
      'what?',
    ],
    ['gemma', '<start_of_turn>user\n<image>what?<end_of_turn>\n<start_of_turn>model\n', 'what?'],
    ['phi', '<|user|>\n<image>what?<|end|>\n<|assistant|>\n', 'what?'],
    ['llama', '<image>\n\nQuestion: what?\n\nAnswer:', 'what?'],
    ['gemma', '<image><bos>answer en what?', 'answer en what?'],
  ])('a folder without template (%s): %s', async (tokenizer, prompt, words) => {
    expect((await Reader.of(tokenizer)).read(prompt)).toBe(words);
  });

  it('templates that take parts from users and texts from assistants, without blanks behind roles', async () => {
    const template =
      "{% for m in messages %}{% if m['role'] == 'user' %}Q:{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}" +
      "{% endif %}{% endfor %}\n{% else %}A:{{ m['content'].strip() }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}";
    const reader = await Reader.of('chatml', template);
    expect(reader.read('Q:<image>what?\nA:this\nQ:and "A:that"?\nA:')).toBe('and "A:that"?');
  });

  it('letters for private use are no special tokens', async () => {
    const prompt = '<|im_start|>user\n<image>a \u{f0002} b<|im_end|>\n<|im_start|>assistant\n';
    expect((await Reader.of('chatml', 'chatml-text')).read(prompt)).toBe('a \ufffd b');
  });

  it('a beginning that changes from day to day', async () => {
    const dated = (await templateOf('llama-3')).replace(
      '{% for',
      "<|start_header_id|>system<|end_header_id|>\n\nToday: {{ strftime_now('%d %b %Y') }}<|eot_id|>{% for",
    );
    const head = (role: string) => `<|start_header_id|>${role}<|end_header_id|>\n\n`;
    const prompt = `${head('system')}Today: 01 Jan 2001<|eot_id|>${head('user')}<image>\nwhat?<|eot_id|>${head('assistant')}`;
    expect((await Reader.of('llama3', dated)).read(prompt)).toBe('what?');
  });

  it('what processors write around images is nobody’s word', async () => {
    const gemma = await Reader.of('gemma', 'gemma-parts');
    const turn = (text: string) => `<bos><start_of_turn>user\n${text}<end_of_turn>\n<start_of_turn>model\n`;
    expect(gemma.read(turn('\n\n<image><image>\n\nwhat?'))).toBe('what?');
    expect(() => gemma.read(turn('Be brief.\n\n\n\n<image><image>\n\nwhat?'))).toThrow(/system text/);
    const smol = await Reader.of('smol', 'smolvlm');
    const tiles = '<fake_token_around_image><image><image>\n<fake_token_around_image><image><fake_token_around_image>';
    expect(smol.read(`<|im_start|>User:${tiles}what?<end_of_utterance>\nAssistant:`)).toBe('what?');
  });
});

describe('is not guessed', () => {
  it.each([
    ['a conversation in quotation marks', 'USER: <image>\nis "a ASSISTANT: b USER: c" right? ASSISTANT:'],
    [
      'a conversation that an answer quotes',
      'USER: <image>\nwhat? ASSISTANT: “a USER: b” ASSISTANT: c USER: d? ASSISTANT:',
    ],
    ['an answer that names the user', 'USER: <image>\nwhat? ASSISTANT: a USER: b. USER: and that? ASSISTANT:'],
    ['two answers begun', 'USER: <image>\nwhat? ASSISTANT: a ASSISTANT: b'],
    ['a mention of the user', 'tell me about USER: <image> things'],
    ['a word that ends like a role', 'superUSER: <image>\nwhat? ASSISTANT:'],
    ['no known format', 'Frage: <image> was? Antwort:'],
    ['no text', 'USER: <image>\n ASSISTANT:'],
  ])('%s', async (_, prompt) => {
    const reader = await Reader.of('llama', 'llava-1.5');
    expect(() => reader.read(prompt)).toThrow(expect.objectContaining(REFUSED));
  });

  it('by a template that does not write the user’s text', async () => {
    const reader = await Reader.of('chatml', "{{ messages[0]['role'] }}");
    expect(() => reader.read('<image>what?')).toThrow(expect.objectContaining(REFUSED));
    const chat = '<|im_start|>user\n<image>what?<|im_end|>\n<|im_start|>assistant\n';
    expect(reader.read(chat)).toBe('what?');
    expect((await Reader.of('chatml', 'no-roles')).read(chat)).toBe('what?');
  });
});
