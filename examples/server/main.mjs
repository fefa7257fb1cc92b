// A server that answers questions about pictures. Run it from a clone, after `npm run build`:
//
//   node examples/server/main.mjs [port]
//   curl -s localhost:8080/answer -H 'content-type: application/json' \
//     -d "{\"image\": \"$(base64 -w0 models/eval/images/000.png)\", \"question\": \"what is the large thing ?\"}"
import { fileURLToPath } from 'node:url';
import { limits } from 'desap';
import { VisionPool } from 'desap/server';
import { app, closing } from './app.mjs';

const models = fileURLToPath(new URL('../../models/', import.meta.url));
limits({ imagePixels: 20e6, textBytes: 2000 });
const pool = await VisionPool.open(`${models}tiny-llava`, {
  clip: `${models}tiny-clip`,
  keep: 16,
  queue: 256,
  deadline: 60_000,
  continuation: new URL('./answer.mjs', import.meta.url),
});
const server = app({
  answer: (picture, question, { keep, signal }) => pool.stream(picture, question, { ...(keep && { keep }), signal }),
  health: () => pool.health(),
});
console.log(await server.listen({ port: Number(process.argv[2] ?? 8080) }));
await closing(server, pool);
console.log(`answered ${pool.health().answered}`);
