import { type IncomingMessage, request } from 'node:http';

/**
 * Sends a request for a stream of one token and waits until it has come. Each has a connection of its own: the server closes idle ones
 * after five seconds, and a client that computes in between would write into a closed one.
 */
export async function firstToken(base: string, body: string): Promise<void> {
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    const headers = { 'content-type': 'application/json' };
    request(`${base}/v1/chat/completions`, { method: 'POST', headers, agent: false }, resolve)
      .on('error', reject)
      .end(body);
  });
  let text = '';
  for await (const bytes of response.setEncoding('utf8')) text += bytes;
  // The stream ends with its only token.
  if (response.statusCode !== 200 || !text.includes('"finish_reason":"length"'))
    throw new Error(`no token: ${response.statusCode} ${text.slice(0, 300)}`);
}
