/** What all contestants have to agree on. */
import { relativeError } from '../../test/support.js';

/** A result as plain numbers. */
export interface Outcome {
  readonly indices: readonly number[];
  readonly assignment: readonly number[];
  readonly tokens: Float32Array;
}

/** Fails unless `name` kept the same patches, gave each patch to the same of them, and merged to the same tokens. */
export function requireAgreement(name: string, got: Outcome, want: Outcome): void {
  const wrong = (key: 'indices' | 'assignment') =>
    Math.abs(want[key].length - got[key].length) + want[key].filter((value, i) => got[key][i] !== value).length;
  const off = relativeError(got.tokens, want.tokens);
  if (wrong('indices') + wrong('assignment') > 0 || off > 1e-4)
    throw new Error(
      `${name}: ${wrong('indices')} indices and ${wrong('assignment')} assignments differ, tokens by ${off}`,
    );
}
