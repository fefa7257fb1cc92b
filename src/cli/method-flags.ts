/** Options that have options of their own: `--method-options windows=6,mergeSpace=hidden`, `--tower at=1,keep=0.25`, `--tiles keep=2,by=kk`. */
import { InvalidArgumentError } from 'commander';

type Value = string | number | boolean | string[];

/** Numbers and true or false as such, a list with + between, all else as text. */
export function namedValues(text: string): Record<string, Value> {
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
