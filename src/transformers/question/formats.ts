import type { ChatTemplate, Message } from '../../vision/chat-template.js';

/**
 * The prompt formats that are in common use, for folders that have no chat template and for prompts that were written by hand in
 * another format than the template's.
 */
export const FORMATS: readonly ChatTemplate[] = [
  // ChatML
  format((role, text) => `<|im_start|>${role}\n${text}<|im_end|>\n`, '<|im_start|>assistant\n'),
  // Llama 3
  format((role, text) => `${llama3(role)}${text}<|eot_id|>`, '<|start_header_id|>assistant<|end_header_id|>\n\n'),
  // Gemma
  format(
    (role, text) => `<start_of_turn>${role === 'assistant' ? 'model' : role}\n${text}<end_of_turn>\n`,
    '<start_of_turn>model\n',
  ),
  // Phi-3
  format((role, text) => `<|${role}|>\n${text}<|end|>\n`, '<|assistant|>\n'),
  { source: 'Llama 2 and Mistral', render: inst },
  // Vicuna
  format((role, text) => `${role === 'system' ? '' : `${role.toUpperCase()}: `}${text} `, 'ASSISTANT:'),
  // Moondream
  format((role, text) => `${QUESTION[role]}${text}\n\n`, 'Answer:'),
];

const QUESTION = { system: '', user: 'Question: ', assistant: 'Answer: ' };

function llama3(role: string): string {
  return `<|start_header_id|>${role}<|end_header_id|>\n\n`;
}

/** The system text stands inside of the first user turn. */
function inst(messages: readonly Message[]): string {
  let [text, system] = ['', ''];
  for (const { role, content } of messages) {
    if (role === 'system') system = `<<SYS>>\n${content}\n<</SYS>>\n\n`;
    else if (role === 'assistant') text += ` ${content}</s>`;
    else text += `[INST] ${system}${content} [/INST]`;
    if (role === 'user') system = '';
  }
  return text;
}

/** A template that writes each message alike, and `answer` where an answer is asked for. */
function format(write: (role: Message['role'], text: string) => string, answer: string): ChatTemplate {
  return {
    source: 'a common format',
    render: (messages, asked) =>
      messages.map(({ role, content }) => write(role, content as string)).join('') + (asked ? answer : ''),
  };
}
