import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import * as small from './fixtures/native.mjs';

function start(what: string): Worker {
  return new Worker(new URL('./fixtures/worker.mjs', import.meta.url), { workerData: what });
}

function message(worker: Worker): Promise<never> {
  return new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
    worker.once('exit', (code) => reject(new Error(`the worker ended (${code}) before it answered`)));
  });
}

const ended = (worker: Worker) => new Promise<number>((resolve) => worker.once('exit', resolve));

describe('worker threads', () => {
  it('compute what the main thread computes, several at once', async () => {
    const context = small.openContext();
    const head = await context.createHead(small.smallHead());
    const [analysis] = await head.analyze([small.waves(17, 32)], { encoding: 'qq', intermediates: false }, true);
    const want = await analysis.prune(small.pruneRequest(small.waves(5, 16), 4), true);
    const workers = Array.from({ length: 4 }, () => start('prune'));
    const answers = await Promise.all(workers.map((worker) => Promise.all([message(worker), ended(worker)])));
    for (const [{ asynchronous, synchronous }, code] of answers as [
      { asynchronous: object; synchronous: object },
      number,
    ][]) {
      expect(code).toBe(0);
      for (const got of [asynchronous, synchronous]) expect({ ...got, timings: want.timings }).toEqual(want);
    }
    context.dispose();
  });

  it.each(['in flight', 'synchronous', 'many'])('are terminated with work %s', async (what) => {
    for (let round = 0; round < 3; round++) {
      const workers = [start(what), start(what)];
      await Promise.all(workers.map(message));
      await new Promise((resolve) => setTimeout(resolve, round * 40));
      const since = performance.now();
      await Promise.all(workers.map((worker) => worker.terminate()));
      expect(performance.now() - since).toBeLessThan(20_000);
    }
    const context = small.openContext();
    expect(context.run('topK', { scores: Float32Array.of(3, 1, 2), k: 2, excluded: null }, true)).toEqual(
      Int32Array.of(0, 2),
    );
    context.dispose();
  });

  it('end by themselves once their work is done', async () => {
    const worker = start('many');
    await message(worker);
    worker.postMessage('stop');
    expect(await ended(worker)).toBe(0);
  });
});
