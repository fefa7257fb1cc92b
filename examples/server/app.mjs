// The HTTP side of the server: a picture and a question come in, the answer goes out as it is made. It knows no model.
import { once } from 'node:events';
import { Readable } from 'node:stream';
import { httpStatus } from 'desap/server';
import fastify from 'fastify';

const BODY = {
  type: 'object',
  required: ['image', 'question'],
  additionalProperties: false,
  properties: {
    image: { type: 'string', maxLength: 8e6, description: 'the file of the picture, in base64' },
    question: { type: 'string', minLength: 1, maxLength: 2000 },
    keep: { anyOf: [{ type: 'integer', minimum: 1, maximum: 576 }, { const: 'all' }] },
  },
};

/** @param service `answer(picture, question, { keep, signal })` gives the pieces of an answer; `health()` how it is */
export function app({ answer, health }) {
  // While it closes, requests that have come in are answered.
  const server = fastify({ bodyLimit: 9e6, forceCloseConnections: 'idle', return503OnClosing: false });

  let closes = false;
  server.addHook('preClose', async () => {
    closes = true;
  });
  server.addHook('onResponse', async () => {
    if (closes) setImmediate(() => server.server.closeIdleConnections());
  });

  server.setErrorHandler((error, _, reply) => {
    const status = error.validation ? 400 : (error.statusCode ?? httpStatus(error));
    if (status === 429 || status === 503) reply.header('retry-after', '1');
    // What went wrong here is for the log alone.
    reply.code(status).send({ code: error.code ?? 'ERR_INTERNAL', message: status < 500 ? error.message : 'failed' });
  });

  server.post('/answer', { schema: { body: BODY } }, async (request, reply) => {
    const { image, question, keep } = request.body;
    const gone = new AbortController();
    reply.raw.once('close', () => gone.abort());
    const pieces = answer(Buffer.from(image, 'base64'), question, { keep, signal: gone.signal });
    // The first piece decides the status; errors behind it end the connection.
    const first = await pieces.next();
    reply.type('text/plain; charset=utf-8');
    return Readable.from(all(first, pieces));
  });

  server.get('/health', async (_, reply) => {
    const now = await health();
    return reply.code(now.state === 'open' ? 200 : 503).send(now);
  });
  return server;
}

async function* all(first, others) {
  if (first.done) return;
  yield first.value;
  yield* others;
}

/** Ends well on SIGTERM: no new connections, answers under way are finished, then the workers end. */
export async function closing(server, pool) {
  await once(process, 'SIGTERM');
  await server.close();
  await pool.dispose();
}
