import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { DEVICE_OPTIONS, deviceOptions } from '../devices/open.js';
import { invalid, mismatch } from '../errors.js';
import {
  type AnalyzeOptions,
  type Backend,
  BlockHead,
  type DeviceOptions,
  openBackend,
  type Pruner,
  type TextEmbeddings,
} from '../index.js';
import { Once } from '../once.js';
import { FEATURES, HIDDEN } from '../onnx/block-values.js';
import { relativeError } from '../onnx/head/compare.js';
import { confirmBlock } from '../onnx/head/confirm-block.js';
import { type EditedGraph, type OrtModule, openGraph } from '../onnx/index.js';
import { readLastBlock } from '../onnx/last-block.js';
import { type OptionNames, options } from '../options.js';
import { ortModule } from '../ort.js';
import { encodingOf } from '../pruner.js';
import { nonEmpty, object, oneOf } from '../tensor.js';
import { BlockBatch } from './block-batch.js';
import type { BlockFamily, EncoderFacts, EncoderRun, Feed, TiledInput, TileRows } from './block-family.js';
import { BlockImage } from './block-image.js';
import { type BlockEngine, type BlockRun, type HiddenRows, type Outputs, splitRun, wholeRun } from './block-run.js';
import { BlockTile } from './block-tile.js';
import type { BlockTilesImage } from './block-tiles-image.js';
import { blockTrials } from './block-trials.js';
import { checkQuestion } from './check-text.js';
import { confirmFeatures, runTrials, type Sample } from './file-features.js';
import { hostMemory } from './host-memory.js';
import { plainLayout } from './layout.js';
import { type CheckedFilter, type LongText, type LongTextOptions, longTextChoice } from './long-text.js';
import { LookedBlocks } from './looked-blocks.js';
import { VisionModelBase } from './model-base.js';
import { DTYPES, type Dtype, folderOf, type ModelConfig, readConfig } from './model-folder.js';
import { checkShared } from './model-options.js';
import { filteredQuestion, type QuestionTokens } from './question-filter.js';
import { QuestionTable } from './question-table.js';
import { allOrNone, atRest, openSession, type RunNames, runSession } from './session.js';
import { openFit, type SiglipOptions, siglipOptions } from './siglip-options.js';
import { SiglipText } from './siglip-text.js';
import { refuseTiles, type TileChoice, type TileOptions, takesAll, tileChoice, VIEW_RULES } from './tile-options.js';
import { tilesOfView } from './tile-rules.js';
import { floats } from './trial.js';
import type { Budget, ImageMarks, InputNames, VisionInputs } from './vision-model.js';

export interface BlockVisionOptions extends DeviceOptions, Budget, LongTextOptions, Pick<AnalyzeOptions, 'encoding'> {
  /**
   * The model's folder, which holds `config.json`, and for questions `tokenizer.json` and `onnx/embed_tokens.onnx`; default: the one
   * that the encoder lies in.
   */
  model?: string;
  /** The model's config; default: `config.json` of its folder. */
  config?: ModelConfig;
  /** The form of the embedding table to prefer where the folder has several; default `fp32`. */
  dtype?: Dtype;
  /**
   * A question as rows of the language model's embedding table; default: by tokenizer and table of the folder. `longText: 'filter'` wants
   * its ids and words too.
   */
  embedQuestion?: (question: string) => Promise<TextEmbeddings | QuestionTokens>;
  /**
   * What happens to long questions in the language model's space, which has no context to be too long for: `segment` (default), nothing;
   * `filter`, as {@link LongText} says, by `cosine`. Questions in SigLIP's space have these options in `siglip`.
   */
  readonly longText?: LongText;
  /**
   * How questions and images are matched: `llm` (default), in the language model's embedding space; `siglip`, in that of the SigLIP that the
   * encoder is, by the value path of its pooling head, with `embedQuestion` left out. No accuracy is claimed for either.
   */
  task?: 'llm' | 'siglip';
  /** The SigLIP's folder, or more about it; with `task: 'siglip'`. */
  siglip?: string | SiglipOptions;
  /** Idefics3, SmolVLM, LFM2-VL: which tiles are encoded beside the whole view; default: all. */
  tiles?: TileOptions;
  /** A pruner that is open already: its device is used, and stays the caller's. */
  pruner?: Pruner;
  /** Session options of ONNX Runtime, for every session; default: its own, with threads that do not spin between runs. */
  session?: InferenceSession.SessionOptions;
  /** The onnxruntime-node module; default: the installed one. */
  ort?: OrtModule;
}

export const BLOCK_OPTIONS: OptionNames<BlockVisionOptions> = {
  ...DEVICE_OPTIONS,
  ...{ model: true, config: true, dtype: true, embedQuestion: true, pruner: true, keep: true, keepRatio: true },
  ...{ encoding: true, task: true, siglip: true, longText: true, filter: true, session: true, ort: true, tiles: true },
};
const RENAMED = { modelDir: 'model' };

const GRAPH = 'the vision encoder';

/** @internal What an open model is made of. */
export interface BlockParts extends BlockEngine {
  readonly family: BlockFamily;
  readonly tower: InferenceSession;
  readonly config: ModelConfig;
  /** SigLIP's read-out and its text tower, where that is how questions are matched. */
  readonly readOut: (NonNullable<BlockEngine['readOut']> & { readonly text: SiglipText }) | null;
  readonly filter: CheckedFilter | null;
  /** null: all of an image is encoded at once. */
  readonly choice: TileChoice | null;
  readonly options: BlockVisionOptions & { readonly model: string };
}

/**
 * A vision encoder with a last block of its own and without class token, with pruning, over onnxruntime-node. The unit of pruning is a
 * visual token: a patch, or the patches that the connector joins.
 *
 * The file is opened as it is, and hands out the hidden states in front of its last block. That block's decoupled attention and saliency
 * are the package's kernels'. The paper does not say what the task signal of such a model is. Here: the attention through the
 * connector, so that it lies in the language model's space (A_d), against the language model's own embeddings of the question (S);
 * both sides' global vectors are normalised means. `taskShare: 0` leaves it out.
 */
export class BlockVision extends VisionModelBase<BlockImage | BlockTilesImage> {
  readonly #parts: BlockParts;
  readonly #table = new Once<QuestionTable>();
  readonly #several = new Once<boolean>();
  /** Extents of the hidden states for the extents of each input so far. */
  readonly #hidden = new Map<string, readonly number[]>();
  readonly #facts: EncoderFacts;

  /** @internal */
  constructor(parts: BlockParts) {
    const { family, encoder, options } = parts;
    super(new.target.name, family.name, encoder.tolerance, { keep: options.keep, keepRatio: options.keepRatio });
    this.#parts = parts;
    this.#facts = {
      config: parts.config,
      inputs: encoder.inputs,
      several: (both, alone) => this.#takesSeveral(both, alone),
    };
  }

  /**
   * Opens the encoder, and checks on trial images that its parts compute what the file by itself computes. The file runs first, and is
   * closed before the encoder is opened: memory holds the weights once.
   *
   * @internal
   * @param file path of a vision encoder
   * @param isBeside whether the caller has an open session of the file to compare with: it does not run here then
   * @throws DesapError `ERR_FILE`; `ERR_GRAPH` when the encoder is not built as expected, with what was looked for;
   *   `ERR_HEAD_MISMATCH` when it was not read right; `ERR_DEVICE_UNAVAILABLE`; `ERR_MISSING_PACKAGE`; `ERR_VALUE` for the options
   */
  static async openAs<T extends BlockVision>(
    this: new (
      parts: BlockParts,
    ) => T,
    family: BlockFamily,
    file: string,
    given: BlockVisionOptions = {},
    isBeside = false,
  ): Promise<T> {
    nonEmpty('visionEncoder', file, 'the path of a vision_encoder.onnx');
    const checked = options('options', withoutClip(given), BLOCK_OPTIONS, RENAMED);
    const { model = folderOf(file), pruner } = checked;
    checkShared(checked);
    checkOwn({ ...checked, model });
    const siglip = siglipOptions(checked);
    const filter = filterOf(checked);
    if (!family.tiled) refuseTiles(checked.tiles);
    const choice = tileChoice(checked.tiles, VIEW_RULES);
    const encoding = encodingOf(checked);
    const ort = await ortModule(checked.ort);
    const session = atRest(checked.session);
    const config = checked.config ?? (await readConfig(model));
    family.check?.(config);
    const encoder = readLastBlock(file);
    return allOrNone(async (opened) => {
      const backend = pruner?.backend ?? opened(await openBackend(deviceOptions(checked)), (own) => own.dispose());
      const samples = isBeside ? [] : await samplesOf(family, file, config, { ort, session, further: encoder.further });
      const weights = await encoder.weights(ort);
      const fit = siglip && (await openFit(ort, weights, encoder, siglip.folder, { backend, session }));
      const head = opened(await BlockHead.load(fit?.block ?? weights, backend), (own) => own.dispose());
      const open = async (graph: EditedGraph) => opened(await openGraph(ort, graph, session), (one) => one.release());
      const connector = await open(encoder.connector);
      const trials = async (one: InferenceSession) => (await blockTrials(family, one, config)).map(({ run }) => run);
      const { splits } = await confirmBlock(ort, encoder, { backend, weights, trials, connector, session });
      // Features are float32 work, whatever arithmetic the kernels were allowed.
      const split = splits && !fit?.beyond && backend.precision === 'fp32' ? encoder.split : null;
      // Now that the trial's session is closed: memory holds the weights once.
      const tower = await open(split?.tower ?? (fit?.beyond ? encoder.beyond : encoder.tower));
      const tail = split && (await open(split.tail));
      const readOut = siglip && {
        saliency: siglip.saliency,
        text: opened(await SiglipText.open(siglip.folder, { ...siglip.text, ort, session }), (one) => one.dispose()),
      };
      const own = { ...checked, model };
      const sessions = { tower, tail, connector };
      const parts = {
        family,
        encoder,
        ort,
        head,
        ...sessions,
        encoding,
        readOut,
        config,
        filter,
        choice,
        options: own,
      };
      const vision = new this(parts);
      const wanted = `those of the file by itself${family.premise}`;
      await confirmFeatures(vision, samples, { argument: 'visionEncoder', file, wanted });
      return vision;
    });
  }

  get device(): string {
    return this.backend.device;
  }

  get deviceDescription(): string {
    return this.backend.deviceDescription;
  }

  get further(): readonly string[] | undefined {
    const { further } = this.#parts.encoder;
    return further.length === 0 ? undefined : further;
  }

  get marks(): ImageMarks | undefined {
    return this.#parts.family.marks;
  }

  get looks(): boolean {
    return this.#parts.choice !== null;
  }

  /** Single kernels on the device. */
  get backend(): Backend {
    return this.#parts.head.backend;
  }

  protected async encodeText(question: string): Promise<TextEmbeddings> {
    const asked = checkQuestion(question);
    const { readOut, filter } = this.#parts;
    if (readOut) return readOut.text.encode(asked);
    const embedded = await this.#embed(asked);
    return filter === null ? embedded : filteredQuestion(embedded, filter);
  }

  async #embed(asked: string): Promise<TextEmbeddings | QuestionTokens> {
    const { ort, options } = this.#parts;
    if (options.embedQuestion) return options.embedQuestion(asked);
    const session = atRest(options.session);
    const table = await this.#table.get(() => QuestionTable.open(options.model, { ...options, session, ort }));
    return table.embed(asked);
  }

  protected async encodeImages(inputs: VisionInputs, names: InputNames): Promise<(BlockImage | BlockTilesImage)[]> {
    const { family, choice } = this.#parts;
    const tiled = choice && family.tiled ? family.tiled(inputs, names, this.#facts) : [];
    const isLooking = tiled.some(({ tiles }) => !takesAll(choice as TileChoice, tiles - 1));
    const images: (BlockImage | BlockTilesImage)[] = [];
    try {
      if (isLooking) {
        for (const image of tiled) images.push(await this.#look(image, choice as TileChoice, names));
        return images;
      }
      const runs = await family.read(inputs, names, this.#facts);
      for (const run of runs) for (const [at, image] of await this.#encodeRun(run, names)) images[at] = image;
      return images;
    } catch (error) {
      for (const image of images) image?.dispose();
      throw error;
    }
  }

  /** The images of one run, each with its place in the call. */
  async #encodeRun(run: EncoderRun, names: InputNames): Promise<Map<number, BlockImage>> {
    return this.#tilesOfRun(run, names, (tiles, milliseconds, batchOf) => {
      const own = new Map<number, number[]>();
      for (const [tile, { image }] of tiles.entries()) own.set(image, [...(own.get(image) ?? []), tile]);
      const batch = batchOf(own.size);
      return new Map([...own].map(([at, some]) => [at, new BlockImage(this, batch, some, milliseconds * some.length)]));
    });
  }

  /** @param make is given the tiles of a run, the milliseconds of each, and what makes a batch for as many owners */
  async #tilesOfRun<T>(
    run: EncoderRun,
    names: InputNames,
    make: (tiles: readonly TileRows[], milliseconds: number, batchOf: (owners: number) => BlockBatch) => T,
  ): Promise<T> {
    const start = performance.now();
    const made = await this.#run(run, { argument: names.pixelValues, graph: GRAPH });
    try {
      const tiles = run.tiles(made.hidden, made.outputs[FEATURES].dims);
      const milliseconds = (performance.now() - start - made.attended) / tiles.length;
      return make(tiles, milliseconds, (owners) => new BlockBatch(this.#parts, made, tiles, owners));
    } catch (error) {
      made.free();
      throw error;
    }
  }

  /** An image whose whole view is encoded, and its tiles when a question needs them; all at once where all are taken. */
  async #look(image: TiledInput, choice: TileChoice, names: InputNames): Promise<BlockImage | BlockTilesImage> {
    const all = Array.from({ length: image.tiles }, (_, tile) => tile);
    if (takesAll(choice, image.tiles - 1)) return (await this.#encodeRun(image.run(all), names)).get(0) as BlockImage;
    const encode = (some: readonly number[]) =>
      this.#tilesOfRun(image.run(some), names, (tiles, milliseconds, batchOf) => {
        const batch = batchOf(tiles.length);
        return tiles.map((_, at) => new BlockTile(this.backend, batch, at, milliseconds));
      });
    const [whole] = await encode(all.slice(-1));
    const grids = all.map((tile) => image.units(tile, whole.grid));
    return new LookedBlocks(this, {
      layout: plainLayout(
        grids.map((grid) => ({ frame: 0, ...grid })),
        grids.map(({ rows, columns }) => rows * columns),
      ),
      ...{ form: whole.form, choice, whole, encode },
      tileOf: () => tilesOfView(whole.grid, image.grid()),
    });
  }

  /** One run, to the features. */
  async #run(run: EncoderRun, about: RunNames): Promise<BlockRun> {
    const { hidden, outputs } = await this.#runTower(run, about);
    try {
      const sequences = run.sequences(hidden.dims);
      const { tail } = this.#parts;
      if (tail === null) return wholeRun(this.#parts, hidden, outputs, sequences);
      return await splitRun({ ...this.#parts, tail }, hidden, outputs, sequences, about);
    } catch (error) {
      hidden.free();
      throw error;
    }
  }

  /** Runs the encoder; its hidden states in memory that the kernels read in place. */
  async #runTower({ feeds }: EncoderRun, run: RunNames): Promise<{ hidden: HiddenRows; outputs: Outputs }> {
    const { tower, ort } = this.#parts;
    const fed = this.#tensors(feeds);
    const extents = Object.values(feeds).map(({ dims }) => dims.join());
    const known = this.#hidden.get(extents.join(' '));
    const { [HIDDEN]: given, ...outputs } = known ? {} : await runSession(tower, run, fed);
    const dims = known ?? given.dims;
    const memory = hostMemory(dims, this.device);
    const hidden = { ...memory, dims };
    try {
      if (!known) {
        memory.data.set(given.data as Float32Array);
        this.#hidden.set(extents.join(' '), dims);
        return { hidden, outputs };
      }
      // ONNX Runtime writes into a given output only when its own Tensor class holds it.
      const place = new ort.Tensor('float32', memory.data, dims);
      const fetches = { ...Object.fromEntries(tower.outputNames.map((name) => [name, null])), [HIDDEN]: place };
      const { [HIDDEN]: _, ...others } = await runSession(tower, run, fed, fetches as Record<string, Tensor>);
      return { hidden, outputs: others };
    } catch (error) {
      memory.free();
      throw error;
    }
  }

  #tensors(feeds: EncoderRun['feeds']): Record<string, Tensor> {
    const { ort, tower } = this.#parts;
    // A graph may have no use for an input of the file.
    const fed = Object.entries(feeds).filter(([name]) => tower.inputNames.includes(name));
    const tensor = ({ type, data, dims }: Feed) => new ort.Tensor(type as 'float32', data as Float32Array, dims);
    return Object.fromEntries(fed.map(([name, feed]) => [name, tensor(feed)]));
  }

  #takesSeveral(both: EncoderRun, alone: EncoderRun): Promise<boolean> {
    return this.#several.get(async () => {
      const { encoder } = this.#parts;
      const about = { argument: 'a trial image', graph: GRAPH };
      const one = await this.#run(alone, about);
      const two = await this.#run(both, { ...about, isTentative: true }).catch(() => null);
      try {
        const [all, own] = [two, one].map((made) => made && floats(made.outputs[FEATURES]));
        if (all === null || own === null) return false;
        return relativeError(all.subarray(Math.max(0, all.length - own.length)), own) <= encoder.tolerance;
      } finally {
        one.free();
        two?.free();
      }
    });
  }

  protected async free(): Promise<void> {
    const { options, head, tower, tail, connector, readOut } = this.#parts;
    const { backend } = this;
    head.dispose();
    if (options.pruner === undefined) backend.dispose();
    const table = await this.#table.made();
    const sessions = [tower, tail, connector].map((session) => session?.release());
    await Promise.all([...sessions, table?.release(), readOut?.text.dispose()]);
  }
}

/** What a file by itself computes of trial images. */
async function samplesOf(
  family: BlockFamily,
  file: string,
  config: ModelConfig,
  how: { ort: OrtModule; session: InferenceSession.SessionOptions; further: readonly string[] },
): Promise<Sample[]> {
  const { ort, session, further } = how;
  const whole = await openSession(file, session, ort);
  try {
    return await runTrials(whole, await blockTrials(family, whole, config), { file, ort, further });
  } finally {
    await whole.release();
  }
}

/** Options for a CLIP tower, which this is none. */
function withoutClip<T extends object>(given: T & { clip?: unknown }): T {
  if (typeof given !== 'object' || given === null) return given;
  const { clip, ...rest } = given;
  if (clip === undefined) return rest as unknown as T;
  throw invalid('ERR_VALUE', 'clip', clip, 'none: the vision encoder of this model is no CLIP tower');
}

/** How long questions are filtered in the language model's space. */
function filterOf({ task = 'llm', longText, filter }: BlockVisionOptions): CheckedFilter | null {
  if (longText === undefined && filter === undefined) return null;
  if (task === 'siglip')
    throw mismatch('ERR_VALUE', 'longText', "an option beside task: 'siglip'", 'siglip: { longText, filter }');
  const choice = longTextChoice({ longText, filter });
  oneOf('longText', choice.longText, ['segment', 'filter']);
  if (choice.filter?.importance !== undefined) oneOf('filter.importance', choice.filter.importance, ['cosine']);
  return choice.filter;
}

/** Checks the values of the options that other families do not have. */
function checkOwn({ model, config, dtype = 'fp32', embedQuestion }: BlockVisionOptions & { model: string }): void {
  nonEmpty('model', model, 'a model folder');
  if (config !== undefined) object('config', config, 'a config.json as an object');
  oneOf('dtype', dtype, DTYPES);
  if (embedQuestion !== undefined && typeof embedQuestion !== 'function')
    throw invalid('ERR_VALUE', 'embedQuestion', embedQuestion, 'a function');
}
