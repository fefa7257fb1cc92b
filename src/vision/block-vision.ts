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
import type { LastBy } from '../onnx/block-cut.js';
import { FEATURES, HIDDEN } from '../onnx/block-values.js';
import { relativeError } from '../onnx/head/compare.js';
import { confirmBlock } from '../onnx/head/confirm-block.js';
import { type EditedGraph, type OrtModule, openGraph } from '../onnx/index.js';
import { readLastBlock } from '../onnx/last-block.js';
import { type OptionNames, options } from '../options.js';
import { ortModule } from '../ort.js';
import { encodingOf } from '../pruner.js';
import { nonEmpty, object, oneOf } from '../tensor.js';
import { rowsAtOnce } from './at-once.js';
import { BlockBatch } from './block-batch.js';
import {
  type BlockFamily,
  type EncoderFacts,
  type EncoderRun,
  type Feeds,
  type TiledInput,
  type TileRows,
  tensorsOf,
} from './block-family.js';
import { BlockImage } from './block-image.js';
import { type BlockEngine, type BlockRun, type HiddenRows, type Outputs, splitRun, wholeRun } from './block-run.js';
import { BlockTile } from './block-tile.js';
import type { BlockTilesImage } from './block-tiles-image.js';
import { BlockTower, checkBlockTower } from './block-tower.js';
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
import { type CheckedSiglip, openFit, type SiglipOptions, siglipOptions } from './siglip-options.js';
import { SiglipText } from './siglip-text.js';
import { checkNoTextTower, type TextPlaceOptions, textOrt } from './text-place.js';
import { refuseTiles, type TileChoice, type TileOptions, takesAll, tileChoice, VIEW_RULES } from './tile-options.js';
import { tilesOfView } from './tile-rules.js';
import { type TowerOptions, towerChoice } from './tower-options.js';
import { floats } from './trial.js';
import type { Budget, ImageMarks, InputNames, VisionInputs } from './vision-model.js';

export interface BlockVisionOptions
  extends DeviceOptions,
    Budget,
    LongTextOptions,
    TextPlaceOptions,
    Pick<AnalyzeOptions, 'encoding'> {
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
  /**
   * Rows that are dropped inside the tower: the blocks behind run on the others alone. Its rules are `distance` and `random`. Default: none.
   */
  tower?: TowerOptions;
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
  ...{ encoding: true, task: true, tower: true, tiles: true, siglip: true, longText: true, filter: true },
  ...{ text: true, session: true, ort: true },
};
const RENAMED = { modelDir: 'model' };

const GRAPH = 'the vision encoder';

/** @internal What an open model is made of. */
export interface BlockParts extends BlockEngine {
  readonly family: BlockFamily;
  /** The encoder's session, or its two where rows are dropped between. */
  readonly tower: InferenceSession | BlockTower;
  /** Opens the encoder in one piece. */
  readonly openWhole: () => Promise<InferenceSession>;
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
  /** The tower in one piece, for images of which a cut one drops nothing: in two parts the last bit may differ. */
  readonly #whole = new Once<InferenceSession>();
  readonly #several = new Once<boolean>();
  /** Extents of the hidden states for the extents of each input so far. */
  readonly #hidden = new Map<string, readonly number[]>();
  readonly #facts: EncoderFacts;

  /** @internal */
  constructor(parts: BlockParts) {
    const { family, encoder, options } = parts;
    const { keep, keepRatio, text } = options;
    super(new.target.name, family.name, encoder.tolerance, { keep, keepRatio }, text === 'worker');
    this.#parts = parts;
    this.#facts = {
      config: parts.config,
      inputs: encoder.inputs,
      several: (both, alone) => this.#takesSeveral(both, alone),
      rowsAtOnce: rowsAtOnce(options.session),
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
    if (siglip === null) checkNoTextTower(checked);
    const filter = filterOf(checked);
    const cutting = towerChoice(checked.tower);
    if (!family.tiled) refuseTiles(checked.tiles);
    const choice = tileChoice(checked.tiles, VIEW_RULES);
    const encoding = encodingOf(checked);
    const ort = await ortModule(checked.ort);
    const session = atRest(checked.session);
    const config = checked.config ?? (await readConfig(model));
    family.check?.(config);
    const encoder = readLastBlock(file);
    if (cutting !== null) checkBlockTower(encoder, cutting);
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
      const fed = async (one: InferenceSession) =>
        (await trials(one)).map(({ feeds }) => tensorsOf(ort, feeds, one.inputNames));
      const last: LastBy = fit?.beyond ? 'beyond' : split ? 'kernels' : 'file';
      const whole = split?.tower ?? (fit?.beyond ? encoder.beyond : encoder.tower);
      const how = { last, backend, session, trials: fed, rowsAtOnce: rowsAtOnce(session) };
      const tower =
        cutting === null
          ? await open(whole)
          : opened(await BlockTower.open(ort, encoder, { ...how, choice: cutting }), (one) => one.release());
      const tail = split && (await open(split.tail));
      const readOut = siglip && {
        saliency: siglip.saliency,
        text: opened(await openText(siglip, checked, { ort, session }), (one) => one.dispose()),
      };
      const own = { ...checked, model };
      const sessions = { tower, tail, connector };
      const openWhole = () => openGraph(ort, whole, session);
      const parts = {
        family,
        encoder,
        ort,
        head,
        ...sessions,
        openWhole,
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
  async #run(run: EncoderRun, about: RunNames, isWhole = false): Promise<BlockRun> {
    const { tower } = this.#parts;
    const isCut = tower instanceof BlockTower;
    const some = isCut ? await tower.run(this.#parts, run, { names: about, isWhole }) : null;
    if (some !== null) return some;
    const session = isCut ? await this.#whole.get(this.#parts.openWhole) : tower;
    const { hidden, outputs } = await this.#runTower(session as InferenceSession, run, about);
    try {
      const sequences = run.sequences(hidden.dims);
      const { tail } = this.#parts;
      if (tail === null) return wholeRun(this.#parts, hidden, outputs, { sequences });
      return await splitRun({ ...this.#parts, tail }, hidden, outputs, { sequences }, about);
    } catch (error) {
      hidden.free();
      throw error;
    }
  }

  /** Runs the encoder; its hidden states in memory that the kernels read in place. */
  async #runTower(
    tower: InferenceSession,
    { feeds, parts }: EncoderRun,
    run: RunNames,
  ): Promise<{ hidden: HiddenRows; outputs: Outputs }> {
    // What it hands out besides is of all tiles.
    const runs = parts && tower.outputNames.length === 1 ? parts : [feeds];
    const known = runs.map((one) => this.#hidden.get(extentsOf(one)));
    return known.every((dims) => dims !== undefined)
      ? this.#runInPlace(tower, runs, known, run)
      : this.#runAnew(tower, runs, run);
  }

  /** Runs of extents that have not been seen. */
  async #runAnew(
    tower: InferenceSession,
    runs: readonly Feeds[],
    run: RunNames,
  ): Promise<{ hidden: HiddenRows; outputs: Outputs }> {
    const made: Tensor[] = [];
    let outputs: Outputs = {};
    for (const feeds of runs) {
      const { [HIDDEN]: hidden, ...others } = await runSession(tower, run, this.#tensors(feeds, tower));
      this.#hidden.set(extentsOf(feeds), hidden.dims);
      made.push(hidden);
      outputs = others;
    }
    const dims = oneBehindOther(made.map(({ dims }) => dims));
    const memory = hostMemory(dims, this.device);
    let at = 0;
    for (const { data } of made) {
      memory.data.set(data as Float32Array, at);
      at += data.length;
    }
    return { hidden: { ...memory, dims }, outputs };
  }

  /** Runs that write where the kernels read. */
  async #runInPlace(
    tower: InferenceSession,
    runs: readonly Feeds[],
    known: readonly (readonly number[])[],
    run: RunNames,
  ): Promise<{ hidden: HiddenRows; outputs: Outputs }> {
    const { ort } = this.#parts;
    const dims = oneBehindOther(known);
    const memory = hostMemory(dims, this.device);
    const unplaced = Object.fromEntries(tower.outputNames.map((name) => [name, null]));
    let outputs: Outputs = {};
    try {
      let at = 0;
      for (const [i, feeds] of runs.entries()) {
        const end = at + known[i].reduce((product, extent) => product * extent, 1);
        // ONNX Runtime writes into a given output only when its own Tensor class holds it.
        const place = new ort.Tensor('float32', memory.data.subarray(at, end), known[i]);
        const { [HIDDEN]: _, ...others } = await runSession(tower, run, this.#tensors(feeds, tower), {
          ...unplaced,
          [HIDDEN]: place,
        });
        outputs = others;
        at = end;
      }
      return { hidden: { ...memory, dims }, outputs };
    } catch (error) {
      memory.free();
      throw error;
    }
  }

  #tensors(feeds: Feeds, { inputNames }: InferenceSession): Record<string, Tensor> {
    return tensorsOf(this.#parts.ort, feeds, inputNames);
  }

  #takesSeveral(both: EncoderRun, alone: EncoderRun): Promise<boolean> {
    return this.#several.get(async () => {
      const { encoder } = this.#parts;
      const about = { argument: 'a trial image', graph: GRAPH };
      const one = await this.#run(alone, about, true);
      const two = await this.#run(both, { ...about, isTentative: true }, true).catch(() => null);
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
    const [table, whole] = [await this.#table.made(), await this.#whole.made()];
    const sessions = [tower, whole, tail, connector].map((session) => session?.release());
    await Promise.all([...sessions, table?.release(), readOut?.text.dispose()]);
  }
}

/** The extents of everything that a run is fed. */
function extentsOf(feeds: Feeds): string {
  return Object.values(feeds)
    .map(({ dims }) => dims.join())
    .join(' ');
}

/** Extents of tensors one behind the other. */
function oneBehindOther([first, ...others]: readonly (readonly number[])[]): number[] {
  return [others.reduce((count, [own]) => count + own, first[0]), ...first.slice(1)];
}

/** The text tower of a SigLIP. */
async function openText(
  { folder, text }: CheckedSiglip,
  place: TextPlaceOptions,
  { ort, session }: { ort: OrtModule; session: InferenceSession.SessionOptions },
): Promise<SiglipText> {
  return SiglipText.open(folder, { ...text, ort: await textOrt(place, ort), session });
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
