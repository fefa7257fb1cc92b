/** Sends a request for a stream and waits for its first token; the rest is read and thrown away. */
export async function firstToken(base: string, body: string): Promise<void> {
  const response = await fetch(`${base}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body,
  });
  if (!response.ok || !response.body) throw new Error(`${response.status} ${await response.text()}`);
  let text = '';
  const decoder = new TextDecoder();
  for await (const bytes of response.body as AsyncIterable<Uint8Array>) text += decoder.decode(bytes, { stream: true });
  // One token is asked for, so the stream ends with it.
  if (!text.includes('"finish_reason":"length"')) throw new Error(`no token in: ${text.slice(0, 300)}`);
}
