/**
 * A server that takes embeddings as vLLM 0.32.0 takes them, and fails as it fails: `test/fixtures/vllm` is what that answered. Requests
 * that come while a step runs go into the next one together, and images of different K in one step end the engine.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type Read, readTensorFile, Unreadable } from './torch-reader.js';

export interface StandInModel {
  readonly hiddenSize: number;
  /** Rows are placed by `image_grid_thw`, 2 x 2 patches in each. */
  readonly grid?: boolean;
  /** With the plugin, different K in one step do no harm. */
  readonly mended?: boolean;
  /** Tokens of the prompt beside the rows of its images. */
  textTokens(question: string, images: number): number;
  /** The answer's tokens. A prompt of embeddings has no question. */
  answer(rows: readonly Read[], question: string | null): AsyncIterable<string> | Iterable<string>;
}

export interface StandIn {
  /** For clients: with `/v1`. */
  readonly baseURL: string;
  /** Why the engine ended; null while it runs. */
  ended(): string | null;
  /** K of each image of each request that was begun, in their order. */
  readonly seen: number[][];
  close(): Promise<void>;
}

/** Milliseconds in which requests gather for a step. */
const STEP = 30;
const DEAD = 'EngineCore encountered an issue. See stack trace (above) for the root cause.';

interface Prompt {
  readonly images: readonly Read[];
  readonly whole: Read | null;
  readonly question: string | null;
  readonly tokens: number;
}

interface Waiting extends Prompt {
  begin(): void;
  fail(error: Unreadable): void;
}

export async function standIn(model: StandInModel): Promise<StandIn> {
  let why: string | null = null;
  let waiting: Waiting[] = [];
  let timer: NodeJS.Timeout | null = null;
  const running = new Set<Waiting>();
  const seen: number[][] = [];

  const end = (reason: string) => {
    why = reason;
    for (const request of running) request.fail(new Unreadable(500, DEAD));
    server.close();
    setTimeout(() => server.closeAllConnections(), STEP);
  };
  const step = () => {
    timer = null;
    const batch = waiting;
    waiting = [];
    for (const request of batch) {
      running.add(request);
      seen.push(request.images.map(({ dims }) => dims[0]));
    }
    const counts = new Set(batch.flatMap(({ images }) => images.map(({ dims }) => dims[0])));
    if (counts.size > 1 && !model.mended && !model.grid) return end('data contains inconsistent shapes');
    if (batch.some(({ images }) => images.some(({ dims }) => dims[0] !== dims[2]))) return end('split_with_sizes');
    for (const request of batch) request.begin();
  };
  /** Waits for the step that the prompt is in. */
  const admitted = (prompt: Prompt): Promise<Waiting> =>
    new Promise((resolve, reject) => {
      const request: Waiting = { ...prompt, begin: () => resolve(request), fail: reject };
      waiting.push(request);
      timer ??= setTimeout(step, STEP);
    });

  const server = createServer((request, response) => {
    serve(request, response).catch((error: Error) => {
      const status = error instanceof Unreadable ? error.status : 500;
      const type = status === 400 ? 'BadRequestError' : 'InternalServerError';
      const body = JSON.stringify({ error: { message: error.message, type, param: null, code: status } });
      if (!response.headersSent) response.writeHead(status, { 'content-type': 'application/json' }).end(body);
      else response.end(`data: ${body}\n\ndata: [DONE]\n\n`);
    });
  });
  const serve = async (request: IncomingMessage, response: ServerResponse) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = JSON.parse(Buffer.concat(chunks).toString());
    const isChat = request.url === '/v1/chat/completions';
    if (!isChat && request.url !== '/v1/completions') throw new Unreadable(404, 'Not Found');
    const prompt = isChat ? chatPrompt(model, body.messages) : wholePrompt(model, body);
    const admission = await admitted(prompt);
    let failed: Unreadable | null = null;
    admission.fail = (error) => {
      failed = error;
    };
    try {
      const { images, whole, question, tokens } = admission;
      const usage = { prompt_tokens: tokens, completion_tokens: 0, total_tokens: tokens };
      const pieces = async function* () {
        for await (const text of model.answer(whole ? [whole] : images, question)) {
          if (failed) throw failed;
          usage.completion_tokens++;
          usage.total_tokens++;
          yield text;
        }
      };
      const common = { id: 'stand-in', created: 0, model: body.model };
      if (body.stream) {
        response.writeHead(200, { 'content-type': 'text/event-stream' });
        const send = (chunk: object) => response.write(`data: ${JSON.stringify({ ...common, ...chunk })}\n\n`);
        const object = isChat ? 'chat.completion.chunk' : 'text_completion';
        for await (const text of pieces())
          send({
            object,
            choices: [{ index: 0, ...(isChat ? { delta: { content: text } } : { text }), finish_reason: null }],
          });
        if (body.stream_options?.include_usage) send({ object, choices: [], usage });
        response.end('data: [DONE]\n\n');
        return;
      }
      let text = '';
      for await (const piece of pieces()) text += piece;
      const choice = isChat ? { message: { role: 'assistant', content: text } } : { text };
      const object = isChat ? 'chat.completion' : 'text_completion';
      const answer = { ...common, object, choices: [{ index: 0, ...choice, finish_reason: 'length' }], usage };
      response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(answer));
    } finally {
      running.delete(admission);
    }
  };
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return {
    baseURL: `http://127.0.0.1:${port}/v1`,
    ended: () => why,
    seen,
    close: () =>
      new Promise((resolve) => {
        if (timer) clearTimeout(timer);
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

/** base64 as Python's decoder takes it when it is strict. */
function decoded(text: unknown): Buffer {
  if (typeof text !== 'string') throw new Unreadable(400, 'image_embeds must be a string');
  if (text.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(text))
    throw new Unreadable(400, 'Non-base64 digit found');
  return Buffer.from(text, 'base64');
}

/** The rows of a part, with the count that the server reserves for them as a third extent. */
function imageOf(model: StandInModel, part: unknown): Read {
  const { grid } = model;
  const given = part as { image_embeds: string; image_grid_thw: readonly number[] | string };
  const read = readTensorFile(decoded(grid ? given.image_embeds : part));
  const dims = read.dims.length === 3 && read.dims[0] === 1 ? read.dims.slice(1) : read.dims;
  if (dims.length !== 2) throw new Unreadable(400, 'Failed to apply LlavaProcessor');
  if (dims[1] !== model.hiddenSize && !grid)
    throw new Unreadable(
      400,
      `Image embedding hidden dimension mismatch: got ${dims[1]}, but model expects ${model.hiddenSize}. Embedding shape: (1, ${dims.join(', ')})`,
    );
  if (dims[0] === 0)
    throw new Unreadable(
      500,
      'Expected there to be 1 prompt placeholders corresponding to 1 image items, but instead found 0 prompt placeholders!',
    );
  if (!grid) return { ...read, dims: [...dims, dims[0]] };
  const thw = given.image_grid_thw;
  const [frames, height, width] =
    typeof thw === 'string' ? [...readTensorFile(decoded(thw)).values] : (thw as readonly number[]);
  const claimed = dims[1] === model.hiddenSize ? (frames * height * width) / 4 : -1;
  return { ...read, dims: [...dims, claimed] };
}

type Part = { readonly type: string; readonly text?: string; readonly image_embeds?: unknown; readonly data?: string };

function chatPrompt(model: StandInModel, messages: readonly { content: string | readonly Part[] }[]): Prompt {
  const parts = messages.flatMap(({ content }) =>
    typeof content === 'string' ? [{ type: 'text', text: content }] : content,
  );
  const of = (type: string) => parts.filter((part) => part.type === type);
  if (of('image_url').length > 0 && of('image_embeds').length > 0)
    throw new Unreadable(400, 'Mixing raw image and embedding inputs is not allowed');
  const question = of('text')
    .map(({ text }) => text)
    .join(' ');
  const images = of('image_embeds').map((part) => imageOf(model, part.image_embeds));
  return {
    images,
    whole: null,
    question,
    tokens: model.textTokens(question, images.length) + images.reduce((sum, { dims }) => sum + dims[0], 0),
  };
}

function wholePrompt(model: StandInModel, body: { prompt?: unknown; prompt_embeds?: unknown }): Prompt {
  if ('prompt' in body) throw new Unreadable(400, 'prompt beside prompt_embeds is a second prompt');
  const file = decoded(body.prompt_embeds);
  if (file[0] === 0x93) throw new Unreadable(400, 'prompt_embeds: no torch file');
  const whole = readTensorFile(file);
  if (whole.dtype === 'int64' || whole.dims.at(-1) !== model.hiddenSize || whole.dims.length !== 2)
    throw new Unreadable(
      400,
      `prompt_embeds: got ${whole.dtype} [${whole.dims}], wanted [tokens, ${model.hiddenSize}]`,
    );
  return { images: [], whole, question: null, tokens: whole.dims[0] };
}
