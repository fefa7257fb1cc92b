/** Methods as a command line names them: `desap`, `desap:alignment=mean,taskShare=1`, `random`. */
import { DesapError, invalid, mismatch } from '../../errors.js';
import { chooserOf, type RivalName } from '../../methods/index.js';
import { type OptionNames, options } from '../../options.js';
import { pruneChoices } from '../../prune-request.js';
import { VISION_PRUNE_OPTIONS } from '../../vision/image-base.js';
import { checkDistances, withoutPreset } from '../../vision/vision-choices.js';
import type { VisionPruneOptions } from '../../vision/vision-model.js';
import { typed } from '../method-flags.js';
import { once } from './lists.js';

/** How to prune, without how much. */
export type How = Omit<VisionPruneOptions, 'keep' | 'keepRatio'>;

/** A way of choosing visual tokens. */
export interface Method {
  /** As the caller wrote it. */
  readonly label: string;
  /** How it prunes for a question, by the question's line: once, or for several draws whose scores are averaged. */
  draws(line: number): readonly How[];
}

/** The pruner itself: its options are those of a pruning. Those of other methods are their own. */
const PRUNER = 'desap';
const RANDOM = 'random';
const DRAWS = 5;

const { keep, keepRatio, maps, saliency, method, methodOptions, layout, ...OWN } = VISION_PRUNE_OPTIONS;
const NAMES = OWN as OptionNames<How>;

/**
 * A list with commas between. A comma that an option without a method follows belongs to the method before it.
 * @throws DesapError `ERR_VALUE` for an empty list, one method twice, and what is wrong with a method's options
 */
export function parseMethods(text: string): Method[] {
  const parts: string[] = [];
  for (const part of text.split(',').map((one) => one.trim())) {
    if (parts.length > 0 && /^[^:]+=/.test(part)) parts[parts.length - 1] += `,${part}`;
    else parts.push(part);
  }
  return once('--methods', parts).map(parseMethod);
}

function parseMethod(label: string): Method {
  const [, name, rest] = /^([\w-]+)(?::(.+))?$/.exec(label) ?? [];
  if (name === undefined)
    throw invalid('ERR_VALUE', '--methods', label, 'a method, or a method:option=value,option=value');
  const entries = (rest?.split(',') ?? []).map((option) => entryOf(label, option));
  once(
    `--methods ${label}`,
    entries.map(([option]) => option),
  );
  const given = Object.fromEntries(entries);
  if (name === PRUNER) {
    const how = named(label, () => options<How>('options', given, NAMES));
    named(label, () => {
      const choices = withoutPreset(how);
      pruneChoices(choices);
      checkDistances(choices);
    });
    return { label, draws: () => [how] };
  }
  const how = methodOf(label, name as RivalName, given);
  if (name === RANDOM && given.seed === undefined)
    return { label, draws: (line) => seeds(line).map((seed) => ({ ...how, methodOptions: { ...given, seed } })) };
  return { label, draws: () => [how] };
}

function methodOf(label: string, method: RivalName, methodOptions: object): How {
  return named(label, () => {
    if (chooserOf(method, methodOptions).isAdaptive)
      throw mismatch('ERR_VALUE', 'method', 'one that finds K itself', 'one that keeps as many as --keep says');
    return { method, methodOptions };
  });
}

/** Other ones for each question. */
function seeds(line: number): number[] {
  return Array.from({ length: DRAWS }, (_, draw) => line * DRAWS + draw);
}

/** Errors that say which method it is. */
function named<T>(label: string, make: () => T): T {
  try {
    return make();
  } catch (error) {
    if (!(error instanceof DesapError)) throw error;
    throw new DesapError(error.code, `--methods ${label}: ${error.message}`, { cause: error });
  }
}

/** `name=value`. */
function entryOf(label: string, option: string): [string, ReturnType<typeof typed>] {
  const [, name, value] = /^(\w+)=(.+)$/.exec(option) ?? [];
  if (name === undefined) throw invalid('ERR_VALUE', `--methods ${label}`, option, 'option=value');
  return [name, typed(value)];
}
