import type { InferenceSession } from 'onnxruntime-common';
import { type Abortable, checkAborted, signalOf } from '../abort.js';
import { ASYNC_DISPOSE } from '../dispose-symbols.js';
import { DesapError, invalid, mismatch } from '../errors.js';
import type { NumberMatrix } from '../kernels/numeric.js';
import { Lifetime } from '../lifetime.js';
import { rowsOf } from '../methods/matrix.js';
import { checkSession, type OrtModule, openGraph } from '../onnx/edit.js';
import type { ModelSource } from '../onnx/format/model.js';
import { DataType } from '../onnx/format/proto.js';
import { relativeError } from '../onnx/head/compare.js';
import { toleranceOf } from '../onnx/search/precision.js';
import {
  positionTable,
  readText,
  TEXT_EMBEDDED,
  TEXT_EMBEDDING,
  TEXT_TOKENS,
  type TextStructure,
  textGraph,
} from '../onnx/text.js';
import { TEXT_ATTENDED, TEXT_NORMED, TextAttention } from '../onnx/text-attention.js';
import { type OptionNames, options } from '../options.js';
import { ortModule } from '../ort.js';
import { float32, nonEmpty, type Tensor } from '../tensor.js';
import { traced } from '../trace.js';
import { checkContext, checkText } from './check-text.js';
import { type CheckedFilter, type LongTextChoice, type LongTextOptions, longTextChoice } from './long-text.js';
import { cosines, type FilteredText, filterWords, frequencies, levelled } from './text-filter.js';
import { type ClipTokenizer, openTokenizer } from './tokenizer.js';

/** Where {@link ClipText.open} finds a text tower. */
export interface ClipTextOptions extends LongTextOptions {
  /** A CLIP `text_model.onnx` with projection: path, bytes or model. */
  readonly model: ModelSource;
  /** Path of `tokenizer.json`, or of the folder that holds it. */
  readonly tokenizer: string;
  /** The onnxruntime-node module; default: the installed one. */
  readonly ort?: OrtModule;
  /** Session options of ONNX Runtime. */
  readonly session?: InferenceSession.SessionOptions;
}

const NAMES: OptionNames<ClipTextOptions> = {
  ...{ model: true, tokenizer: true, ort: true, session: true },
  ...{ longText: true, filter: true },
};

/** A text as tokens in the space that CLIP shares between image and text. */
export interface EncodedText {
  /**
   * One row for each token [T, E], not normalised, no padding: from the start token to the end token; for a text that was
   * encoded in windows, its content tokens. Of a text that was filtered, rows of these.
   */
  readonly embeddings: Tensor;
  /** The end-of-text row: its index, or for a text in windows the row itself [E]: the normalised mean of the windows' unit end rows. */
  readonly endOfText: number | Float32Array;
  /** Token ids of the rows. */
  readonly ids: readonly number[];
  /** How a text was filtered; absent where it was not. */
  readonly filtered?: FilteredText;
}

/**
 * A CLIP text tower over onnxruntime-node that hands out every token's embedding in the shared space, where the file
 * itself hands out the end-of-text row only.
 */
export class ClipText {
  readonly #life = new Lifetime('ClipText');

  private constructor(
    private readonly session: InferenceSession,
    private readonly ort: OrtModule,
    private readonly structure: TextStructure,
    private readonly tokenizer: ClipTokenizer,
    /** Tokens that the tower takes at a time, special ones included. */
    readonly contextLength: number,
    private readonly how: LongTextChoice,
    private readonly attention: TextAttention | null,
  ) {}

  /**
   * Opens a text tower and its tokenizer. The graph is edited in memory; one text is run, and its end row has to equal the
   * embedding that the file computes.
   *
   * @throws DesapError `ERR_FILE`, `ERR_GRAPH` (no CLIP text tower, or rows that do not agree), `ERR_MISSING_PACKAGE`,
   *   `ERR_VALUE` for the options
   */
  static async open(given: ClipTextOptions): Promise<ClipText> {
    const { model, tokenizer: path, ort, session: sessionOptions, ...long } = options('options', given, NAMES);
    longTextChoice(long);
    checkSession(sessionOptions);
    nonEmpty('tokenizer', path, 'the path of a tokenizer.json, or of its folder');
    const runtime = await ortModule(ort, 'encoding text');
    const structure = readText(model, 'model');
    const tokenizer = await openTokenizer(path);
    const length = Math.min(
      structure.contextLength ?? Number.POSITIVE_INFINITY,
      tokenizer.maxLength ?? Number.POSITIVE_INFINITY,
    );
    // The special tokens, and one that says something.
    const special = tokenizer.start.length + 2;
    const { name } = structure.graph.model;
    checkContext(name, length, special);
    const fixed = structure.ids.dims?.[1];
    if (typeof fixed === 'number' && fixed > 0) checkContext(name, fixed, special);
    const how = longTextChoice(long, length);
    const needsAttention = how.filter !== null && how.filter.importance !== 'cosine';
    const attention = needsAttention ? await TextAttention.read(runtime, structure) : null;
    const session = await openGraph(runtime, textGraph(structure, attention?.values), sessionOptions);
    const text = new ClipText(session, runtime, structure, tokenizer, length, how, attention);
    try {
      await text.confirm();
    } catch (error) {
      await text.dispose();
      throw error;
    }
    return text;
  }

  /**
   * Encodes one text.
   *
   * @throws DesapError `ERR_VALUE` for no string, an empty text, one beyond the limit `textBytes`, with `longText: 'error'` one that is
   *   longer than the context, or a frequency beyond 0 to 1; `ERR_DISPOSED`
   */
  async encode(text: string, call?: Abortable): Promise<EncodedText> {
    const work = () => this.#encode(text);
    return traced('ClipText.encode', () => this.#life.call(work, signalOf('call', call)));
  }

  async #encode(text: string): Promise<EncodedText> {
    checkText('text', text);
    const { start, end } = this.tokenizer;
    const content = upToEnd(this.tokenizer.content(text), end);
    if (content.length === 0) throw invalid('ERR_VALUE', 'text', text, 'a text with at least one token');
    const { longText, filter } = this.how;
    const special = start.length + 1;
    const room = this.contextLength - special;
    if (content.length > room && longText === 'error')
      throw mismatch(
        'ERR_VALUE',
        'text',
        `${content.length + special} tokens`,
        `at most ${this.contextLength} (or longText: 'segment' | 'truncate')`,
      );
    const windows = longText === 'truncate' ? [content.slice(0, room)] : windowsOf(content, room);
    const parts = await Promise.all(windows.map((window) => this.run([...start, ...window, end])));
    const whole = parts.length === 1 ? alone(parts[0], [...start, ...windows[0], end]) : this.joined(parts, content);
    const budget = (filter?.maxTokens ?? Number.POSITIVE_INFINITY) - special;
    return filter && content.length > budget ? this.filtered(whole, { windows, parts, budget, ...filter }) : whole;
  }

  /** A text in windows: the rows of its content, and the normalised mean of the windows' unit end rows. */
  private joined(parts: readonly Rows[], content: readonly number[]): EncodedText {
    const [{ width }] = parts;
    const sum = new Float64Array(width);
    const rows = new Float32Array(content.length * width);
    let offset = 0;
    for (const part of parts) {
      const endRow = part.rows.subarray(-width);
      const norm = length(endRow);
      for (let c = 0; c < width; c++) sum[c] += endRow[c] / norm;
      const own = part.rows.subarray(this.tokenizer.start.length * width, -width);
      rows.set(own, offset);
      offset += own.length;
    }
    const norm = length(sum);
    return {
      embeddings: float32(rows, [content.length, width]),
      endOfText: Float32Array.from(sum, (value) => value / norm),
      ids: content,
    };
  }

  /** The rows of a text's most important words; what stands for the whole text stays. */
  private filtered(whole: EncodedText, { windows, parts, budget, ...filter }: Filtering): EncodedText {
    const { start, words } = this.tokenizer;
    const { ids, embeddings, endOfText } = whole;
    const [{ width }] = parts;
    const all = embeddings.data as Float32Array;
    const end = typeof endOfText === 'number' ? all.subarray(-width) : endOfText;
    const importance = parts.map((part) => {
      const own = this.attention === null ? cosines(part.rows, end) : this.attention.row(part.normed as NumberMatrix);
      return own.subarray(start.length, -1);
    });
    // A border between windows cuts a word in two.
    const room = windows[0].length;
    const own = windows.flatMap((window, i) =>
      words(window).map(({ from, to, isSaid }) => ({ from: from + i * room, to: to + i * room, isSaid })),
    );
    const common = frequencies(windows.flat(), filter);
    const filtered = filterWords(levelled(importance), common, own, { ...filter, budget });
    const isOne = typeof endOfText === 'number';
    const places = isOne
      ? [...start.keys(), ...filtered.kept.map((j) => j + start.length), endOfText]
      : [...filtered.kept];
    return {
      embeddings: float32(rowsOf({ data: all, cols: width }, places).data, [places.length, width]),
      endOfText: isOne ? places.length - 1 : endOfText,
      ids: places.map((place) => ids[place]),
      filtered,
    };
  }

  /** Runs the tower on one sequence. */
  private async run(ids: readonly number[]): Promise<Rows> {
    checkAborted();
    const { structure, ort, session, tokenizer } = this;
    // An export for one length only takes end tokens as padding; their rows come after the first end and are dropped.
    const fixed = structure.ids.dims?.[1];
    const total = typeof fixed === 'number' && fixed > ids.length ? fixed : ids.length;
    const feeds: Record<string, Tensor> = {};
    const feed = ({ name, type }: TextStructure['ids'], value: (i: number) => number) => {
      const values = Array.from({ length: total }, (_, i) => value(i));
      feeds[name] = integers(ort, type, values);
    };
    feed(structure.ids, (i) => ids[i] ?? tokenizer.end);
    for (const mask of structure.masks) feed(mask, (i) => (i < ids.length ? 1 : 0));
    for (const positions of structure.positions) feed(positions, (i) => i);
    for (const types of structure.types) feed(types, () => 0);
    const outputs = await session.run(feeds).catch((cause: Error) => {
      const { name } = structure.graph.model;
      const text = cause.message.split('\n').join(' ');
      throw new DesapError('ERR_GRAPH', `${name}: onnxruntime does not run it on ${total} tokens: ${text}`, { cause });
    });
    const tokens = outputs[TEXT_TOKENS];
    const width = tokens.dims[1];
    const rows = (tokens.data as Float32Array).slice(0, ids.length * width);
    const picked = outputs[TEXT_EMBEDDING].data as Float32Array;
    const { [TEXT_EMBEDDED]: embedded, [TEXT_NORMED]: normed, [TEXT_ATTENDED]: attended } = outputs;
    // Rows of padding lie behind those of the text.
    const matrixOf = ({ data, dims }: Tensor, cols = dims[dims.length - 1]) => ({
      data: (data as Float32Array).slice(0, ids.length * cols),
      rows: ids.length,
      cols,
    });
    return {
      rows,
      picked,
      width,
      embedded: (embedded?.data as Float32Array | undefined) ?? null,
      normed: normed ? matrixOf(normed) : null,
      attended: attended ? matrixOf(attended) : null,
    };
  }

  /** One text and the same with a token more, checked by what each says of the other and of the file. */
  private async confirm(): Promise<void> {
    const { start, end } = this.tokenizer;
    const [word = end] = upToEnd(this.tokenizer.content('a photo'), end);
    const once = await this.run([...start, word, end]);
    const twice = await this.run([...start, word, word, end]);
    const { graph, readOut } = this.structure;
    const fail = (what: string, error: number, tolerance: number, advice: string) =>
      new DesapError(
        'ERR_GRAPH',
        `${graph.model.name}: ${what}: got a relative error of ${error.toExponential(1)}, wanted at most ${tolerance}. ${advice}`,
      );

    // Rows and embedding are one computation up to the final norm.
    const { width } = once;
    const tolerance = toleranceOf(graph, readOut.projection.output, readOut.norm.output);
    const error = relativeError(once.rows.subarray(-width), once.picked);
    if (!(error <= tolerance))
      throw fail(
        'the projected end-of-text row differs from the file’s own text embedding',
        error,
        tolerance,
        'Tokenizer and model may not belong together',
      );

    // CLIP reads from the left: what follows changes no row.
    const rounding = toleranceOf(graph, readOut.projection.output);
    const shared = (start.length + 1) * width;
    const change = relativeError(twice.rows.subarray(0, shared), once.rows.subarray(0, shared));
    if (!(change <= rounding))
      throw fail('the rows of a text depend on what follows it', change, rounding, 'This is no CLIP text tower');

    // The attention of the end token, by what it makes of the values.
    const { attention } = this;
    if (attention !== null && twice.normed !== null && twice.attended !== null) {
      const { data, cols } = twice.attended;
      const made = relativeError(attention.attended(twice.normed), data.subarray(-cols));
      if (!(made <= attention.tolerance))
        throw fail(
          'the attention of its last block is not the one that was read',
          made,
          attention.tolerance,
          "filter: { importance: 'cosine' } needs none",
        );
    }

    // The same token in two places: what enters the first layer differs by the rows of the position embedding.
    const table = await positionTable(this.structure);
    if (table === null || twice.embedded === null) return;
    const step = (data: ArrayLike<number>, cols: number, at: number) =>
      Float64Array.from({ length: cols }, (_, c) => data[(at + 1) * cols + c] - data[at * cols + c]);
    const [got, wanted] = [twice.embedded, table.data].map((data) => step(data, table.cols, start.length));
    const moved = relativeError(got, wanted);
    if (!(moved <= rounding))
      throw fail(
        'its tokens do not stand at the positions 0, 1, 2, ...',
        moved,
        rounding,
        'Take an export without position_ids',
      );
  }

  /** Releases the session, after the calls under way. Safe to call again. */
  dispose(): Promise<void> {
    return this.#life.end(() => this.session.release());
  }

  [ASYNC_DISPOSE](): Promise<void> {
    return this.dispose();
  }
}

/** What the tower says of one sequence of T tokens. */
interface Rows {
  /** [T, E] */
  readonly rows: Float32Array;
  /** The row that the file itself picks, [E]. */
  readonly picked: Float32Array;
  /** E. */
  readonly width: number;
  /** What enters the first layer, [T, D]; null unless positions are fed. */
  readonly embedded: Float32Array | null;
  /** Rows behind the norm of the last block, and in front of its output projection, [T, D]; null unless its attention is wanted. */
  readonly normed: NumberMatrix | null;
  readonly attended: NumberMatrix | null;
}

/** A text's windows, what the tower says of each, and how many content tokens stay. */
interface Filtering extends CheckedFilter {
  readonly windows: readonly (readonly number[])[];
  readonly parts: readonly Rows[];
  readonly budget: number;
}

/** A text in one window: its end row is the last one. */
function alone({ rows, width }: Rows, ids: readonly number[]): EncodedText {
  return { embeddings: float32(rows, [ids.length, width]), endOfText: ids.length - 1, ids };
}

function windowsOf(content: readonly number[], room: number): number[][] {
  const count = Math.ceil(content.length / room);
  return Array.from({ length: count }, (_, i) => content.slice(i * room, (i + 1) * room));
}

/** Whole numbers as [1, T], in the type that an input has. */
export function integers(ort: OrtModule, type: number, values: readonly number[]): Tensor {
  const dims = [1, values.length];
  if (type === DataType.int64) return new ort.Tensor('int64', BigInt64Array.from(values, BigInt), dims);
  if (type === DataType.bool) return new ort.Tensor('bool', Uint8Array.from(values), dims);
  return new ort.Tensor('int32', Int32Array.from(values), dims);
}

/** CLIP pads with its end token and reads a text up to the first one. */
function upToEnd(ids: readonly number[], end: number): readonly number[] {
  const first = ids.indexOf(end);
  return first < 0 ? ids : ids.slice(0, first);
}

function length(row: Float32Array | Float64Array): number {
  let sum = 0;
  for (const value of row) sum += value * value;
  return Math.sqrt(sum);
}
