/** Values that no function wants, in every place where a caller may put one. */
import { types } from 'node:util';
import { runInNewContext } from 'node:vm';
import { expect, test } from 'vitest';
import type { DesapError } from '../src/errors.js';

const thrower = (): never => {
  throw new Error('the caller’s own');
};
const circle: unknown[] = [];
circle.push(circle);

/** Made anew for each call: some can be used once. */
export const WRONG: Readonly<Record<string, () => unknown>> = {
  null: () => null,
  'a Symbol': () => Symbol('x'),
  'a list of Symbols': () => [Symbol('x')],
  'a BigInt': () => 3n,
  NaN: () => Number.NaN,
  '-1': () => -1,
  'a text': () => 'nonsense \0',
  'a function': () => () => 1,
  'an object without prototype': () => Object.create(null),
  'an object of Symbols': () => ({ data: Symbol('d'), dims: [Symbol('n')], type: Symbol('t') }),
  'a list in itself': () => circle,
  'an object whose fields throw': () =>
    new Proxy({}, { get: thrower, has: thrower, ownKeys: thrower, getPrototypeOf: thrower }),
  'a tensor whose fields throw': () => ({
    get data() {
      return thrower();
    },
    get dims() {
      return thrower();
    },
  }),
  'a list whose entries throw': () => Object.defineProperty([1], 0, { get: thrower }),
  'a Proxy that was revoked': () => {
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    return proxy;
  },
  'a list that was revoked': () => {
    const { proxy, revoke } = Proxy.revocable([], {});
    revoke();
    return proxy;
  },
  'a Proxy of a typed array': () => new Proxy(new Float32Array(4), {}),
  'an object that says it is a typed array': () => Object.create(Float32Array.prototype),
  'an object that throws as a text': () => ({
    toString: thrower,
    valueOf: thrower,
    constructor: { name: Symbol('n') },
  }),
  'a list of another realm': () => runInNewContext('[Symbol("x"), {}]'),
  'an object of another realm': () => runInNewContext('({ a: 1 })'),
};

/** How a call ended: well, by a typed refusal, or by anything else, in words. */
async function ended(call: () => unknown): Promise<'well' | 'refused' | string> {
  try {
    await call();
    return 'well';
  } catch (error) {
    // Of dist, which workers run, the class is another one.
    const { name, code } = error as Partial<DesapError>;
    if (types.isNativeError(error) && name === 'DesapError' && code !== 'ERR_INTERNAL') return 'refused';
    return String((error as Error)?.stack ?? 'no error')
      .split('\n')
      .slice(0, 4)
      .join(' ');
  }
}

/** A call with a hole in it. */
export type Hole = readonly [name: string, call: (value: never) => unknown];

/** A test for each call, with every wrong value in it. */
export function refuseWrongValues(holes: readonly Hole[]): void {
  test.each(holes)('%s', async (_, call) => {
    const ends: [string, string][] = [];
    for (const [what, make] of Object.entries(WRONG)) ends.push([what, await ended(() => call(make() as never))]);
    expect(ends.filter(([, end]) => end !== 'well' && end !== 'refused')).toEqual([]);
    expect(ends.filter(([, end]) => end === 'refused').length).toBeGreaterThan(ends.length / 2);
  });
}
