import { join } from 'node:path';
import type { InferenceSession } from 'onnxruntime-common';
import { type Abortable, checkAborted, shared, signalOf } from '../abort.js';
import { ASYNC_DISPOSE } from '../dispose-symbols.js';
import { DesapError, invalid, mismatch, naming } from '../errors.js';
import { isFile, readJsonIfThere } from '../files.js';
import type { TextEmbeddings } from '../index.js';
import { sumOfRows } from '../kernels/numeric.js';
import { unitRows } from '../kernels/unit-rows.js';
import { Lifetime } from '../lifetime.js';
import { concatenated } from '../methods/matrix.js';
import { checkSession, type OrtModule, openGraph } from '../onnx/edit.js';
import { POOLED_TEXT, readSiglipText, type SiglipTextStructure, siglipTextGraph } from '../onnx/siglip-text.js';
import { type OptionNames, options } from '../options.js';
import { ortModule } from '../ort.js';
import { float32, nonEmpty, oneOf, type Tensor } from '../tensor.js';
import { traced } from '../trace.js';
import { checkContext, checkText } from './check-text.js';
import { integers } from './clip-text.js';
import { type CheckedFilter, type LongTextChoice, type LongTextOptions, longTextChoice } from './long-text.js';
import { readTextFiles, type TextFiles } from './text-files.js';
import { cosines, type FilteredText, filterWords, frequencies } from './text-filter.js';

/**
 * What the rows of a text are: `pooled`, one row, the embedding of the whole text; `words`, one row for each word that says something,
 * each encoded as a text of its own.
 */
export type SiglipRows = 'pooled' | 'words';
const ROWS: readonly SiglipRows[] = ['pooled', 'words'];

/** Options of {@link SiglipText.open}. */
export interface SiglipTextOptions extends LongTextOptions {
  /** Default `pooled`. */
  readonly text?: SiglipRows;
  /** The onnxruntime-node module; default: the installed one. */
  readonly ort?: OrtModule;
  /** Session options of ONNX Runtime. */
  readonly session?: InferenceSession.SessionOptions;
}

const NAMES: OptionNames<SiglipTextOptions> = {
  ...{ text: true, longText: true, filter: true },
  ...{ ort: true, session: true },
};

/** A text as rows in the space that SigLIP shares between image and text. */
export interface SiglipEncodedText extends TextEmbeddings {
  /** How the words of a text were filtered; absent where they were not. */
  readonly filtered?: FilteredText;
}

const MODELS = ['onnx/text_model.onnx', 'text_model.onnx', 'onnx/model.onnx', 'model.onnx'];

/** Words that are kept between calls. */
const MOST_WORDS = 4096;

/** The context of SigLIP where neither file nor config says another: the default of transformers' SiglipTextConfig. */
const LENGTH = 64;

/**
 * The text tower of a SigLIP or SigLIP2 folder over onnxruntime-node. It was trained on texts padded to its whole context, and reads the
 * last position: a text is always padded. Only whole texts were trained to agree with images; single tokens are not offered.
 */
export class SiglipText {
  readonly #life = new Lifetime('SiglipText');
  readonly #words = new Map<string, Promise<Float32Array>>();

  private constructor(
    private readonly session: InferenceSession,
    private readonly ort: OrtModule,
    private readonly structure: SiglipTextStructure,
    private readonly tokens: Tokens,
    private readonly how: LongTextChoice & { readonly text: SiglipRows },
  ) {}

  /**
   * Opens the text tower and the tokenizer of a folder as Transformers.js has them: `onnx/text_model.onnx`, `tokenizer.json`,
   * `tokenizer_config.json`, `config.json`.
   *
   * @throws DesapError `ERR_FILE`, `ERR_GRAPH` (no text tower), `ERR_MISSING_PACKAGE`, `ERR_VALUE` for the options
   */
  static async open(folder: string, given: SiglipTextOptions = {}): Promise<SiglipText> {
    nonEmpty('folder', folder, 'the folder of a SigLIP');
    const { text = 'pooled', ort, session, ...long } = options('options', given, NAMES);
    oneOf('text', text, ROWS);
    checkFilter(longTextChoice(long), text);
    checkSession(session);
    const runtime = await ortModule(ort, 'encoding text');
    const structure = readSiglipText(await modelFile(folder), 'siglip');
    const tokens = await readTokens(folder, structure);
    const how = longTextChoice(long, tokens.length);
    const opened = await openGraph(runtime, siglipTextGraph(structure), session);
    return new SiglipText(opened, runtime, structure, tokens, { text, ...how });
  }

  /** Tokens that every text is padded to. */
  get contextLength(): number {
    return this.tokens.length;
  }

  /**
   * A text as rows in the space that SigLIP shares between image and text, not normalised: [1, E], the text itself, or with
   * `text: 'words'` [T, E], its words, and the text itself as their end. With `longText: 'filter'` the words that are most like the text;
   * a word is as common as its rarest token.
   *
   * @throws DesapError `ERR_VALUE` for no string, an empty text, one beyond the limit `textBytes`, with `longText: 'error'` one that is
   *   longer than the context, or a frequency beyond 0 to 1; `ERR_DISPOSED`
   */
  async encode(text: string, call?: Abortable): Promise<SiglipEncodedText> {
    const work = async () => {
      checkText('text', text);
      const whole = await this.#whole(text);
      const words = this.how.text === 'words' ? wordsOf(text) : [];
      if (words.length === 0) return { embeddings: float32(whole, [1, whole.length]), endOfText: 0 };
      const rows = await Promise.all(words.map((word) => this.#word(word)));
      const { filter } = this.how;
      if (filter === null || words.length <= filter.maxTokens) return { embeddings: joined(rows), endOfText: whole };
      const filtered = this.#filter(words, joined(rows), whole, filter);
      return { embeddings: joined([...filtered.kept].map((i) => rows[i])), endOfText: whole, filtered };
    };
    return traced('SiglipText.encode', () => this.#life.call(work, signalOf('call', call)));
  }

  /** Of words by themselves each is one row. */
  #filter(words: readonly string[], { data }: Tensor, whole: Float32Array, filter: CheckedFilter): FilteredText {
    const rarest = (word: string) => Math.min(1, ...frequencies(this.tokens.content(word), filter));
    return filterWords(
      cosines(data as Float32Array, whole),
      Float64Array.from(words, rarest),
      words.map((_, i) => ({ from: i, to: i + 1, isSaid: true })),
      { ...filter, budget: filter.maxTokens },
    );
  }

  #word(word: string): Promise<Float32Array> {
    const known = this.#words.get(word) ?? shared(() => this.#whole(word));
    if (this.#words.size >= MOST_WORDS) this.#words.clear();
    this.#words.set(word, known);
    known.catch(() => this.#words.delete(word));
    return known;
  }

  /** The embedding of a text: of one in several parts, the mean of their unit vectors. */
  async #whole(text: string): Promise<Float32Array> {
    const { start, end, length } = this.tokens;
    const content = this.tokens.content(text);
    const room = length - start.length - end.length;
    if (content.length > room && this.how.longText === 'error')
      throw mismatch(
        'ERR_VALUE',
        'text',
        `${content.length + length - room} tokens`,
        `at most ${length} (or longText: 'segment' | 'truncate')`,
      );
    const parts = this.how.longText === 'truncate' ? 1 : Math.max(1, Math.ceil(content.length / room));
    const rows = await Promise.all(
      Array.from({ length: parts }, (_, i) => [...start, ...content.slice(i * room, (i + 1) * room), ...end]).map(
        (ids) => this.#run(ids),
      ),
    );
    if (rows.length === 1) return rows[0];
    const cols = rows[0].length;
    const all = Float32Array.from(rows.flatMap((row) => [...row]));
    const units = naming('text', () => unitRows({ data: all, rows: rows.length, cols }));
    return Float32Array.from(sumOfRows(units));
  }

  async #run(ids: readonly number[]): Promise<Float32Array> {
    checkAborted();
    const { structure, ort, session, tokens } = this;
    const feeds: Record<string, Tensor> = {};
    const feed = ({ name, type }: SiglipTextStructure['ids'], value: (i: number) => number) => {
      feeds[name] = integers(
        ort,
        type,
        Array.from({ length: tokens.length }, (_, i) => value(i)),
      );
    };
    feed(structure.ids, (i) => ids[i] ?? tokens.pad);
    // Training saw padding.
    for (const mask of structure.masks) feed(mask, () => 1);
    for (const positions of structure.positions) feed(positions, (i) => i);
    for (const types of structure.types) feed(types, () => 0);
    const { name } = structure.graph.model;
    const outputs = await session.run(feeds).catch((cause: Error) => {
      const said = cause.message.split('\n').join(' ');
      throw new DesapError('ERR_GRAPH', `${name}: onnxruntime does not run it on ${tokens.length} tokens: ${said}`, {
        cause,
      });
    });
    const { data, dims } = outputs[POOLED_TEXT];
    if (dims.length === 2 && dims[0] === 1) return (data as Float32Array).slice();
    throw new DesapError('ERR_GRAPH', `${name}: got an embedding [${dims.join(', ')}] of a text, wanted [1, E]`);
  }

  /** Releases the session, after the calls under way. Safe to call again. */
  dispose(): Promise<void> {
    return this.#life.end(() => this.session.release());
  }

  [ASYNC_DISPOSE](): Promise<void> {
    return this.dispose();
  }
}

function joined(rows: readonly Float32Array[]): Tensor {
  return float32(concatenated(rows), [rows.length, rows[0].length]);
}

/** @throws DesapError `ERR_VALUE` for what single words have none of */
function checkFilter({ filter }: LongTextChoice, text: SiglipRows): void {
  if (filter === null) return;
  if (text !== 'words') throw invalid('ERR_VALUE', 'text', text, "'words' beside longText: 'filter'");
  const { importance = 'cosine' } = filter;
  oneOf('filter.importance', importance, ['cosine']);
}

/** How a text becomes tokens. */
interface Tokens {
  /** Ids of a text without special tokens. */
  content(text: string): readonly number[];
  /** Special ids around a text. */
  readonly start: readonly number[];
  readonly end: readonly number[];
  readonly pad: number;
  /** Tokens that a text is padded to. */
  readonly length: number;
}

async function modelFile(folder: string): Promise<string> {
  for (const place of MODELS) if (await isFile(join(folder, place))) return join(folder, place);
  const [first, ...others] = MODELS;
  throw new DesapError(
    'ERR_FILE',
    `${join(folder, first)}: got no such file (nor ${others.join(', ')}), wanted the text tower of a SigLIP`,
  );
}

interface TextConfig {
  readonly max_position_embeddings?: number;
  readonly pad_token_id?: number;
}

async function readTokens(folder: string, { contextLength }: SiglipTextStructure): Promise<Tokens> {
  const files = await readTextFiles(folder, 'tokenising text');
  const config = await readJsonIfThere<{ text_config?: TextConfig } & TextConfig>(join(folder, 'config.json'));
  const { max_position_embeddings: positions, pad_token_id: padding } = config?.text_config ?? config ?? {};
  const length = contextLength ?? positions ?? LENGTH;
  const { start, end } = specialTokens(files);
  const pad = padOf(files) ?? padding ?? end[0];
  if (pad === undefined)
    throw new DesapError('ERR_FILE', `${join(folder, 'tokenizer_config.json')}: got no pad_token, wanted one`);
  checkContext(folder, length, start.length + end.length);
  const content = (text: string) => files.tokenizer.encode(text, { add_special_tokens: false }).ids;
  return { content, start, end, pad, length };
}

/** The special tokens that a tokenizer puts in front of a text and behind it. */
function specialTokens({ tokenizer }: TextFiles): Pick<Tokens, 'start' | 'end'> {
  const [text, all] = [false, true].map(
    (special): number[] => tokenizer.encode('a', { add_special_tokens: special }).ids,
  );
  for (let at = 0; at + text.length <= all.length; at++)
    if (text.every((id, i) => all[at + i] === id)) return { start: all.slice(0, at), end: all.slice(at + text.length) };
  return { start: [], end: [] };
}

function padOf({ tokenizer, names }: TextFiles): number | undefined {
  return names.pad_token === undefined ? undefined : tokenizer.token_to_id(names.pad_token);
}

/** Words of one to three letters that say nothing of what an image shows. */
const SILENT = new Set(
  (
    'a an and any are as at be but by can did do for get got had has her him his how i if in is it its let may me my no nor not of off ' +
    'on or our out own per put s say see she so t the too to up us via was we who why yes yet you'
  ).split(' '),
);

/** The words of a text that say something, each once, in lower case. */
function wordsOf(text: string): string[] {
  const words = text.toLowerCase().match(/[\p{L}\p{N}]+(?:['’-][\p{L}\p{N}]+)*/gu) ?? [];
  return [...new Set(words)].filter((word) => !SILENT.has(word));
}
