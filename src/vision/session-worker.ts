/**
 * The thread of one session: opens it, runs it on what comes in, and ends when it is released. It needs nothing of this package, and of this
 * file others import types only: it runs where it is imported in a thread.
 */
import { createRequire } from 'node:module';
import { type MessagePort, parentPort, workerData } from 'node:worker_threads';
import type { InferenceSession, Tensor } from 'onnxruntime-common';

/** What the thread begins with. */
export interface SessionStart {
  /** The file of the onnxruntime-node module. */
  readonly runtime: string;
  /** A ModelProto. */
  readonly bytes: Uint8Array;
  readonly options: InferenceSession.SessionOptions;
}

/** A tensor between two threads. */
export type PlainTensor = Pick<Tensor, 'type' | 'data' | 'dims'>;

/** One run that is asked for. `feeds: null` releases the session. */
export interface SessionCall {
  readonly id: number;
  readonly feeds: Readonly<Record<string, PlainTensor>> | null;
}

/** The call that nobody has to make: to open the session. */
export type Opening = 0;
const OPENING: Opening = 0;

/** What became of a call: outputs, or ONNX Runtime's own words. */
export type SessionAnswer = { readonly id: number } & (
  | { readonly outputs: Readonly<Record<string, PlainTensor>> }
  | { readonly failed: string }
);

async function serve(port: MessagePort, { runtime, bytes, options }: SessionStart): Promise<void> {
  const ort = createRequire(runtime)(runtime) as typeof import('onnxruntime-common');
  const session = await ort.InferenceSession.create(bytes, options);
  port.on('message', async ({ id, feeds }: SessionCall) => {
    await answer(port, id, () => (feeds === null ? session.release().then(() => ({})) : run(feeds)));
    if (feeds === null) port.close();
  });

  async function run(feeds: Readonly<Record<string, PlainTensor>>) {
    const tensors = Object.entries(feeds).map(([name, { type, data, dims }]) => [
      name,
      new ort.Tensor(type as 'float32', data as Float32Array, dims),
    ]);
    const outputs = Object.entries(await session.run(Object.fromEntries(tensors)));
    return Object.fromEntries(outputs.map(([name, { type, data, dims }]) => [name, { type, data, dims }]));
  }
}

async function answer(port: MessagePort, id: number, call: () => Promise<Readonly<Record<string, PlainTensor>>>) {
  const said = await call().then(
    (outputs): SessionAnswer => ({ id, outputs }),
    (error: Error): SessionAnswer => ({ id, failed: error.message }),
  );
  port.postMessage(said);
}

if (parentPort) {
  const port = parentPort;
  void answer(port, OPENING, async () => {
    await serve(port, workerData as SessionStart);
    return {};
  });
}
