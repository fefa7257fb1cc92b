import { DesapError, invalid } from '../../errors.js';
import { type ChatTemplate, type ContentPart, type Message, writesParts } from '../../vision/chat-template.js';

/** A prompt as text, with `{image}` and `{question}` in their places. */
export type PromptForm = string;

/** Writes the prompt of a question about an image, with the model's placeholder for the image. */
export type PromptWriter = (question: string) => string;

/**
 * A prompt that the caller gives.
 * @throws DesapError `ERR_VALUE` for a form without its parts
 */
export function formPrompt(form: PromptForm, imageToken: string): PromptWriter {
  if (typeof form !== 'string' || !form.includes('{image}') || !form.includes('{question}'))
    throw invalid('ERR_VALUE', 'prompt', form, 'a text with {image} and {question}');
  const [image, question] = [/\{image\}/, /\{question\}/];
  return (text) => form.replace(image, () => imageToken).replace(question, () => text);
}

/**
 * The preferred template of a folder.
 * @throws DesapError `ERR_FILE` for a folder without one, with the places that were searched
 */
export function requireTemplate(folder: string, [preferred]: readonly ChatTemplate[]): ChatTemplate {
  if (preferred) return preferred;
  throw new DesapError(
    'ERR_FILE',
    `${folder}: got no chat template (in processor_config.json, chat_template.json, chat_template.jinja or tokenizer_config.json), wanted one (of several with names, one that is named default), or the option --prompt, for example 'USER: {image}\\n{question} ASSISTANT:'`,
  );
}

type Medium = Exclude<ContentPart['type'], 'text'>;

/** Contents that mean "an image (or a video), then this text": parts, a text with the placeholder, and parts with such a text. */
const CONTENTS: readonly ((question: string, imageToken: string, medium: Medium) => Message['content'])[] = [
  (text, _, type) => [{ type }, { type: 'text', text }],
  (text, imageToken) => `${imageToken}\n${text}`,
  (text, imageToken) => [{ type: 'text', text: `${imageToken}\n${text}` }],
];

/** A question to try a template with: plain letters, which no template changes. */
const TRIAL = 'desapquestion';

/**
 * The prompt that a folder's own chat template writes for one user message.
 *
 * Templates take contents of different forms, and none says which. The first form is taken with which the template writes the image's
 * placeholder and the question once each.
 *
 * @throws DesapError `ERR_FILE` for a template without such a form
 */
export function templatePrompt(template: ChatTemplate, imageToken: string, medium: Medium = 'image'): PromptWriter {
  let reason = `it does not write ${imageToken} and the question once each`;
  for (const content of CONTENTS) {
    const write: PromptWriter = (question) =>
      template.render([{ role: 'user', content: content(question, imageToken, medium) }], true);
    try {
      const trial = write(TRIAL);
      if (count(trial, imageToken) === 1 && count(trial, TRIAL) === 1 && !writesParts(trial)) return write;
    } catch (error) {
      reason = (error as Error).message;
    }
  }
  throw new DesapError(
    'ERR_FILE',
    `${template.source}: got a chat template that cannot be used (${reason}), wanted one that writes a user's image and text, or the option --prompt, for example 'USER: {image}\\n{question} ASSISTANT:'`,
  );
}

function count(text: string, part: string): number {
  return text.split(part).length - 1;
}
