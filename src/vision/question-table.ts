import type { InferenceSession } from 'onnxruntime-common';
import { invalid } from '../errors.js';
import type { TensorLike, TextEmbeddings } from '../index.js';
import type { OrtModule } from '../onnx/edit.js';
import { float32, floatData, widened } from '../tensor.js';
import { checkQuestion, checkTokens } from './check-text.js';
import { anyOnnx, type Dtype } from './model-folder.js';
import type { QuestionTokens } from './question-filter.js';
import { openSession, runSession } from './session.js';
import { readTextFiles, type TextFiles } from './text-files.js';

const EMBED = { argument: 'question', graph: 'embed_tokens' };

/** A question's token ids as rows of the language model's embedding table: `tokenizer.json` and `embed_tokens.onnx` of a model folder. */
export class QuestionTable {
  private constructor(
    private readonly text: Pick<TextFiles, 'tokenizer' | 'words'>,
    private readonly session: InferenceSession,
    private readonly ort: OrtModule,
  ) {}

  /**
   * @param dtype of the file to take where there are several
   * @throws DesapError `ERR_FILE`, `ERR_MISSING_PACKAGE`
   */
  static async open(
    folder: string,
    { ort, dtype, session }: { ort: OrtModule; dtype?: Dtype; session?: InferenceSession.SessionOptions },
  ): Promise<QuestionTable> {
    const text = await readTextFiles(folder, 'reading questions');
    return new QuestionTable(text, await openSession(await anyOnnx(folder, 'embed_tokens', dtype), session, ort), ort);
  }

  /** @throws DesapError `ERR_VALUE` for a text without tokens, and for one beyond the limits `textBytes` and `promptTokens`; `ERR_GRAPH` */
  async embed(question: string): Promise<QuestionTokens> {
    const ids = this.ids(question);
    const { inputNames, outputNames } = this.session;
    const input = new this.ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]);
    const rows = (await runSession(this.session, EMBED, { [inputNames[0]]: input }))[outputNames[0]];
    return { ...asEmbeddings(rows), ids, words: this.text.words(ids) };
  }

  /**
   * Reads the tokens of a question, and runs nothing.
   * @throws DesapError as {@link QuestionTable.embed}
   */
  ids(question: string): readonly number[] {
    const { ids } = this.text.tokenizer.encode(checkQuestion(question), { add_special_tokens: false });
    if (ids.length === 0) throw invalid('ERR_VALUE', 'question', question, 'a text with at least one token');
    checkTokens('question', ids.length);
    return ids;
  }

  release(): Promise<void> {
    return this.session.release();
  }
}

/** Rows of an embedding table, [1, T, W] in float32 or float16, as a question's. */
export function asEmbeddings(rows: TensorLike): TextEmbeddings {
  return { embeddings: float32(widened(floatData('question', rows)), rows.dims.slice(-2)) };
}
