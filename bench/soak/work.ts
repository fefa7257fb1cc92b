/** The mixed work of the soak: each part leaves nothing behind, says what it did, and throws where a result is not the one it was. */
import assert from 'node:assert/strict';
import { Worker } from 'node:worker_threads';
import {
  BlockHead,
  DesapError,
  HostBuffer,
  ImageAnalysis,
  openBackend,
  type PruneResult,
  Pruner,
} from '../../src/index.js';
import { METHOD_NAMES } from '../../src/methods/index.js';
import { ImageProcessor, LlavaVision } from '../../src/vision/index.js';
import { normalTensor, randomBlock, randomHead } from '../../test/support.js';
import { PoolWork } from './pool-work.js';

/** Calls that were made, by the part of the work. */
export type Counts = Record<string, number>;

const [ROWS, WIDTH, TEXT_WIDTH] = [197, 192, 64];
const KEEP = 24;
const HEAD = randomHead(1, { width: WIDTH, heads: 3, projectionDim: TEXT_WIDTH });
const HIDDEN = Array.from({ length: 4 }, (_, i) => normalTensor(i + 2, ROWS - 16 * i, WIDTH));
const TEXTS = Array.from({ length: 4 }, (_, i) => normalTensor(i + 20, 3 + 2 * i, TEXT_WIDTH));
const QUESTIONS = ['what color is the star ?', 'how many circles are there ?', 'is there a square ?'];

const kept = ({ indices, assignment, tokens }: PruneResult) => ({ indices, assignment, tokens: tokens.data });

/** What a promise came to: a refusal is one by name. */
async function settled(calls: readonly Promise<unknown>[]): Promise<number> {
  const all = await Promise.allSettled(calls);
  for (const one of all)
    if (one.status === 'rejected' && !(one.reason instanceof DesapError))
      throw new Error('a raw error', { cause: one.reason });
  return all.length;
}

export class Work {
  private constructor(
    private readonly pruner: Pruner,
    private readonly vision: LlavaVision,
    private readonly processor: ImageProcessor,
    private readonly pool: PoolWork,
    private readonly wanted: readonly ReturnType<typeof kept>[],
  ) {}

  static async open(): Promise<Work> {
    const pruner = await Pruner.load(HEAD, { device: 'cpu', threads: 2 });
    const vision = await LlavaVision.open('models/tiny-llava/onnx/vision_encoder.onnx', { clip: 'models/tiny-clip' });
    const processor = await ImageProcessor.open('models/tiny-llava');
    const wanted = HIDDEN.map((hidden, i) => kept(pruner.pruneSync(hidden, TEXTS[i], { keep: KEEP })));
    return new Work(pruner, vision, processor, await PoolWork.open(vision, processor), wanted);
  }

  /** What is made the first time and stays: each method's graphs, and what each part compiles and loads. */
  async warm(): Promise<void> {
    for (const round of METHOD_NAMES.keys()) await this.methods(round);
    for (const round of [0, 1]) await this.round(round, {});
  }

  async close(): Promise<void> {
    this.pruner.dispose();
    await this.vision.dispose();
  }

  /** One of each part. `round` varies pictures, methods, and when work is broken off. */
  async round(round: number, counts: Counts): Promise<void> {
    const parts = {
      together: () => this.together(),
      pictures: () => this.pictures(round),
      methods: () => this.methods(round),
      refusals: () => this.refusals(),
      'opened and closed': () => this.openedAndClosed(),
      'disposed in flight': () => this.disposedInFlight(),
      'memory left to the collector': () => this.leftToTheCollector(),
      workers: () => this.workers(round),
      pool: () => this.pool.round(),
    };
    for (const [name, part] of Object.entries(parts)) counts[name] = (counts[name] ?? 0) + (await part());
  }

  private async together(): Promise<number> {
    const asked = Array.from({ length: 32 }, (_, i) => i % HIDDEN.length);
    const results = await Promise.all(asked.map((i) => this.pruner.prune(HIDDEN[i], TEXTS[i], { keep: KEEP })));
    results.forEach((result, n) => {
      assert.deepEqual(kept(result), this.wanted[asked[n]]);
    });
    const batch = await this.pruner.pruneBatch(HIDDEN, TEXTS, { keep: KEEP });
    batch.forEach((result, i) => {
      assert.deepEqual(kept(result), this.wanted[i]);
    });
    return asked.length + 1;
  }

  private async pictures(round: number): Promise<number> {
    const names = [0, 1, 2].map((i) => String((3 * round + i) % 50).padStart(3, '0'));
    const images = await Promise.all(names.map((name) => this.processor.process(`models/eval/images/${name}.png`)));
    for (const [i, pixels] of images.entries()) {
      const [image] = await this.vision.encode(pixels);
      for (const question of QUESTIONS) await image.prune(question, { keep: 8 + i });
      image.dispose();
    }
    return images.length * (1 + QUESTIONS.length);
  }

  private async methods(round: number): Promise<number> {
    const method = METHOD_NAMES[round % METHOD_NAMES.length];
    const pixels = await this.processor.process('models/eval/images/000.png');
    return settled([this.vision.prune(pixels, QUESTIONS[0], { keep: 16, method } as never)]);
  }

  private async refusals(): Promise<number> {
    const { pruner } = this;
    const calls = [
      pruner.prune(HIDDEN[0], TEXTS[0], { keep: ROWS }),
      pruner.prune(TEXTS[0], TEXTS[0], { keep: 1 }),
      pruner.prune({ data: new Float32Array(ROWS * WIDTH).fill(Number.NaN), dims: [ROWS, WIDTH] }, TEXTS[0], {
        keep: 1,
      }),
      this.processor.process('models/no-such.png'),
      LlavaVision.open('models/tiny-clip/onnx/text_model.onnx', { clip: 'models/tiny-clip' }),
    ];
    const results = await Promise.allSettled(calls);
    assert.ok(results.every(({ status }) => status === 'rejected'));
    return settled(calls);
  }

  private async openedAndClosed(): Promise<number> {
    const pruner = await Pruner.load(HEAD, { device: 'cpu', threads: 2 });
    assert.deepEqual(kept(await pruner.prune(HIDDEN[0], TEXTS[0], { keep: KEEP })), this.wanted[0]);
    pruner.dispose();
    const backend = openBackend({ device: 'cpu', threads: 1 });
    const block = await BlockHead.load(randomBlock(1, { width: 64, heads: 2, norm: 'layer' }), backend);
    await block.analyze(normalTensor(5, 50, 64));
    block.dispose();
    backend.dispose();
    const vision = await LlavaVision.open('models/tiny-llava/onnx/vision_encoder.onnx', { clip: 'models/tiny-clip' });
    await vision.dispose();
    return 3;
  }

  private async disposedInFlight(): Promise<number> {
    const pruner = await Pruner.load(HEAD, { device: 'cpu', threads: 2 });
    const image = await pruner.analyze(HIDDEN[0]);
    const calls = HIDDEN.flatMap((hidden, i) => [
      pruner.prune(hidden, TEXTS[i], { keep: KEEP }),
      image.prune(TEXTS[i], { keep: KEEP }),
    ]);
    image.dispose();
    pruner.dispose();
    return settled(calls);
  }

  private async leftToTheCollector(): Promise<number> {
    const buffer = HostBuffer.forTensor('float32', [ROWS, WIDTH], { pinned: false });
    const hidden = buffer.tensor('float32', [ROWS, WIDTH]);
    (hidden.data as Float32Array).set(HIDDEN[0].data as Float32Array);
    const image = await this.pruner.analyze(hidden);
    assert.deepEqual(kept(await image.prune(TEXTS[0], { keep: KEEP })), this.wanted[0]);
    ImageAnalysis.from({ patchEmbeddings: TEXTS[3], saliency: new Float32Array(9).fill(1), features: TEXTS[3] });
    await Pruner.load(HEAD, { device: 'cpu', threads: 1 });
    return 4;
  }

  /** A worker that ends by itself, and one that is terminated with work in flight. */
  private async workers(round: number): Promise<number> {
    const file = new URL('../../test/fixtures/worker.mjs', import.meta.url);
    const works = ['prune', ['in flight', 'many'][round % 2]];
    await Promise.all(
      works.map(async (workerData) => {
        const worker = new Worker(file, { workerData });
        const ended = new Promise((resolve) => worker.once('exit', resolve));
        await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
        if (workerData !== 'prune') await worker.terminate();
        await ended;
      }),
    );
    return works.length;
  }
}
