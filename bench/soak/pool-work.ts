/** The soak's share of `desap/server`. The workers are those of dist. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { setImmediate as turn } from 'node:timers/promises';
import type { DesapError } from '../../src/index.js';
import type { ImageProcessor, LlavaVision } from '../../src/vision/index.js';

const { VisionPool } = (await import(
  '../../dist/server/index.js' as string
)) as typeof import('../../src/server/index.js');

const HOW = {
  ...{ clip: 'models/tiny-clip', keep: 16, cores: 2, workers: 2, cacheImages: 2 ** 20, cacheQuestions: 2 ** 16 },
  continuation: new URL('../../test/server/continuation.mjs', import.meta.url),
};
const QUESTION = 'what color is the star ?';
const PICTURES = ['000', '001', '002'].map((name) => `models/eval/images/${name}.png`);

interface Asked {
  readonly picture: Uint8Array;
  readonly wanted: Int32Array;
}

export class PoolWork {
  private constructor(private readonly asked: readonly Asked[]) {}

  static async open(vision: LlavaVision, processor: ImageProcessor): Promise<PoolWork> {
    const asked: Asked[] = [];
    for (const file of PICTURES) {
      const { indices } = await vision.prune(await processor.process(file), QUESTION, { keep: HOW.keep });
      asked.push({ picture: await readFile(file), wanted: indices });
    }
    return new PoolWork(asked);
  }

  /** A pool that answers, whose callers give some requests up, that loses a worker, and that is closed. Tells how many it was asked. */
  async round(): Promise<number> {
    const pool = await VisionPool.open('models/tiny-llava', HOW);
    const some = [...this.asked, ...this.asked];
    const answer = async ({ picture, wanted }: Asked) => {
      assert.deepEqual((await pool.prune(picture, QUESTION)).indices, wanted);
    };
    const leaving = new AbortController();
    const answers = some.map(answer);
    const left = some.map(({ picture }) => pool.prune(picture, QUESTION, { signal: leaving.signal }));
    const dying = this.#die(pool);
    const settled = Promise.allSettled([...left, dying]);
    await turn();
    leaving.abort();
    await Promise.all(answers);
    const codes = (await settled).map((one) => one.status === 'rejected' && (one.reason as DesapError).code);
    assert.deepEqual(codes, [...left.map(() => 'ERR_ABORTED'), 'ERR_WORKER_LOST']);
    await Promise.all(this.asked.map(answer));
    await pool.dispose();
    return some.length + left.length + 1 + this.asked.length;
  }

  async #die(pool: Awaited<ReturnType<typeof VisionPool.open>>): Promise<void> {
    for await (const _ of pool.stream(this.asked[0].picture, QUESTION, { input: 'die' }));
  }
}
