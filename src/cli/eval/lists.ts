import { describe, mismatch } from '../../errors.js';

/**
 * The entries of a list with commas between.
 * @param argument the option that has it
 * @throws DesapError `ERR_VALUE` for an entry that is there twice
 */
export function listOf(argument: string, text: string): string[] {
  return once(
    argument,
    text.split(',').map((entry) => entry.trim()),
  );
}

/** @throws DesapError `ERR_VALUE` for an entry that is there twice */
export function once(argument: string, entries: string[]): string[] {
  const twice = entries.find((entry, i) => entries.indexOf(entry) < i);
  if (twice === undefined) return entries;
  throw mismatch('ERR_VALUE', argument, `${describe(twice)} twice`, 'each entry once');
}
