/** Methods and tiles on the command line: `--method vscan --method-options windows=6,mergeSpace=hidden`, `--tiles keep=2,by=kk`. */
import { InvalidArgumentError } from 'commander';
import type { TileOptions } from '../vision/tile-options.js';

type Value = string | number | boolean | string[];

/** The option `tiles`; its values are checked where it is used. */
export function tileOptions(text: string): TileOptions {
  return methodOptions(text) as unknown as TileOptions;
}

/** Options of a method: numbers and true or false as such, a list with + between, all else as text. */
export function methodOptions(text: string): Record<string, Value> {
  return Object.fromEntries(
    text.split(',').map((part): [string, Value] => {
      const [, name, value] = /^\s*(\w+)=(.+?)\s*$/.exec(part) ?? [];
      if (name === undefined) throw new InvalidArgumentError('Wanted name=value, with commas between several.');
      return [name, typed(value)];
    }),
  );
}

/** An option's value as its method takes it. */
export function typed(text: string): Value {
  if (text === 'true' || text === 'false') return text === 'true';
  if (Number.isFinite(Number(text))) return Number(text);
  return text.includes('+') ? text.split('+') : text;
}
