import { DesapError, invalid } from '../errors.js';

/** A prompt as text: `{image}` stands for the picture, `{question}` for the question. */
export type PromptForm = string;

/**
 * The form that a folder's chat template gives to one user message with a picture and a text.
 *
 * Chat templates are Jinja programs; this reads two kinds of them without running them: those that write the contents as
 * they stand and then a literal for the answer, and those of LLaVA-1.5 (`USER: ... ASSISTANT:`).
 *
 * @throws DesapError `ERR_FILE` for any other: the caller then gives the form
 */
export function promptForm(template: string | undefined, imageToken: string): PromptForm {
  const written = template?.match(/add_generation_prompt\s*%\}(.*?)\{%-?\s*endif/s)?.[1] ?? '';
  const answer = written.replace(/^\s*\{\{-?\s*(['"])(.*)\1\s*-?\}\}\s*$/s, '$2');
  if (template?.includes(imageToken)) {
    if (/^ ?ASSISTANT: ?$/.test(answer)) return 'USER: {image}\n{question} ASSISTANT:';
    if (answer !== '' && !/[{}]/.test(answer) && !template.includes('role')) return `{image}{question}${answer}`;
  }
  throw new DesapError(
    'ERR_FILE',
    `tokenizer_config.json: got a chat template of an unknown kind, wanted the option prompt, for example 'USER: {image}\\n{question} ASSISTANT:'`,
  );
}

/** The prompt's text, with the model's placeholder for the picture. */
export function writePrompt(form: PromptForm, imageToken: string, question: string): string {
  if (!form.includes('{image}') || !form.includes('{question}'))
    throw invalid('ERR_VALUE', 'prompt', form, 'a text with {image} and {question}');
  return form.replace('{image}', () => imageToken).replace('{question}', () => question);
}
