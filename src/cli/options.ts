import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { deviceOptions } from '../devices/open.js';
import { DesapError, mismatch } from '../errors.js';
import { isFile } from '../files.js';
import type { Complement, Device, DeviceOptions } from '../index.js';
import { COMPLEMENTS } from '../kernels/kernels.js';
import { METHOD_NAMES, type MethodName, tapsOf } from '../methods/index.js';
import { ANYRES, type Anyres, NEWLINES, type Newline } from '../vision/anyres.js';
import type { VisionModelOptions } from '../vision/families.js';
import { LONG_TEXT, type LongText } from '../vision/long-text.js';
import { DTYPES, type Dtype } from '../vision/model-folder.js';
import { TEXT_PLACES, type TextPlace } from '../vision/text-place.js';
import type { TileOptions } from '../vision/tile-options.js';
import { CLASS_ROWS, type ClassRows } from '../vision/video-llava.js';
import { DISTANCES, PRESET_NAMES } from '../vision/vision-choices.js';
import type { Allocation, Distances, Preset, VisionPruneOptions } from '../vision/vision-model.js';
import { namedValues } from './method-flags.js';
import { type ImageFlags, type ModelKind, modelKind } from './models.js';

/** The repository's own models; they come with a clone, not with the npm package. */
export const MODELS = fileURLToPath(new URL('../../models', import.meta.url));

/** Options that choose where kernels run. */
export function withDevice(command: Command): Command {
  return command
    .option('--device <id>', 'auto, cpu, cuda, cuda:<index> or reference', device, 'auto')
    .option('--precision <name>', 'coarsest arithmetic of matrix products: fp32, fp16 or bf16', precision, 'fp32')
    .option('--threads <count>', 'CPU threads', positive)
    .addOption(
      new Option('--isa <name>', 'CPU instruction set').choices([
        'scalar',
        'neon',
        'neonbf16',
        'avx2',
        'avx512',
        'avx512bf16',
      ]),
    );
}

/** Options that choose the models of a question about an image, and what is special to some families. */
export function withModels(command: Command): Command {
  return withFamilies(
    command.option('--model <folder>', 'model folder of any family (default: models/tiny-llava of a clone)'),
  );
}

/** The same for a command that has the model's folder as an argument. */
export function withFamilies(command: Command): Command {
  return withDevice(
    command
      .option(
        '--clip <folder>',
        'LLaVA, LLaVA-NeXT, Video-LLaVA, Phi-3.5-vision: CLIP folder of the same vision tower (default: models/tiny-clip of a clone)',
      )
      .addOption(new Option('--dtype <name>', 'form of the model files (default: fp32)').choices(DTYPES))
      .addOption(
        new Option(
          '--task <form>',
          'SigLIP towers: the space that question and image are matched in (default: llm)',
        ).choices(['llm', 'siglip']),
      )
      .option('--siglip <folder>', "with --task siglip: folder of the tower's SigLIP")
      .addOption(
        new Option('--long-text <form>', 'what happens to long questions (default: segment)').choices(LONG_TEXT),
      )
      .option('--max-text-tokens <count>', 'with --long-text filter: tokens that a question has at most', positive)
      .addOption(
        new Option(
          '--text <where>',
          'thread of the text tower: worker, beside the vision tower (default: here)',
        ).choices(TEXT_PLACES),
      )
      .addOption(new Option('--anyres <form>', 'LLaVA-NeXT: tokens of an image (default: model)').choices(ANYRES))
      .addOption(
        new Option('--newline <which>', 'LLaVA-NeXT, Phi-3.5-vision: newlines that stay (default: kept-rows)').choices(
          NEWLINES,
        ),
      )
      .option(
        '--tiles <list>',
        'LLaVA-NeXT, Idefics3, SmolVLM, LFM2-VL: tiles beside the whole view: keep=2,by=block or keep=auto,mass=0.9 (default: all)',
        namedValues,
      )
      .addOption(
        new Option('--class-rows <form>', 'Video-LLaVA: class row of each frame (default: keep)').choices(CLASS_ROWS),
      )
      .option(
        '--tower <list>',
        'drop rows inside the vision tower: at=<blocks that see all>,keep=<share or count of each tile>,by=<rule>',
        namedValues,
      )
      .option('--frames <count>', 'Video-LLaVA: frames that are taken of a video file (default: 8)', positive),
  );
}

/**
 * Options that say how much to keep, and how to prune.
 * @param all whether `--keep all` keeps every visual token; it is the default then
 */
export function withPruning(command: Command, all = false): Command {
  const count = new Option(
    '--keep <count>',
    `visual tokens to keep, of each tile or frame${all ? ', or all (the default)' : ''}`,
  )
    .argParser(all ? keepOrAll : keepCount)
    .conflicts('keepRatio');
  return command
    .addOption(count)
    .option('--keep-ratio <ratio>', 'the same as a ratio, above 0 and at most 1', keepRatio)
    .addOption(
      new Option('--preset <name>', 'options by name; what is given beside it wins (default: paper)').choices(
        PRESET_NAMES,
      ),
    )
    .option('--task-share <share>', 'share of the kept tokens that the question chooses (default: 0.5)', share)
    .addOption(new Option('--complement <which>', 'what chooses the others (default: saliency)').choices(COMPLEMENTS))
    .addOption(
      new Option(
        '--distances <of>',
        'with --complement diversity: of hidden states or of projected features (default: what is merged)',
      ).choices(DISTANCES),
    )
    .addOption(
      new Option('--allocation <of>', 'what --keep is of: each tile or frame, or the image (default: tile)').choices([
        'tile',
        'image',
      ]),
    )
    .addOption(
      new Option(
        '--alignment <form>',
        "how question and image are matched (default: fcma; mean for one row of text that is not CLIP's)",
      ).choices(['fcma', 'fcma-clamped', 'mean']),
    )
    .option('--lambda <number>', 'lambda of eq. 3 (default: 0.1)', finite)
    .option('--no-merge', 'drop the other visual tokens instead of merging them')
    .addOption(new Option('--method <name>', 'what chooses the tokens (default: desap)').choices(METHOD_NAMES))
    .option('--method-options <list>', "a method's own options, name=value with commas between", namedValues);
}

export interface PruningFlags {
  keep?: number | 'all';
  keepRatio?: number;
  preset?: Preset;
  taskShare?: number;
  complement?: Complement;
  distances?: Distances;
  allocation?: Allocation;
  alignment?: 'fcma' | 'fcma-clamped' | 'mean';
  lambda?: number;
  merge: boolean;
  method?: MethodName;
  methodOptions?: object;
}

export interface ModelFlags extends DeviceOptions, ImageFlags {
  model?: string;
  clip?: string;
  dtype?: Dtype;
  task?: VisionModelOptions['task'];
  siglip?: string;
  longText?: LongText;
  maxTextTokens?: number;
  text?: TextPlace;
  anyres?: Anyres;
  newline?: Newline;
  classRows?: ClassRows;
  tower?: object;
  tiles?: TileOptions;
}

/** What flags say of pruning, without how much. */
export function pruningOf({ merge, ...flags }: PruningFlags) {
  const { preset, taskShare, complement, distances, allocation, alignment, lambda, method, methodOptions } = flags;
  return {
    ...{ preset, taskShare, complement, distances, allocation, alignment, lambda },
    ...{ method, methodOptions },
    ...(!merge && { merge }),
  } satisfies VisionPruneOptions;
}

/** A model folder, how its family is run, and the options that it is opened with. */
export interface ChosenModel {
  readonly folder: string;
  readonly kind: ModelKind;
  /** `clip` is given where the tower is CLIP's. */
  readonly options: VisionModelOptions & { readonly clip: string };
}

type Choosing = Pick<VisionPruneOptions, 'method' | 'methodOptions'>;

/**
 * The model of a command.
 * @param hows the ways of choosing tokens that it is opened for
 * @throws DesapError `ERR_FILE` when a folder is needed, none was given, and this is not a clone; `ERR_VALUE` for a family that is not taken
 */
export async function chosenModel(
  flags: ModelFlags & Choosing,
  hows: readonly Choosing[] = [flags],
): Promise<ChosenModel> {
  const folder = flags.model ?? (await shipped('tiny-llava', '--model'));
  const kind = await modelKind(folder);
  if (flags.frames !== undefined && !kind.isForVideos)
    throw mismatch('ERR_VALUE', '--frames', `${flags.frames}`, 'a model for videos beside it');
  const clip = flags.clip ?? (kind.isClip ? await shipped('tiny-clip', '--clip') : undefined);
  const { dtype, task, text, anyres, newline, classRows, tower, tiles } = flags;
  const wanted = [...new Set(hows.flatMap(({ method = 'desap', methodOptions }) => tapsOf(method, methodOptions)))];
  const taps = kind.isTapped && wanted.length > 0 ? wanted : undefined;
  const own = { clip, dtype, task, text, anyres, newline, classRows, tower, tiles, taps };
  const given = Object.entries({ ...own, ...textOptions(flags) }).filter(([, value]) => value !== undefined);
  return { folder, kind, options: { ...deviceOptions(flags), ...Object.fromEntries(given) } as ChosenModel['options'] };
}

/** Long questions are the business of the SigLIP where there is one. Its rows are words where they are filtered. */
function textOptions({ siglip: folder, longText, maxTextTokens }: ModelFlags): Partial<VisionModelOptions> {
  const filter = maxTextTokens === undefined ? undefined : { maxTokens: maxTextTokens };
  if (folder === undefined || longText === undefined) return { siglip: folder, longText, filter };
  return { siglip: { folder, longText, filter, ...(longText === 'filter' ? { text: 'words' } : {}) } };
}

async function shipped(name: string, option: string): Promise<string> {
  const folder = join(MODELS, name);
  if (await isFile(join(folder, 'config.json'))) return folder;
  throw new DesapError(
    'ERR_FILE',
    `${option}: got no folder, and the example model is not at ${folder}; give ${option}, or work in a clone of the repository`,
  );
}

const number = (text: string): number => (text.trim() === '' ? Number.NaN : Number(text));

export function positive(text: string): number {
  const value = number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError('Wanted a positive integer.');
}

export function finite(text: string): number {
  const value = number(text);
  if (Number.isFinite(value)) return value;
  throw new InvalidArgumentError('Wanted a number.');
}

/** A count of visual tokens. */
export function keepCount(text: string): number {
  const value = number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError('Wanted a count of at least 1; a ratio is given by --keep-ratio.');
}

function keepOrAll(text: string): number | 'all' {
  return text === 'all' ? 'all' : keepCount(text);
}

function keepRatio(text: string): number {
  const value = number(text);
  if (value > 0 && value <= 1) return value;
  throw new InvalidArgumentError('Wanted a number above 0 and at most 1; a count is given by --keep.');
}

function share(text: string): number {
  const value = number(text);
  if (value >= 0 && value <= 1) return value;
  throw new InvalidArgumentError('Wanted a number from 0 to 1.');
}

const PRECISIONS: readonly string[] = ['fp32', 'fp16', 'bf16'] satisfies DeviceOptions['precision'][];
/** Former names. */
const RENAMED: Readonly<Record<string, string>> = { strict: 'fp32', fast: 'fp16' };

function precision(text: string): DeviceOptions['precision'] {
  if (PRECISIONS.includes(text)) return text as DeviceOptions['precision'];
  const now = Object.hasOwn(RENAMED, text) ? `${RENAMED[text]}, its name now` : PRECISIONS.join(', ');
  throw new InvalidArgumentError(`Wanted ${now}.`);
}

function device(text: string): Device {
  if (/^(auto|cpu|cuda|cuda:\d+|reference)$/.test(text)) return text as Device;
  throw new InvalidArgumentError('Wanted auto, cpu, cuda, cuda:<index> or reference.');
}

/** A result for programs: one JSON document on stdout. Typed arrays become plain lists. */
export function printJson(value: unknown): void {
  const list = (_: string, entry: unknown) =>
    ArrayBuffer.isView(entry) && !(entry instanceof DataView)
      ? Array.from(entry as unknown as ArrayLike<number>)
      : entry;
  process.stdout.write(`${JSON.stringify(value, list)}\n`);
}

export function print(line = ''): void {
  process.stdout.write(`${line}\n`);
}
