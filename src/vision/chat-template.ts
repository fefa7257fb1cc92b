import { join } from 'node:path';
import { Template } from '@huggingface/jinja';
import { isFile, readJsonIfThere, readText } from '../files.js';

/** A part of a message, as the templates of processors take it. */
export type ContentPart = { readonly type: 'image' | 'video' } | { readonly type: 'text'; readonly text: string };

export interface Message {
  readonly role: 'system' | 'user' | 'assistant';
  /** Templates of processors take parts, those of plain tokenizers a text. */
  readonly content: string | readonly ContentPart[];
}

/** Writes a conversation as the text that a model was trained on. */
export interface ChatTemplate {
  /** The file that holds it, for errors. */
  readonly source: string;
  /**
   * @param asked whether the beginning of an answer follows (`add_generation_prompt`)
   * @throws Error what the template itself raises, for example for roles that it does not take
   */
  render(messages: readonly Message[], asked: boolean): string;
}

/** A template as JSON files hold it: one text, or several with names. */
type Stored = string | null | Record<string, string> | readonly { name: string; template: string }[];

/**
 * The chat templates of a model folder, in the order in which Hugging Face's processors and tokenizers prefer them:
 * `processor_config.json`, `chat_template.json`, `chat_template.jinja` (of `additional_chat_templates/` the one named default), and
 * `tokenizer_config.json`. Of several with names it is the one named `default`.
 *
 * @param names special tokens by the names that templates use: `bos_token` and so on
 * @throws DesapError `ERR_FILE` for a file that is not JSON
 */
export async function chatTemplates(folder: string, names: Readonly<Record<string, string>>): Promise<ChatTemplate[]> {
  const made = (path: string, text: unknown) =>
    typeof text === 'string' && text !== '' ? new JinjaTemplate(path, text, names) : null;
  const inJson = async (name: string): Promise<ChatTemplate | null> => {
    const path = join(folder, name);
    const stored = (await readJsonIfThere<{ chat_template?: Stored }>(path))?.chat_template;
    return made(path, defaultOf(stored ?? null));
  };
  const inFile = async (name: string): Promise<ChatTemplate | null> => {
    const path = join(folder, name);
    return made(path, (await isFile(path)) ? await readText(path) : null);
  };
  const found = [
    await inJson('processor_config.json'),
    await inJson('chat_template.json'),
    (await inFile('chat_template.jinja')) ?? (await inFile(join('additional_chat_templates', 'default.jinja'))),
    await inJson('tokenizer_config.json'),
  ];
  return found.filter((template) => template !== null);
}

function defaultOf(stored: Stored): string | null {
  if (stored === null || typeof stored === 'string') return stored;
  if (Array.isArray(stored)) return stored.find((one) => one?.name === 'default')?.template ?? null;
  return (stored as Record<string, string>).default ?? null;
}

class JinjaTemplate implements ChatTemplate {
  #program: Template | null = null;

  constructor(
    readonly source: string,
    private readonly text: string,
    private readonly names: Readonly<Record<string, string>>,
  ) {}

  render(messages: readonly Message[], asked: boolean): string {
    // Line ends are \n in Jinja, whatever the file's own are.
    this.#program ??= new Template(this.text.replace(/\r\n?/g, '\n'));
    return this.#program.render({
      messages,
      add_generation_prompt: asked,
      tools: null,
      documents: null,
      ...this.names,
    });
  }
}

/** Whether a template that takes contents as a text was given parts, and printed them as they are. */
export function writesParts(rendered: string): boolean {
  return /(["'])type\1\s*:/.test(rendered);
}
