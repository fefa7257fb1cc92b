/** What a script of the process can do to the addon's objects, on purpose or not: no memory that is not its own. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import * as small from './fixtures/native.mjs';

const context = small.openContext();
const head = await context.createHead(small.smallHead());
const block = await context.createBlock(small.smallBlock());
const [analysis] = await head.analyze([small.waves(17, 32)], small.analyzeRequest, true);
const buffer = new small.addon.HostBuffer(64);
const question = small.pruneRequest(small.waves(5, 16), 4);

const instances = { context, head, block, analysis, buffer };
const members = Object.entries(instances).flatMap(([owner, object]) => {
  const properties = Object.getOwnPropertyDescriptors(Object.getPrototypeOf(object));
  return Object.entries(properties)
    .filter(([name]) => name !== 'constructor')
    .map(([name, { value, get }]) => ({ owner, name, call: (value ?? get) as (...args: unknown[]) => unknown }));
});

describe('a member of one class called on another object', () => {
  const others: [string, unknown][] = [
    ...Object.entries(instances),
    ['a plain object', {}],
    ['undefined', undefined],
    ['a function', () => {}],
    ['a proxy', new Proxy(context, {})],
    ...Object.entries(instances).map(([name, object]): [string, unknown] => [
      `what claims to be a ${name}`,
      Object.create(Object.getPrototypeOf(object)),
    ]),
  ];

  it.each(members)('$owner: $name', ({ owner, call }) => {
    for (const [name, other] of others) {
      if (name !== owner) expect(() => call.call(other, {}, true), name).toThrow(TypeError);
    }
  });

  it('is refused on an object that was given another prototype', () => {
    const changed = new small.addon.HostBuffer(64);
    Object.setPrototypeOf(changed, Object.getPrototypeOf(analysis));
    const claimed = changed as unknown as typeof analysis;
    expect(() => claimed.timings).toThrow(TypeError);
    expect(() => claimed.featuresAddress).toThrow(TypeError);
    expect(() => claimed.saliency()).toThrow(TypeError);
  });

  it('every class was looked at', () => {
    expect(members.map(({ owner, name }) => `${owner}.${name}`)).toEqual(
      expect.arrayContaining([
        'context.deviceDescription',
        'head.prune',
        'block.dispose',
        'analysis.timings',
        'buffer.dispose',
      ]),
    );
  });
});

describe('a constructor', () => {
  it.each(['head', 'block', 'analysis'] as const)('of a class that only the addon makes is refused: %s', (name) => {
    const Class = instances[name].constructor as new (...args: unknown[]) => unknown;
    expect(() => new Class()).toThrow(TypeError);
    expect(() => new Class(instances[name])).toThrow(TypeError);
    expect(() => Reflect.construct(small.addon.HostBuffer, [64], Class)).not.toThrow();
    expect(() => Reflect.construct(Class, [64], small.addon.HostBuffer)).toThrow(TypeError);
  });

  it('is no function to call', () => {
    const call = small.addon.HostBuffer as unknown as (bytes: number) => void;
    expect(() => call(64)).toThrow(TypeError);
    expect(() => call.call(buffer, 64)).toThrow(TypeError);
  });
});

it('setters of prototypes see nothing of a result, a refusal or the exports', async () => {
  const script = new URL('./fixtures/hostile.mjs', import.meta.url).pathname;
  const { stdout } = await promisify(execFile)(process.execPath, [script]);
  const { seen, traps, problems } = JSON.parse(stdout);
  expect({ seen, problems }).toEqual({ seen: [], problems: [] });
  expect(traps).toBeGreaterThan(40);
});

describe('a list', () => {
  it('that grows while it is read is as long as it was', () => {
    const image = { ...small.waves(17, 32) };
    const images = [image];
    const sequences = [small.sequence(image)];
    Object.defineProperty(image, 'rows', {
      get() {
        images.push(image);
        sequences.push(sequences[0]);
        return 17;
      },
    });
    expect(head.analyze(images, small.analyzeRequest, true)).toHaveLength(1);
    const before = sequences.length;
    expect(block.analyze(sequences, 'qq', true)).toHaveLength(before);
    expect(images.length).toBeGreaterThan(1);
    expect(sequences.length).toBeGreaterThan(before);
  });

  it('that shrinks is refused', () => {
    const requests = [question];
    const images = [small.waves(17, 32)];
    Object.defineProperty(images[0], 'cols', {
      get() {
        requests.length = 0;
        return 32;
      },
    });
    expect(() => head.prune(images, { encoding: 'qq' }, requests, true)).toThrow(
      expect.objectContaining({ code: 'ERR_SHAPE' }),
    );
  });
});

it('what a property does to memory that was read before it is seen', () => {
  const resizable = new (
    ArrayBuffer as unknown as new (
      n: number,
      o: object,
    ) => ArrayBuffer & { resize(n: number): void }
  )(544 * 4, { maxByteLength: 544 * 8 });
  const data = new Float32Array(resizable);
  const x = { ...small.waves(17, 32), data };
  const trap = new Proxy(
    { q: x, k: x, v: x, heads: 2 },
    {
      get(target, name) {
        if (name === 'heads') resizable.resize(16);
        return target[name as keyof typeof target];
      },
    },
  );
  expect(() => context.run('attention', trap, true)).toThrow(expect.objectContaining({ code: 'ERR_SHAPE' }));
});
