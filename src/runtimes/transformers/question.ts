import { join } from 'node:path';
import { DesapError, invalid } from '../../errors.js';
import { isFile, readJson } from '../../files.js';
import { optional } from '../../optional.js';

/** A user turn in the prompt formats of current models; the text is the first group. The last match is the last turn. */
const USER_TURNS: readonly RegExp[] = [
  /<\|im_start\|>\s*user\s(.*?)(?:<\|im_end\|>|$)/gs,
  /<\|start_header_id\|>user<\|end_header_id\|>(.*?)(?:<\|eot_id\|>|$)/gs,
  /<start_of_turn>user\s(.*?)(?:<end_of_turn>|$)/gs,
  /<\|user\|>(.*?)(?:<\|end\|>|<\|assistant\|>|$)/gs,
  /\[INST\](.*?)(?:\[\/INST\]|$)/gs,
  /\bUSER:(.*?)(?:\bASSISTANT:|$)/gs,
];

/** The last user turn of a prompt, without the template's words; null when the prompt is in no known format. */
export function lastUserTurn(prompt: string): string | null {
  for (const pattern of USER_TURNS) {
    const turn = [...prompt.matchAll(pattern)].at(-1)?.[1];
    if (turn !== undefined) return turn;
  }
  return null;
}

interface TokenizerFile {
  readonly added_tokens?: readonly { readonly content: string; readonly special?: boolean }[];
}

/** Reads the question out of a prompt's ids, with the tokenizer of the model's folder. */
export class Questions {
  private constructor(
    private readonly tokenizer: {
      encode(text: string, options?: object): { ids: number[] };
      decode(ids: number[], options?: object): string;
    },
    private readonly special: readonly string[],
    /** Whether the chat template writes roles, which a question must not contain. */
    private readonly hasRoles: boolean,
  ) {}

  /** @throws DesapError `ERR_FILE`, `ERR_MISSING_PACKAGE` */
  static async open(folder: string): Promise<Questions> {
    const { Tokenizer } = await optional(
      () => import('@huggingface/tokenizers'),
      '@huggingface/tokenizers',
      'reading the question out of a prompt',
    );
    const file = await readJson<TokenizerFile>(join(folder, 'tokenizer.json'));
    const config = await readJson<{ chat_template?: unknown }>(join(folder, 'tokenizer_config.json'));
    const jinja = join(folder, 'chat_template.jinja');
    const template = JSON.stringify(config.chat_template ?? '') + ((await isFile(jinja)) ? 'role' : '');
    const special = (file.added_tokens ?? []).filter((token) => token.special).map((token) => token.content);
    return new Questions(new Tokenizer(file, config), special, template.includes('role'));
  }

  /**
   * The text of the last user turn: without template, special tokens and image tokens.
   * @throws DesapError `ERR_VALUE` when it cannot be told from the prompt, or is empty
   */
  read(ids: readonly number[], imageToken: number): string {
    const words = ids.filter((id) => id !== imageToken);
    const prompt = this.tokenizer.decode(words, { skip_special_tokens: false });
    const turn = lastUserTurn(prompt) ?? (this.hasRoles ? null : prompt);
    const text = this.special.reduce((rest, token) => rest.replaceAll(token, ' '), turn ?? '').trim();
    if (text !== '') return text;
    throw invalid(
      'ERR_VALUE',
      'query',
      turn === null ? 'a prompt of which the last user turn cannot be told' : 'a last user turn without text',
      'the option query',
    );
  }

  /**
   * Ids of a text without special tokens.
   * @throws DesapError `ERR_VALUE` when there are none
   */
  encode(text: string): number[] {
    const { ids } = this.tokenizer.encode(text, { add_special_tokens: false });
    if (ids.length > 0) return ids;
    throw new DesapError('ERR_VALUE', 'query: got a text without tokens, wanted a question');
  }
}
