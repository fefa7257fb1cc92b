import { readFile } from 'node:fs/promises';
import { describe, expect, it } from 'vitest';
import { promptForm, writePrompt } from '../../src/runtimes/prompt.js';

const VICUNA =
  "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}" +
  "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}" +
  "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}{% endfor %}" +
  "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";

describe('promptForm', () => {
  it('reads the template of the example model', async () => {
    const { chat_template } = JSON.parse(await readFile('models/tiny-llava/tokenizer_config.json', 'utf8'));
    expect(promptForm(chat_template, '<image>')).toBe('{image}{question}<ans>');
  });

  it('knows the form of LLaVA-1.5', () => {
    expect(promptForm(VICUNA, '<image>')).toBe('USER: {image}\n{question} ASSISTANT:');
  });

  it.each([
    [undefined],
    ['{% if add_generation_prompt %}<|im_start|>assistant{% endif %}'],
    ["<image>{{ message['role'] }}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"],
  ])('asks for the form where it cannot tell: %s', (template) => {
    expect(() => promptForm(template, '<image>')).toThrow(/option prompt/);
  });
});

describe('writePrompt', () => {
  it('takes the question literally', () => {
    expect(writePrompt('{image}{question}!', '<image>', "what $& is {image} $'?")).toBe(
      "<image>what $& is {image} $'?!",
    );
  });

  it('refuses a form without its parts', () => {
    expect(() => writePrompt('{question}', '<image>', 'x')).toThrow(/\{image\}/);
  });
});
