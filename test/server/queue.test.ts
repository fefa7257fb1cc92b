/** Who goes to a worker next: clients have turns, and none of them fills the queue for the others. */
import { expect, it } from 'vitest';
import { Queue } from '../../src/server/queue.js';

interface Request {
  readonly name: string;
  readonly client: string | undefined;
  readonly isAlone: boolean;
}

/** `a1` is client a's first; `-1` nobody's; a capital goes alone. */
const request = (name: string): Request => ({
  ...{ name, client: name[0] === '-' ? undefined : name[0].toLowerCase() },
  isAlone: /[A-Z]/.test(name[0]),
});

function queueOf(limit: number, ...names: readonly string[]) {
  const queue = new Queue<Request>(limit);
  const requests = new Map(names.map((name) => [name, request(name)]));
  const dropped = [...requests.values()].flatMap((one) => queue.push(one)?.name ?? []);
  const taken = (most = 1) => {
    const all: string[][] = [];
    for (let some = queue.take(most); some.length > 0; some = queue.take(most)) all.push(some.map(({ name }) => name));
    return all;
  };
  return { queue, requests, dropped, taken };
}

it('one client alone has the order of its arrival', () => {
  expect(queueOf(9, '-1', '-2', '-3').taken()).toEqual([['-1'], ['-2'], ['-3']]);
});

it('several clients have turns, whoever came first and with how many', () => {
  const { taken } = queueOf(9, 'a1', 'a2', 'a3', 'a4', 'b1', '-1', 'b2');
  expect(taken().flat()).toEqual(['a1', 'b1', '-1', 'a2', 'b2', 'a3', 'a4']);
});

it('a client that comes again is behind those that wait', () => {
  const { queue } = queueOf(9, 'a1', 'b1', 'b2');
  expect(queue.take(1).map(({ name }) => name)).toEqual(['a1']);
  queue.push(request('a2'));
  expect([queue.take(1), queue.take(1), queue.take(1)].flat().map(({ name }) => name)).toEqual(['b1', 'a2', 'b2']);
});

it('a batch is of those whose turn it is, and who goes alone goes alone', () => {
  const { taken } = queueOf(9, 'a1', 'a2', 'b1', 'C1', 'a3');
  expect(taken(3)).toEqual([['a1', 'b1'], ['C1'], ['a2', 'a3']]);
});

it('lets go of who gives up, and of its client with it', () => {
  const { queue, requests, taken } = queueOf(9, 'a1', 'b1', 'a2');
  expect(queue.remove(requests.get('b1')!)).toBe(true);
  expect(queue.remove(requests.get('b1')!)).toBe(false);
  expect(queue.size).toBe(2);
  expect(taken().flat()).toEqual(['a1', 'a2']);
  expect([queue.size, queue.first]).toEqual([0, undefined]);
});

it('when it is full, the last of the client that has most goes for one that has fewer', () => {
  const { dropped, taken, queue } = queueOf(4, 'a1', 'a2', 'a3', 'a4', 'b1', 'b2');
  expect(dropped).toEqual(['a4', 'a3']);
  expect(queue.size).toBe(4);
  expect(taken().flat()).toEqual(['a1', 'b1', 'a2', 'b2']);
});

it.each([
  ['of its own', ['a1', 'a2', 'a3', 'a4']],
  ['where all have as many', ['a1', 'b1', 'a2', 'b2', 'a3']],
])('when it is full, it refuses one more %s', (_, names) => {
  expect(() => queueOf(names.length - 1, ...names)).toThrow(expect.objectContaining({ code: 'ERR_BUSY' }));
});
