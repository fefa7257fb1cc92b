import { expect, it } from 'vitest';
import { Cache } from '../../src/server/cache.js';

/** A cache of names, as many bytes each as the number in it; what was made, and what was freed. */
function cacheOf(bytes: number) {
  const [made, freed]: [string[], string[]] = [[], []];
  const cache = new Cache<string>(
    bytes,
    (value) => Number(value.slice(1)),
    (value) => freed.push(value),
  );
  const get = (name: string) =>
    cache.get(
      () => name,
      async () => {
        made.push(name);
        return name;
      },
    );
  const use = async (name: string) => (await get(name)).release();
  return { get, use, made, freed };
}

it('keeps what was used last, within its bytes', async () => {
  const { use, made, freed } = cacheOf(10);
  for (const name of ['a4', 'b4', 'a4', 'c4', 'a4', 'b4']) await use(name);
  expect(made).toEqual(['a4', 'b4', 'c4', 'b4']);
  expect(freed).toEqual(['b4', 'c4']);
});

it('frees nothing that is in use, and everything else once', async () => {
  const { get, use, freed } = cacheOf(4);
  const held = await get('a4');
  const again = await get('a4');
  await use('b4');
  expect(freed).toEqual([]);
  held.release();
  held.release();
  expect(freed).toEqual([]);
  again.release();
  expect(freed).toEqual(['a4']);
});

it('keeps nothing larger than itself, and with 0 bytes nothing at all', async () => {
  const small = cacheOf(3);
  for (const name of ['a4', 'a4', 'b2', 'b2']) await small.use(name);
  expect(small.made).toEqual(['a4', 'a4', 'b2']);
  expect(small.freed).toEqual(['a4', 'a4']);
  const none = cacheOf(0);
  for (const name of ['a1', 'a1']) await none.use(name);
  expect(none.freed).toEqual(['a1', 'a1']);
});

it('of two that are made at one time, one is kept', async () => {
  const { get, freed } = cacheOf(9);
  const [a, b] = await Promise.all([get('a4'), get('a4')]);
  a.release();
  b.release();
  expect(freed).toEqual(['a4']);
});
