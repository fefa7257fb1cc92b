import { DesapError, describe, invalid, messageOf, mismatch } from './errors.js';

/** The names of an interface's options: all of them, or the compiler says which is missing. */
export type OptionNames<T extends object> = { readonly [K in keyof Required<T>]: true };

/**
 * An object of options, checked for names that are none, as it is now: each option is read once, and what becomes of the caller's object
 * later makes no difference. An option that is undefined is not given.
 *
 * @param argument what the caller knows the object by
 * @param renamed former names, each with the option that took its place
 * @throws DesapError `ERR_VALUE` for what is no object, for an unknown option, by its name, and for one that cannot be read
 */
export function options<T extends object>(
  argument: string,
  given: T | undefined,
  names: OptionNames<T>,
  renamed: Readonly<Record<string, string>> = {},
): T {
  if (given === undefined) return {} as T;
  if (typeof given !== 'object' || given === null) throw invalid('ERR_VALUE', argument, given, 'an object of options');
  const own = reading(argument, () => Object.keys(given));
  for (const name of own) {
    if (Object.hasOwn(names, name) || field(argument, given as Record<string, unknown>, name) === undefined) continue;
    const now = Object.hasOwn(renamed, name)
      ? `${renamed[name]}, its name now`
      : `one of ${Object.keys(names).join(', ')}`;
    throw mismatch('ERR_VALUE', argument, `the unknown option ${describe(name)}`, now);
  }
  return fields(argument, given, Object.keys(names) as (keyof T & string)[]);
}

/**
 * Some fields of an object of the caller's, each read once, without those that are undefined.
 * @throws DesapError `ERR_VALUE` for one that cannot be read
 */
export function fields<T extends object>(argument: string, given: T, names: readonly (keyof T & string)[]): T {
  const read = names.map((name) => [name, field(argument, given, name)] as const);
  return Object.fromEntries(read.filter(([, value]) => value !== undefined)) as T;
}

/**
 * One field of an object of the caller's: a getter may throw.
 * @throws DesapError `ERR_VALUE`
 */
export function field<T extends object, K extends keyof T & string>(argument: string, given: T, name: K): T[K] {
  return reading(`${argument}.${name}`, () => given[name]);
}

/** More entries than any list here has; an array may have holes, and say that it has 2^32. */
const MOST_ENTRIES = 2 ** 24;

/**
 * A list of the caller's as it is now, in an array of our own.
 * @throws DesapError `ERR_VALUE` for entries that cannot be read, and for more than 2^24
 */
export function entries<T>(argument: string, list: readonly T[]): T[] {
  const length = field(argument, list, 'length');
  if (length > MOST_ENTRIES) throw mismatch('ERR_VALUE', argument, `${length} entries`, `at most ${MOST_ENTRIES}`);
  return reading(argument, () => Array.from({ length }, (_, i) => list[i]));
}

/** Whether a value is an object of a class; one that fails when it is asked is none. */
export function isOf<T extends object>(Class: { readonly prototype: T }, value: unknown): value is T {
  try {
    return value instanceof (Class as abstract new () => T);
  } catch {
    return false;
  }
}

/** Looks at what a caller gave. */
export function reading<T>(argument: string, look: () => T): T {
  try {
    return look();
  } catch (cause) {
    throw new DesapError('ERR_VALUE', `${argument}: cannot be read: ${messageOf(cause)}`, { cause });
  }
}
