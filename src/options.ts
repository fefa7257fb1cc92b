import { invalid, mismatch } from './errors.js';

/** The names of an interface's options: all of them, or the compiler says which is missing. */
export type OptionNames<T extends object> = { readonly [K in keyof Required<T>]: true };

/**
 * An object of options, checked for names that are none. An option that is undefined is not given.
 *
 * @param argument what the caller knows the object by
 * @param renamed former names, each with the option that took its place
 * @throws DesapError `ERR_VALUE` for what is no object, and for an unknown option, by its name
 */
export function options<T extends object>(
  argument: string,
  given: T | undefined,
  names: OptionNames<T>,
  renamed: Readonly<Record<string, string>> = {},
): T {
  if (given === undefined) return {} as T;
  if (typeof given !== 'object' || given === null) throw invalid('ERR_VALUE', argument, given, 'an object of options');
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || Object.hasOwn(names, name)) continue;
    const now = Object.hasOwn(renamed, name)
      ? `${renamed[name]}, its name now`
      : `one of ${Object.keys(names).join(', ')}`;
    throw mismatch('ERR_VALUE', argument, `the unknown option '${name}'`, now);
  }
  return given;
}
