// What onnxruntime-node alone keeps of worker threads that open a session and release it: KB that malloc has given out, after each fifth.
//
//   npx node-gyp rebuild -C bench/soak/malloc && MALLOC_ARENA_MAX=1 node --expose-gc bench/soak/ort-workers.mjs
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { Worker } from 'node:worker_threads';

const WORKERS = 100;
const require = createRequire(import.meta.url);
const { inUse } = require('./malloc/build/Release/malloc.node');
const code = `
  const { InferenceSession } = require(${JSON.stringify(require.resolve('onnxruntime-node'))});
  InferenceSession.create('models/tiny-clip/onnx/text_model.onnx').then((session) => session.release());`;

const kept = [];
for (let i = 0; i <= WORKERS; i++) {
  await once(new Worker(code, { eval: true }), 'exit');
  if (i % (WORKERS / 5) !== 0) continue;
  globalThis.gc();
  await new Promise((resolve) => setTimeout(resolve, 50)); // threads that end have their turn
  kept.push(inUse() / 1024);
}
const each = (kept.at(-1) - kept[1]) / (WORKERS * 0.8);
console.log(`${kept.map((kb) => kb.toFixed(0)).join(', ')} KB; ${each.toFixed(1)} KB of each worker`);
process.exit(); // onnxruntime-node's own threads may go on
