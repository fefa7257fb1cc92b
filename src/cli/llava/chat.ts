import { join } from 'node:path';
import { DesapError, invalid } from '../../errors.js';
import { readJson } from '../../files.js';
import { readTextFiles } from '../../vision/text-files.js';
import type { TextTokenizer } from '../../vision/text-tokenizer.js';
import type { EncodedImage } from '../../vision/vision-model.js';
import { type GenerationConfig, MAX_NEW_TOKENS, readGeneration } from '../generation.js';
import { formPrompt, type PromptForm, type PromptWriter, requireTemplate, templatePrompt } from './prompt.js';

interface ModelConfig extends GenerationConfig {
  image_token_id?: number;
  image_token_index?: number;
  video_token_id?: number;
  video_token_index?: number;
  text_config?: GenerationConfig;
}

type Medium = EncodedImage['medium'];

/** How one medium stands in prompts: an image, or a video. */
interface Placeholder {
  readonly token: string;
  /** The id of one visual token. */
  readonly id: number;
  readonly write: PromptWriter;
}

/** The text side of a LLaVA folder: questions to token ids, token ids to answers, and which tokens end an answer. */
export class Chat {
  private constructor(
    private readonly tokenizer: TextTokenizer,
    private readonly startToken: string | undefined,
    private readonly placeholder: (medium: Medium) => Placeholder,
    readonly endTokens: ReadonlySet<number>,
    /** Ids that are never generated. */
    readonly suppressed: ReadonlySet<number>,
    readonly maxNewTokens: number,
  ) {}

  /**
   * @param form the prompt's form; default: that of the folder's chat template
   * @throws DesapError `ERR_FILE` for missing files, and for a chat template that is missing or cannot be used; `ERR_VALUE` for a form
   *   without its parts; `ERR_MISSING_PACKAGE`
   */
  static async open(folder: string, form?: PromptForm): Promise<Chat> {
    const path = join(folder, 'config.json');
    const [config, given, { tokenizer, names, templates }] = await Promise.all([
      readJson<ModelConfig>(path),
      readGeneration(folder),
      readTextFiles(folder, 'reading prompts'),
    ]);
    const placeholder = (medium: Medium): Placeholder => {
      const id =
        config[`${medium}_token_id`] ?? config[`${medium}_token_index`] ?? idOf(tokenizer, names[`${medium}_token`]);
      const token = id === undefined ? undefined : tokenizer.id_to_token(id);
      if (id === undefined || token === undefined)
        throw new DesapError(
          'ERR_FILE',
          `${path}: got ${medium}_token_id ${id}, wanted the id of a token of tokenizer.json`,
        );
      const write =
        form === undefined
          ? templatePrompt(requireTemplate(folder, templates), token, medium)
          : formPrompt(form, token);
      return { token, id, write };
    };
    const image = placeholder('image');
    const end =
      given.eos_token_id ??
      config.eos_token_id ??
      config.text_config?.eos_token_id ??
      idOf(tokenizer, names.eos_token) ??
      [];
    return new Chat(
      tokenizer,
      names.bos_token,
      (medium) => (medium === 'image' ? image : placeholder(medium)),
      new Set([end].flat()),
      new Set(given.suppress_tokens ?? []),
      given.max_new_tokens ?? MAX_NEW_TOKENS,
    );
  }

  /**
   * The prompt of a question, with `patches` placeholders for the image or the video, where they begin, and their id.
   * @throws DesapError `ERR_VALUE` for a question with a placeholder of its own; `ERR_FILE` for a folder without placeholder for videos
   */
  prompt(question: string, patches: number, medium: Medium = 'image'): { ids: number[]; at: number; visualId: number } {
    const { token, id: visualId, write } = this.placeholder(medium);
    const text = write(question);
    // As in Hugging Face's processors: no second start token where the template writes one itself.
    const starts = this.startToken !== undefined && text.startsWith(this.startToken);
    const { ids } = this.tokenizer.encode(text, { add_special_tokens: !starts });
    const at = ids.indexOf(visualId);
    if (at < 0 || ids.includes(visualId, at + 1))
      throw invalid('ERR_VALUE', 'question', question, `a question without ${token}`);
    ids.splice(at, 1, ...new Array<number>(patches).fill(visualId));
    return { ids, at, visualId };
  }

  /** The text of generated tokens. */
  text(ids: readonly number[]): string {
    if (ids.length === 0) return '';
    return this.tokenizer.decode([...ids], { skip_special_tokens: true }).trim();
  }
}

function idOf(tokenizer: TextTokenizer, token: string | undefined): number | undefined {
  return token === undefined ? undefined : tokenizer.token_to_id(token);
}
