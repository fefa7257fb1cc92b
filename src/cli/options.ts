import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { DesapError } from '../errors.js';
import { isFile } from '../files.js';
import type { Device, DeviceOptions } from '../index.js';

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

/** Options that choose the models of a question about an image. */
export function withModels(command: Command): Command {
  return withDevice(
    command
      .option('--model <folder>', 'LLaVA folder (default: models/tiny-llava of a clone)')
      .option('--clip <folder>', 'CLIP folder of the same vision tower (default: models/tiny-clip of a clone)'),
  );
}

/**
 * Options that say how much to keep, and how to prune.
 * @param all whether `--keep all` keeps every visual token; it is the default then
 */
export function withPruning(command: Command, all = false): Command {
  const count = new Option('--keep <count>', `visual tokens to keep${all ? ', or all (the default)' : ''}`)
    .argParser(all ? keepOrAll : keepCount)
    .conflicts('keepRatio');
  return command
    .addOption(count)
    .option('--keep-ratio <ratio>', 'the same as a ratio, above 0 and at most 1', keepRatio)
    .option(
      '--task-share <share>',
      'share of the kept tokens that the question chooses; the others are chosen by saliency',
      share,
      0.5,
    )
    .addOption(
      new Option('--alignment <form>', 'how question and image are matched')
        .choices(['fcma', 'fcma-clamped', 'mean'])
        .default('fcma'),
    )
    .option('--lambda <number>', 'lambda of eq. 3', finite, 0.1)
    .option('--no-merge', 'drop the other visual tokens instead of merging them');
}

export interface PruningFlags {
  keep?: number | 'all';
  keepRatio?: number;
  taskShare: number;
  alignment: 'fcma' | 'fcma-clamped' | 'mean';
  lambda: number;
  merge: boolean;
}

export interface ModelFlags extends DeviceOptions {
  model?: string;
  clip?: string;
}

/**
 * The two model folders of a command.
 * @throws DesapError `ERR_FILE` when none was given and this is not a clone
 */
export async function modelFolders({ model, clip }: ModelFlags): Promise<{ model: string; clip: string }> {
  const shipped = async (name: string, option: string) => {
    const folder = join(MODELS, name);
    if (await isFile(join(folder, 'config.json'))) return folder;
    throw new DesapError(
      'ERR_FILE',
      `${option}: got no folder, and the example model is not at ${folder}; give ${option}, or work in a clone of the repository`,
    );
  };
  return {
    model: model ?? (await shipped('tiny-llava', '--model')),
    clip: clip ?? (await shipped('tiny-clip', '--clip')),
  };
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
