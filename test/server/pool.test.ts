/** A pool of workers: what one model answers, for many requests, whatever becomes of some of them. The workers are those of dist. */
import { cp, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { PrunedFeatures } from '../../src/vision/index.js';
import { ImageProcessor, LlavaVision } from '../../src/vision/index.js';
import { refuseWrongValues } from '../wrong-values.js';

type Server = typeof import('../../src/server/index.js');
type Pool = Awaited<ReturnType<Server['VisionPool']['open']>>;
const { VisionPool, httpStatus } = (await import('../../dist/server/index.js' as string)) as Server;

const LLAVA = 'models/tiny-llava';
const CLIP = 'models/tiny-clip';
const QUESTIONS = ['what is the large thing ?', 'what color is the star ?', 'is there a red thing ?'];
const pictures = await Promise.all(['000', '001', '002'].map((name) => readFile(`models/eval/images/${name}.png`)));
const continuation = new URL('./continuation.mjs', import.meta.url);
const how = { clip: CLIP, keep: 16, cores: 2, workers: 2 } as const;

const plain = ({ timings: _, features, ...result }: PrunedFeatures) => ({
  ...result,
  features: { data: features.data, dims: features.dims },
});

/** What the model by itself gives. */
async function alone(): Promise<ReturnType<typeof plain>[][]> {
  const vision = await LlavaVision.open(`${LLAVA}/onnx/vision_encoder.onnx`, { clip: CLIP, keep: 16 });
  const processor = await ImageProcessor.open(LLAVA);
  const results: ReturnType<typeof plain>[][] = [];
  for (const picture of pictures) {
    const [image] = await vision.encode(await processor.process(picture));
    const own: ReturnType<typeof plain>[] = [];
    for (const question of QUESTIONS) own.push(plain(await image.prune(question)));
    results.push(own);
    image.dispose();
  }
  await vision.dispose();
  return results;
}
const wanted = await alone();

describe('a pool of two workers', () => {
  let pool: Pool;
  beforeAll(async () => {
    pool = await VisionPool.open(LLAVA, { ...how, continuation });
  });
  afterAll(() => pool?.dispose());

  it('gives what the model by itself gives, to the bit', async () => {
    const all = pictures.flatMap((picture, p) => QUESTIONS.map((question, q) => ({ picture, question, p, q })));
    const results = await Promise.all(all.map(({ picture, question }) => pool.prune(picture, question)));
    for (const [i, { p, q }] of all.entries()) expect(plain(results[i])).toEqual(wanted[p][q]);
    for (const { timings } of results) {
      expect(timings.waiting).toBeGreaterThanOrEqual(0);
      expect(timings.vision).toBeGreaterThan(0);
    }
  });

  it('takes shared memory, and inputs of an image processor', async () => {
    const shared = new Uint8Array(new SharedArrayBuffer(pictures[0].length));
    shared.set(pictures[0]);
    expect(plain(await pool.prune(shared, QUESTIONS[0]))).toEqual(wanted[0][0]);
    const pixelValues = await (await ImageProcessor.open(LLAVA)).process(pictures[0]);
    expect(plain(await pool.prune({ pixelValues }, QUESTIONS[0]))).toEqual(wanted[0][0]);
  });

  it('lets a bad request fail by itself, with its own error', async () => {
    const broken = pool.prune(new Uint8Array(100), QUESTIONS[0]);
    const long = pool.prune(pictures[0], 'what '.repeat(10_000));
    const dense = pool.prune(pictures[0], 'a '.repeat(5000));
    const good = pool.prune(pictures[0], QUESTIONS[0]);
    const errors = await Promise.all([broken, long, dense].map((one) => one.catch((error) => error)));
    expect(errors.map(({ name, code }) => [name, code])).toEqual([
      ['DesapError', 'ERR_FILE'],
      ['DesapError', 'ERR_VALUE'],
      ['DesapError', 'ERR_VALUE'],
    ]);
    expect(errors[2].message).toMatch(/^question: got \d+ tokens, wanted at most 4096 \(limits\({ promptTokens }\)\)/);
    expect(errors.map(httpStatus)).toEqual([400, 400, 400]);
    expect(plain(await good)).toEqual(wanted[0][0]);
    await expect(pool.prune('/etc/passwd' as never, QUESTIONS[0])).rejects.toThrow(/picture: got '\/etc\/passwd'/);
    await expect(pool.prune(pictures[0], QUESTIONS[0], { keep: 'all' as never })).rejects.toThrow(/keep: got 'all'/);
    await expect(pool.prune(pictures[0], QUESTIONS[0], { kept: 3 } as never)).rejects.toThrow(/unknown option 'kept'/);
  });

  it('streams what follows, piece by piece', async () => {
    const pieces: unknown[] = [];
    for await (const piece of pool.stream(pictures[1], QUESTIONS[1], { input: 'x' })) pieces.push(piece);
    const [first, ...others] = pieces as [{ indices: Int32Array }, ...number[]];
    expect(first).toEqual({
      ...{ family: 'llava', threads: 1, question: QUESTIONS[1], dims: [1, 16, 128] },
      indices: wanted[1][1].indices,
    });
    expect(others).toEqual([0, 1, 2]);
    for await (const piece of pool.stream(pictures[1], QUESTIONS[1], { keep: 'all' })) {
      expect(piece).toMatchObject({ dims: [1, 144, 128] });
      break;
    }
  });

  it('ends a stream when its reader stops, when its signal does, and when it fails', async () => {
    for await (const _ of pool.stream(pictures[0], QUESTIONS[0], { input: 'endless' })) break;
    const signal = AbortSignal.timeout(200);
    const endless = async () => {
      for await (const _ of pool.stream(pictures[0], QUESTIONS[0], { input: 'endless', signal }));
    };
    await expect(endless()).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: { name: 'TimeoutError' } });
    const failing = async () => {
      for await (const _ of pool.stream(pictures[0], QUESTIONS[0], { input: 'fail' }));
    };
    const thrown = { name: 'DesapError', code: 'ERR_CONTINUATION', message: 'continuation: no such luck' };
    await expect(failing()).rejects.toMatchObject(thrown);
    await pool.prune(pictures[0], QUESTIONS[0]);
    await expect.poll(() => pool.health().running).toBe(0);
  });

  it('replaces a worker that dies, whose request gets a typed error', async () => {
    const dying = async () => {
      for await (const _ of pool.stream(pictures[0], QUESTIONS[0], { input: 'die' }));
    };
    const [died, ...others] = await Promise.allSettled([
      dying(),
      ...QUESTIONS.map((question) => pool.prune(pictures[0], question)),
    ]);
    expect(died).toMatchObject({ status: 'rejected', reason: { code: 'ERR_WORKER_LOST' } });
    expect(httpStatus((died as PromiseRejectedResult).reason)).toBe(503);
    expect(others.map(({ status }) => status)).toEqual(['fulfilled', 'fulfilled', 'fulfilled']);
    await Promise.all(Array.from({ length: 6 }, () => pool.prune(pictures[0], QUESTIONS[0])));
    expect(pool.health().lost).toBe(1);
    await expect.poll(() => pool.health()).toMatchObject({ ready: 2, fault: null });
  });
});

describe('a queue', () => {
  let pool: Pool;
  beforeAll(async () => {
    pool = await VisionPool.open(LLAVA, { ...how, workers: 1, queue: 4, batch: 3, window: 20, continuation });
  });
  afterAll(() => pool?.dispose());

  /** Keeps the worker busy until it is told. */
  function busy(): () => void {
    const control = new AbortController();
    const running = (async () => {
      for await (const _ of pool.stream(pictures[0], QUESTIONS[0], { input: 'endless', signal: control.signal }));
    })();
    running.catch(() => {});
    return () => control.abort();
  }

  it('refuses what is too much, answers the rest in its order, and prunes in one go what waits together', async () => {
    const release = busy();
    await expect.poll(() => pool.health().running).toBe(1);
    const order: number[] = [];
    const asked = Array.from({ length: 6 }, (_, i) =>
      pool.prune(pictures[i % 3], QUESTIONS[0]).then((result) => {
        order.push(i);
        return result;
      }),
    );
    const settled = Promise.allSettled(asked);
    expect(pool.health()).toMatchObject({ waiting: 4, running: 1, state: 'open' });
    release();
    const results = await settled;
    expect(results.map(({ status }) => status)).toEqual([...Array(4).fill('fulfilled'), 'rejected', 'rejected']);
    for (const [i, one] of results.entries())
      if (one.status === 'fulfilled') expect(plain(one.value)).toEqual(wanted[i % 3][0]);
      else expect(one.reason).toMatchObject({ code: 'ERR_BUSY' });
    expect(order).toEqual([0, 1, 2, 3]);
    const waits = results.flatMap((one) => (one.status === 'fulfilled' ? one.value.timings.waiting : []));
    expect(Math.min(...waits)).toBeGreaterThan(1);
    expect(pool.health().refused).toBe(2);
  });

  it('one of several that are pruned in one go fails by itself', async () => {
    const release = busy();
    await expect.poll(() => pool.health().running).toBe(1);
    const settled = Promise.allSettled([
      pool.prune(pictures[0], QUESTIONS[0]),
      pool.prune(pictures[1], ''),
      pool.prune(pictures[2], QUESTIONS[0]),
    ]);
    release();
    const [first, bad, last] = await settled;
    expect(bad).toMatchObject({ status: 'rejected', reason: { code: 'ERR_VALUE' } });
    for (const [p, one] of [first, last].entries())
      expect(plain((one as PromiseFulfilledResult<PrunedFeatures>).value)).toEqual(wanted[2 * p][0]);
  });

  it('gives clients turns, and a full queue has a place for who has fewer in it', async () => {
    const release = busy();
    await expect.poll(() => pool.health().running).toBe(1);
    const order: string[] = [];
    // Alone each, so that no two go together.
    const ask = async (client: string, name: string) => {
      for await (const _ of pool.stream(pictures[0], QUESTIONS[0], { client })) break;
      order.push(name);
    };
    const asked = [ask('a', 'a1'), ask('a', 'a2'), ask('a', 'a3'), ask('a', 'a4'), ask('b', 'b1')];
    const settled = Promise.allSettled(asked);
    await expect.poll(() => pool.health().waiting).toBe(4);
    release();
    const results = await settled;
    expect(order).toEqual(['a1', 'b1', 'a2', 'a3']);
    expect(results[3]).toMatchObject({ status: 'rejected', reason: { code: 'ERR_BUSY' } });
    const nobody = pool.prune(pictures[0], QUESTIONS[0], { client: '' });
    await expect(nobody).rejects.toThrow(/client: got '', wanted the name of a client/);
    await expect.poll(() => pool.health().running).toBe(0);
  });

  it('lets go of who waits and gives up', async () => {
    const release = busy();
    await expect.poll(() => pool.health().running).toBe(1);
    const control = new AbortController();
    const gone = pool.prune(pictures[0], QUESTIONS[0], { signal: control.signal });
    const stays = pool.prune(pictures[0], QUESTIONS[0]);
    expect(pool.health().waiting).toBe(2);
    control.abort();
    await expect(gone).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    expect(pool.health().waiting).toBe(1);
    release();
    expect(plain(await stays)).toEqual(wanted[0][0]);
  });
});

describe('a worker that takes the place of another', () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'desap-pool-'));
  });
  afterAll(() => rm(folder, { recursive: true }));

  async function die(pool: Pool): Promise<void> {
    const dying = async () => {
      for await (const _ of pool.stream(pictures[0], QUESTIONS[0], { input: 'die' }));
    };
    await expect(dying()).rejects.toMatchObject({ code: 'ERR_WORKER_LOST' });
  }
  const gets = async (pool: Pool) => {
    const asked = [0, 1, 2].map((p) => pool.prune(pictures[p], QUESTIONS[0]).catch((error) => error));
    return Promise.all(asked);
  };

  it('and cannot open the model says so, to health and to each request, and goes on once it can', async () => {
    const model = join(folder, 'llava');
    await cp(LLAVA, model, { recursive: true });
    await using pool = await VisionPool.open(model, { ...how, workers: 1, continuation });
    expect(pool.health()).toMatchObject({ ready: 1, fault: null, lost: 0 });
    await rename(model, `${model}-gone`);
    await die(pool);
    await expect.poll(() => pool.health()).toMatchObject({ ready: 0, lost: 1, fault: expect.stringContaining(model) });
    for (const error of await gets(pool)) {
      expect(error).toMatchObject({
        name: 'DesapError',
        code: 'ERR_WORKER_LOST',
        message: expect.stringContaining(model),
      });
      expect(httpStatus(error)).toBe(503);
    }
    await rename(`${model}-gone`, model);
    for (const [p, result] of (await gets(pool)).entries()) expect(plain(result)).toEqual(wanted[p][0]);
    expect(pool.health()).toMatchObject({ ready: 1, fault: null, waiting: 0, running: 0 });
  });

  it('and dies while it starts leaves nobody waiting, and another takes its place', async () => {
    const [flag, module] = ['flag', 'continuation.mjs'].map((name) => join(folder, name));
    await writeFile(
      module,
      `import { existsSync } from 'node:fs';
      import open from ${JSON.stringify(continuation.href)};
      if (existsSync(${JSON.stringify(flag)})) process.exit(4);
      export default open;`,
    );
    await using pool = await VisionPool.open(LLAVA, { ...how, workers: 1, continuation: pathToFileURL(module) });
    await writeFile(flag, '');
    await die(pool);
    for (const error of await gets(pool)) expect(error).toMatchObject({ name: 'DesapError', code: 'ERR_WORKER_LOST' });
    expect(pool.health()).toMatchObject({ state: 'open', ready: 0, waiting: 0, running: 0 });
    await rm(flag);
    for (const [p, result] of (await gets(pool)).entries()) expect(plain(result)).toEqual(wanted[p][0]);
    expect(pool.health()).toMatchObject({ ready: 1, fault: null });
  });
});

it('opening ends with its signal, and so do the workers', async () => {
  const threads = () => process.getActiveResourcesInfo().filter((name) => name === 'MessagePort').length;
  const before = threads();
  for (const milliseconds of [1, 100]) {
    const opening = VisionPool.open(LLAVA, { ...how, signal: AbortSignal.timeout(milliseconds) });
    await expect(opening).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: { name: 'TimeoutError' } });
    expect(threads()).toBe(before);
  }
});

it('ends what it has when it is disposed of, and takes nothing more', async () => {
  const pool = await VisionPool.open(LLAVA, { ...how, deadline: 60_000 });
  const running = pictures.map((picture) => pool.prune(picture, QUESTIONS[0]));
  const ended = pool.dispose();
  expect(pool.health().state).toBe('draining');
  await expect(pool.prune(pictures[0], QUESTIONS[0])).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
  for (const [p, one] of (await Promise.all(running)).entries()) expect(plain(one)).toEqual(wanted[p][0]);
  await Promise.all([ended, pool.dispose()]);
  expect(pool.health()).toMatchObject({ state: 'closed', running: 0, waiting: 0, answered: 3, lost: 0 });
});

it('keeps pictures and questions where it is asked to: the same results, to the bit, without the tower', async () => {
  const pool = await VisionPool.open(LLAVA, { ...how, workers: 1, cacheImages: 2 ** 21, cacheQuestions: 2 ** 20 });
  const ask = async () => {
    const results: PrunedFeatures[] = [];
    for (const question of QUESTIONS) results.push(await pool.prune(pictures[0], question));
    return results;
  };
  const [first, again] = [await ask(), await ask()];
  for (const results of [first, again])
    for (const [q, one] of results.entries()) expect(plain(one)).toEqual(wanted[0][q]);
  // What an image cost once counts for each of its questions.
  const vision = first[0].timings.vision;
  for (const { timings } of [...first, ...again]) expect(timings.vision).toBe(vision);
  for (const picture of pictures) await pool.prune(picture, QUESTIONS[0]);
  await pool.dispose();
});

it('a deadline ends a request that is too late', async () => {
  const pool = await VisionPool.open(LLAVA, { ...how, workers: 1, deadline: 1 });
  const late = await pool.prune(pictures[0], QUESTIONS[0]).catch((error) => error);
  expect([late.code, httpStatus(late)]).toEqual(['ERR_ABORTED', 504]);
  await pool.dispose();
});

it('does not wait for company when it drains', async () => {
  const pool = await VisionPool.open(LLAVA, { ...how, workers: 1, batch: 2, window: 60_000 });
  const alone = pool.prune(pictures[0], QUESTIONS[0]);
  await expect.poll(() => pool.health().waiting).toBe(1);
  await pool.dispose();
  expect(plain(await alone)).toEqual(wanted[0][0]);
});

describe('what comes from the caller', () => {
  let pool: Pool;
  beforeAll(async () => {
    pool = await VisionPool.open(LLAVA, { ...how, workers: 1, batch: 8, window: 20, continuation });
  });
  afterAll(() => pool?.dispose());

  const detached = () => {
    const { buffer } = Uint8Array.from(pictures[0]);
    structuredClone(buffer, { transfer: [buffer] });
    return buffer;
  };
  const stream = async (input: unknown) => {
    for await (const _ of pool.stream(pictures[0], QUESTIONS[0], { input }));
  };
  it.each([
    [
      'a function as a question',
      () => pool.prune(pictures[0], (() => {}) as never),
      'ERR_VALUE',
      /^question: got what/,
    ],
    [
      'a function as an option',
      () => pool.prune(pictures[0], '', { keep: (() => {}) as never }),
      'ERR_VALUE',
      /^options/,
    ],
    [
      'a function in the input',
      () => stream([() => {}]),
      'ERR_VALUE',
      /^input: got what cannot go to a worker: .*clone/,
    ],
    [
      'other memory as a picture',
      () => pool.prune(new Float32Array(4) as never, ''),
      'ERR_VALUE',
      /^picture: got Float32/,
    ],
    ['a picture that is gone', () => pool.prune(detached(), ''), 'ERR_DETACHED', /^picture: got a buffer that was/],
  ] as const)(
    '%s is refused by its name, and takes no other request of its batch with it',
    async (_, call, code, message) => {
      const [good, bad] = await Promise.allSettled([pool.prune(pictures[0], QUESTIONS[0]), call()]);
      expect(bad).toMatchObject({ status: 'rejected', reason: { name: 'DesapError', code } });
      expect((bad as PromiseRejectedResult).reason.message).toMatch(message);
      expect(plain((good as PromiseFulfilledResult<PrunedFeatures>).value)).toEqual(wanted[0][0]);
    },
  );

  refuseWrongValues([
    ['the picture', (given) => pool.prune(given, QUESTIONS[0])],
    ['an input', (given) => pool.prune({ pixelValues: given }, QUESTIONS[0])],
    [
      'the extents of an input',
      (dims) => pool.prune({ pixelValues: { data: new Float32Array(3), dims } }, QUESTIONS[0]),
    ],
    ['the embeddings of a question', (embeddings) => pool.prune(pictures[0], { embeddings })],
    ['the options', (given) => pool.prune(pictures[0], QUESTIONS[0], given)],
    ['the signal', (signal) => pool.prune(pictures[0], QUESTIONS[0], { signal })],
    ['a continuation', (given) => VisionPool.open(LLAVA, { ...how, continuation: given })],
  ]);

  it('is read at the call, whatever becomes of it', async () => {
    const vision = await LlavaVision.open(`${LLAVA}/onnx/vision_encoder.onnx`, { clip: CLIP, keep: 16 });
    const question = await vision.encodeQuestion(QUESTIONS[0]);
    const pixelValues = await (await ImageProcessor.open(LLAVA)).process(pictures[0]);
    const [, ...late] = [pool.prune(pictures[1], QUESTIONS[0]), pool.prune({ pixelValues }, question)];
    (question.embeddings.data as Float32Array).fill(0);
    (pixelValues.data as Float32Array).fill(0);
    expect(plain(await late[0])).toEqual(wanted[0][0]);
    await vision.dispose();
  });

  it('may be shared memory, pixels too', async () => {
    const { data, dims } = await (await ImageProcessor.open(LLAVA)).process(pictures[0]);
    const shared = new Float32Array(new SharedArrayBuffer(4 * data.length));
    shared.set(data as Float32Array);
    expect(plain(await pool.prune({ pixelValues: { data: shared, dims } }, QUESTIONS[0]))).toEqual(wanted[0][0]);
  });
});

it.each([
  [{ ...how, queue: -1 }, /queue: got -1/],
  [{ ...how, workers: 0 }, /workers: got 0/],
  [{ ...how, threads: 3 }, /unknown option 'threads'/],
  [{ ...how, continuation: './it.mjs' }, /continuation: got '.\/it.mjs', wanted the file: URL/],
  [{ ...how, clip: 'models/nowhere' }, /models\/nowhere/],
  [{ ...how, continuation: 'file:///no/such.mjs' }, /continuation: file:\/\/\/no\/such.mjs cannot be imported: /],
  [{ ...how, filter: { maxTokens: 3, frequency: () => 1 } }, /cannot go to a worker/],
])('is not opened with %j', async (options, message) => {
  await expect(VisionPool.open(LLAVA, options as never)).rejects.toThrow(message);
});
