import { describe, expect, it } from 'vitest';
import { formPrompt, templatePrompt } from '../../src/cli/llava/prompt.js';
import type { ChatTemplate, Message } from '../../src/vision/chat-template.js';

describe('formPrompt', () => {
  it('takes the question literally', () => {
    expect(formPrompt('{image}{question}!', '<image>')("what $& is {image} $'?")).toBe(
      "<image>what $& is {image} $'?!",
    );
  });

  it.each([['{question}'], ['{image}'], [5 as never]])('refuses a form without its parts: %s', (form) => {
    expect(() => formPrompt(form, '<image>')).toThrow(/^prompt: .*\{image\}/);
  });
});

describe('templatePrompt', () => {
  const template = (render: (messages: readonly Message[], asked: boolean) => string): ChatTemplate => ({
    source: 'folder/chat_template.jinja',
    render,
  });
  const parts = ([{ content }]: readonly Message[]) =>
    (content as { type: string; text?: string }[]).map((part) => part.text ?? '<image>').join('');

  it('hands parts to a template that writes them', () => {
    const write = templatePrompt(
      template((messages, asked) => `${parts(messages)}${asked ? '<ans>' : ''}`),
      '<image>',
    );
    expect(write('what?')).toBe('<image>what?<ans>');
  });

  it('hands a text to a template that wants one', () => {
    const write = templatePrompt(
      template(([{ content }]) => `USER: ${(content as string).trim()} ASSISTANT:`),
      '<image>',
    );
    expect(write('what?')).toBe('USER: <image>\nwhat? ASSISTANT:');
  });

  it('is not taken in by a template that prints a list as it stands', () => {
    const printed = template(([{ content }]) =>
      Array.isArray(content) ? `<image>${JSON.stringify(content)}` : `${content}`,
    );
    expect(templatePrompt(printed, '<image>')('what?')).toBe('<image>\nwhat?');
  });

  it('writes the placeholder into the text where a template writes texts of parts only', () => {
    const texts = template((messages) => parts(messages).replace(/^<image>(?!\n)/, ''));
    expect(templatePrompt(texts, '<image>')('what?')).toBe('<image>\nwhat?');
  });

  it.each([
    ['no question', () => '<image>', /once each/],
    ['no image', () => 'desapquestion', /once each/],
    [
      'nothing for a user',
      () => {
        throw new Error('only tools');
      },
      /only tools/,
    ],
  ])('refuses a template that writes %s, by its file', (_, render, reason) => {
    expect(() => templatePrompt(template(render), '<image>')).toThrow(
      /^folder\/chat_template\.jinja: .*option --prompt/,
    );
    expect(() => templatePrompt(template(render), '<image>')).toThrow(reason);
  });
});
