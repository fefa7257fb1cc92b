/** The server of examples/server, in a process of its own: `pool` as it is, `main` with the model in the thread of the server. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { VisionPool } from '../../dist/server/index.js';
import { ImageProcessor, openVisionModel } from '../../dist/vision/index.js';
import openAnswer from '../../examples/server/answer.mjs';
import { app, closing } from '../../examples/server/app.mjs';

const [kind, cores, workers] = process.argv.slice(2);
const models = fileURLToPath(new URL('../../models/', import.meta.url));
const model = `${models}tiny-llava`;
const how = { clip: `${models}tiny-clip`, keep: 16 };

async function inWorkers() {
  const continuation = new URL('../../examples/server/answer.mjs', import.meta.url);
  const shares = { cores: Number(cores), ...(workers && { workers: Number(workers) }) };
  const pool = await VisionPool.open(model, { ...how, ...shares, queue: 4096, continuation });
  return {
    answer: (picture, question, { keep, signal }) => pool.stream(picture, question, { ...(keep && { keep }), signal }),
    health: () => pool.health(),
    dispose: () => pool.dispose(),
  };
}

async function inThisThread() {
  const threads = Number(cores);
  const vision = await openVisionModel(model, { ...how, threads, session: { intraOpNumThreads: threads, ...REST } });
  const images = await ImageProcessor.open(model);
  const goOn = await openAnswer({ vision, model, threads });
  async function* answer(picture, question, { keep, signal }) {
    const [image] = await vision.encode({ pixelValues: await images.process(picture) });
    try {
      const all = Int32Array.from({ length: image.tokenCount }, (_, place) => place);
      const kept =
        keep === 'all'
          ? { features: await image.all(), indices: all, assignment: all }
          : await image.prune(question, keep ? { keep } : {});
      yield* goOn({ features: kept.features, kept, question, signal });
    } finally {
      image.dispose();
    }
  }
  return { answer, health: () => ({ state: 'open' }), dispose: () => vision.dispose() };
}
const REST = { extra: { session: { intra_op: { allow_spinning: '0' } } } };

const service = await (kind === 'pool' ? inWorkers() : inThisThread());
const server = app(service);
const delay = monitorEventLoopDelay({ resolution: 1 });
delay.enable();
/** Event-loop delay and processor time since the last call of it. */
let before = process.cpuUsage();
server.get('/load', async () => {
  const { user, system } = process.cpuUsage(before);
  before = process.cpuUsage();
  const loop = { p50: delay.percentile(50) / 1e6, p99: delay.percentile(99) / 1e6, max: delay.max / 1e6 };
  delay.reset();
  return { loop, cpu: (user + system) / 1000, rss: process.memoryUsage.rss() };
});
process.send(await server.listen({ port: 0 }));
await closing(server, service);
