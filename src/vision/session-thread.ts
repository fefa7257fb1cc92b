/** Sessions in threads of their own: ONNX Runtime blocks the thread that a session runs in. */
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import type { InferenceSession } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import { isFile } from '../files.js';
import type { OrtModule } from '../onnx/edit.js';
import { missingPackage } from '../optional.js';
import { packageRoot, resolvePackage } from '../package.js';
import { Tensor } from '../tensor.js';
import type { Opening, PlainTensor, SessionAnswer, SessionCall, SessionStart } from './session-worker.js';

/** Where the compiled thread lies in this package. */
const WORKER = 'dist/vision/session-worker.js';
const OPENING: Opening = 0;

/**
 * A module whose sessions each run in a thread of their own, on the installed onnxruntime-node. They are opened from bytes, run with
 * feeds, and released; a thread keeps the process alive only while it has something to do.
 *
 * @throws DesapError `ERR_MISSING_PACKAGE`; `ERR_FILE` where this package's own folder is not there, as beside a bundle without it
 */
export async function threadedOrt(): Promise<OrtModule> {
  const runtime = resolvePackage('onnxruntime-node');
  if (runtime === null) throw missingPackage('onnxruntime-node', 'a session in a thread of its own');
  const root = packageRoot();
  const file = join(root ?? '', WORKER);
  if (root === null || !(await isFile(file)))
    throw new DesapError(
      'ERR_FILE',
      `${file}: got no such file, wanted this package's own: ship node_modules/desap beside a bundle`,
    );
  const create = async (bytes: Uint8Array, options: InferenceSession.SessionOptions = {}) => {
    const thread = new SessionThread(file, { runtime, bytes, options });
    await thread.opened;
    return thread as unknown as InferenceSession;
  };
  return { InferenceSession: { create } as OrtModule['InferenceSession'], Tensor };
}

interface Waiting {
  resolve(outputs: Readonly<Record<string, PlainTensor>>): void;
  reject(error: Error): void;
}

class SessionThread implements Pick<InferenceSession, 'run' | 'release'> {
  /** Rejects with ONNX Runtime's words. */
  readonly opened: Promise<unknown>;
  readonly #worker: Worker;
  readonly #ended: Promise<unknown>;
  readonly #waiting = new Map<number, Waiting>();
  #calls: number = OPENING;
  #end: Error | null = null;

  constructor(file: string, start: SessionStart) {
    // Flags of this process, such as loaders of TypeScript, are none of a thread in plain JavaScript.
    this.#worker = new Worker(file, { workerData: start, execArgv: [], name: 'desap session' });
    this.#worker.on('message', (answer: SessionAnswer) => this.#answered(answer));
    this.#worker.on('error', (error: Error) => this.#failAll(error));
    this.#ended = new Promise((resolve) => this.#worker.once('exit', resolve));
    void this.#ended.then(() => this.#failAll(new Error('the thread of the session has ended')));
    this.opened = this.#wait(OPENING);
  }

  async run(feeds: Record<string, Tensor>): Promise<InferenceSession.ReturnType> {
    const plain = Object.entries(feeds).map(([name, { type, data, dims }]) => [name, { type, data, dims }]);
    const outputs = await this.#call(Object.fromEntries(plain));
    const tensors = Object.entries(outputs).map(([name, { type, data, dims }]) => [
      name,
      new Tensor(type as 'float32', data as Float32Array, dims),
    ]);
    return Object.fromEntries(tensors);
  }

  async release(): Promise<void> {
    if (this.#end === null) await this.#call(null);
    this.#worker.ref();
    await this.#ended;
  }

  #call(feeds: SessionCall['feeds']): Promise<Readonly<Record<string, PlainTensor>>> {
    if (this.#end !== null) return Promise.reject(this.#end);
    const id = ++this.#calls;
    this.#worker.postMessage({ id, feeds } satisfies SessionCall);
    return this.#wait(id);
  }

  /** The process waits for a thread that it has called. */
  #wait(id: number): Promise<Readonly<Record<string, PlainTensor>>> {
    this.#worker.ref();
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }

  #answered(answer: SessionAnswer): void {
    const waiting = this.#waiting.get(answer.id);
    this.#waiting.delete(answer.id);
    if (this.#waiting.size === 0) this.#worker.unref();
    if ('outputs' in answer) waiting?.resolve(answer.outputs);
    else waiting?.reject(new Error(answer.failed));
  }

  #failAll(error: Error): void {
    this.#end ??= error;
    for (const { reject } of this.#waiting.values()) reject(this.#end);
    this.#waiting.clear();
  }
}
