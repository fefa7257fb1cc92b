import { types } from 'node:util';
import { MessageChannel, type MessagePort } from 'node:worker_threads';
import type { Piscina } from 'piscina';
import { ABORTABLE, type Abortable, abortable, checkAborted, onAbort, opening } from '../abort.js';
import { ASYNC_DISPOSE } from '../dispose-symbols.js';
import { DesapError, invalid, messageOf, mismatch } from '../errors.js';
import { Lifetime } from '../lifetime.js';
import { limits } from '../limits.js';
import { optional } from '../optional.js';
import { type OptionNames, options, reading } from '../options.js';
import { bytesOf, finite, integer, isArray, nonEmpty } from '../tensor.js';
import { traced } from '../trace.js';
import { VISION_MODEL_OPTIONS, type VisionModelOptions } from '../vision/families.js';
import { VISION_PRUNE_OPTIONS } from '../vision/image-base.js';
import type { PrunedFeatures, Question, VisionInputs, VisionPruneOptions } from '../vision/vision-model.js';
import { cloned, clonedTensors, sharedBytes } from './clone.js';
import {
  type Choice,
  fromPlainError,
  fromPlainResult,
  type Opened,
  type Outcome,
  type Picture,
  type PlainResult,
  type Task,
  type WorkerData,
} from './messages.js';
import { Queue, type Queued } from './queue.js';
import type { Said } from './serve.js';
import { sessionOf, shareCores, type Threads } from './threads.js';
import type { WorkerCall } from './worker.js';

/** Options of the model, of which each worker has one. What cannot go to another thread is left out. */
type ModelOptions = Omit<VisionModelOptions, 'ort' | 'pruner' | 'embedQuestion' | 'threads'>;

/** Options of {@link VisionPool.open}. */
export interface VisionPoolOptions extends ModelOptions {
  /** Cores that the pool may use; default: the available ones. Threads of each worker: cores / workers. */
  cores?: number;
  /** Default: one for each core, at most 4. Each has the model's weights once. */
  workers?: number;
  /** Requests that may wait for a worker; one more is refused with `ERR_BUSY`. Default 64. */
  queue?: number;
  /** Requests that are pruned in one go, where so many wait; default 1: each by itself. */
  batch?: number;
  /** Milliseconds that a request waits for others to be pruned with while a worker is free; default 0. */
  window?: number;
  /** Milliseconds from the call to its result, for every request; then it ends with `ERR_ABORTED`. Default: none. */
  deadline?: number;
  /**
   * Bytes of encoded pictures that each worker keeps, by a digest of what came: another question about a picture then needs no tower. Default
   * 0: none. One takes what `EncodedImage.byteLength` says.
   */
  cacheImages?: number;
  /** Bytes of questions' embeddings that each worker keeps, by their text; default 0: none. */
  cacheQuestions?: number;
  /** A module (a `file:` URL) whose default export is an {@link OpenContinuation}: what follows pruning in a worker. */
  continuation?: URL | string;
}

/** A picture of a request: the bytes of an image file (LLaVA, LLaVA-NeXT), never a path; or the inputs that an image processor made. */
export type PoolPicture = Uint8Array | ArrayBuffer | SharedArrayBuffer | VisionInputs;

/** What a request may say of itself. */
export interface RequestOptions extends Abortable {
  /** Whose it is, by any name: clients have turns, so that none waits for all that another asks. Requests without it are one client's. */
  client?: string;
}

/** Options of {@link VisionPool.stream}. With `keep: 'all'` nothing is pruned. */
export interface StreamOptions extends Choice, RequestOptions {
  /** Goes to the continuation, as a structured clone. */
  input?: unknown;
}

/** How a pool is. */
export interface PoolHealth {
  /** `open` takes requests; `draining` ends those that it has; `closed`. */
  readonly state: 'open' | 'draining' | 'closed';
  readonly workers: number;
  /** Threads of each worker. */
  readonly threads: number;
  /** Workers whose model is open. */
  readonly ready: number;
  /** Why the model was not open where it was tried last; null while all are ready, and where nothing went wrong. */
  readonly fault: string | null;
  /** Workers that died. Others take their places. */
  readonly lost: number;
  /** Requests that wait for a worker, and those that workers have. */
  readonly waiting: number;
  readonly running: number;
  /** Requests so far: answered; failed, by their own fault or another; ended by their signal or deadline; refused, with a full queue. */
  readonly answered: number;
  readonly failed: number;
  readonly aborted: number;
  readonly refused: number;
}

const { ort, pruner, embedQuestion, threads, ...MODEL } = VISION_MODEL_OPTIONS;
const NAMES: OptionNames<VisionPoolOptions> = {
  ...MODEL,
  ...{ cores: true, workers: true, queue: true, batch: true, window: true, deadline: true, continuation: true },
  ...{ cacheImages: true, cacheQuestions: true },
};
const PRUNE: OptionNames<VisionPruneOptions & RequestOptions> = {
  ...VISION_PRUNE_OPTIONS,
  ...ABORTABLE,
  client: true,
};
const STREAM: OptionNames<StreamOptions> = { ...PRUNE, input: true };

const MOST = 2 ** 31 - 1;
const PICTURE = 'the bytes of an image file (Uint8Array, ArrayBuffer), or inputs of the vision model; no path';

/** What is asked of a worker, and for whom. */
type Asked = Omit<Task, 'port'> & { readonly client: string | undefined };

/** A request that waits or runs. */
interface Request extends Queued {
  readonly task: Task;
  readonly arrived: number;
  /** @param waited milliseconds for a worker */
  readonly done: (outcome: Outcome<PlainResult | null>, waited: number) => void;
  readonly failed: (error: DesapError) => void;
}

/**
 * A model in several worker threads, with one queue. ONNX Runtime blocks the event loop of the thread that it runs in: here that is a
 * worker's, and the thread of the server stays free.
 *
 * Requests go to workers in the order of their arrival, those of several clients in turn, one at a time each (or `batch` of them). Results
 * come without copies of their memory; a picture is copied once, unless it is in a `SharedArrayBuffer`.
 *
 * ```ts
 * await using pool = await VisionPool.open('models/llava-1.5-7b-hf', { clip: 'models/clip-vit-large-patch14-336', keep: 64 });
 * const { features, indices } = await pool.prune(await readFile('photo.png'), 'is the fence wood or metal?');
 * ```
 */
export class VisionPool implements AsyncDisposable {
  readonly #life = new Lifetime('VisionPool');
  readonly #queue: Queue<Request>;
  readonly #counts = { answered: 0, failed: 0, aborted: 0, refused: 0, lost: 0 };
  /** Calls that a worker has, or that wait for one to start. */
  readonly #calls = new Set<AbortController>();
  /** Threads whose model is open. */
  readonly #ready = new Set<number>();
  #fault: string | null = null;
  #running = 0;
  #free: number;
  #state: PoolHealth['state'] = 'open';
  #window: NodeJS.Timeout | undefined;

  private constructor(
    private readonly workers: Piscina<WorkerCall, Outcome<PlainResult | null>[]>,
    private readonly threads: Threads,
    private readonly how: {
      batch: number;
      window: number;
      deadline: number | undefined;
      queue: number;
      goesOn: boolean;
    },
  ) {
    this.#queue = new Queue(how.queue);
    this.#free = threads.workers;
    // A worker that dies between requests is nobody's error: it is replaced.
    workers.on('error', (error) => {
      this.#fault = messageOf(error);
    });
    workers.on('message', ({ thread, fault }: Opened) => this.#opened(thread, fault));
    workers.on('workerDestroy', () => this.#died());
  }

  /**
   * Starts the workers, and opens the model in each.
   *
   * @param model as for `openVisionModel`
   * @throws DesapError as `openVisionModel`; `ERR_VALUE` for the options; `ERR_ABORTED`, once all workers have ended
   */
  static async open(model: string, given: VisionPoolOptions = {}): Promise<VisionPool> {
    nonEmpty('model', model, 'a model folder, or the path of a vision encoder');
    const checked = options('options', given, NAMES);
    const { cores, workers: count, queue = 64, batch = 1, window = 0, deadline, continuation, ...rest } = checked;
    const { cacheImages = 0, cacheQuestions = 0, signal, ...own } = rest;
    const shares = shareCores(cores, count);
    integer('queue', queue, 0, MOST);
    integer('batch', batch, 1, MOST);
    finite('window', window, 0, MOST);
    integer('cacheImages', cacheImages, 0, Number.MAX_SAFE_INTEGER);
    integer('cacheQuestions', cacheQuestions, 0, Number.MAX_SAFE_INTEGER);
    if (deadline !== undefined) integer('deadline', deadline, 1, MOST);
    const { threads } = shares;
    const data: WorkerData = {
      ...{ model, limits: limits(), continuation: continuation === undefined ? null : urlOf(continuation) },
      cache: { images: cacheImages, questions: cacheQuestions },
      options: { ...own, threads, session: sessionOf(threads, own.session) },
    };
    const { Piscina } = await optional(() => import('piscina'), 'piscina', 'VisionPool');
    const about = { batch, window, deadline, queue, goesOn: continuation !== undefined };
    const open = async () => {
      const workers = new Piscina<WorkerCall, Outcome<PlainResult | null>[]>({
        filename: new URL('./worker.js', import.meta.url).href,
        workerData: cloned('options', data),
        ...{ minThreads: shares.workers, maxThreads: shares.workers, idleTimeout: Number.POSITIVE_INFINITY },
        // A worker has sessions and sockets of its own: it turns its event loop between requests.
        atomics: 'disabled',
      });
      const pool = new VisionPool(workers, shares, about);
      await pool.#open();
      return pool;
    };
    return opening(signal, open, (pool) => pool.dispose());
  }

  async #open(): Promise<void> {
    const { workers, threads } = this;
    const forget = onAbort(() => void this.dispose());
    try {
      // One call for each worker: a worker has one at a time.
      const opened = await Promise.all(Array.from({ length: threads.workers }, () => workers.run('open')));
      for (const [one] of opened) if ('error' in one) throw fromPlainError(one.error);
      for (const { threadId } of workers.threads) this.#opened(threadId, null);
    } catch (error) {
      await this.dispose();
      checkAborted();
      throw error instanceof DesapError ? error : lost(error);
    } finally {
      forget();
    }
  }

  /**
   * Prunes a picture for a question, in a worker. `timings.waiting` counts the time for a worker too.
   *
   * @throws DesapError as `VisionModel.prune`; `ERR_BUSY` for a full queue; `ERR_ABORTED`; `ERR_WORKER_LOST` where the worker died, and then
   *   another takes its place; `ERR_DISPOSED`
   */
  async prune(
    picture: PoolPicture,
    question: Question,
    given?: VisionPruneOptions & RequestOptions,
  ): Promise<PrunedFeatures> {
    const { signal, client, ...choice } = options('options', given, PRUNE);
    checkClient(client);
    if ((choice.keep as unknown) === 'all')
      throw invalid('ERR_VALUE', 'keep', choice.keep, "a count of tokens: stream takes 'all'");
    return traced('VisionPool.prune', async () => {
      const { result, waited } = await this.#ask({ ...taskOf(picture, question, choice), client }, signal);
      const pruned = fromPlainResult(result as PlainResult);
      const { timings } = pruned;
      return { ...pruned, timings: { ...timings, waiting: timings.waiting + waited } };
    });
  }

  /**
   * The pieces that the pool's `continuation` makes of a picture and a question, as they come. Who stops reading ends the request.
   *
   * @throws DesapError as {@link VisionPool.prune}; `ERR_VALUE` for a pool without continuation; `ERR_CONTINUATION` for what it throws
   */
  async *stream(picture: PoolPicture, question: Question, given?: StreamOptions): AsyncGenerator<unknown, void> {
    const { signal, client, input, ...choice } = options('options', given, STREAM);
    checkClient(client);
    if (!this.how.goesOn) throw mismatch('ERR_VALUE', 'continuation', 'none', 'a module, when the pool is opened');
    const stop = new AbortController();
    const pieces: unknown[] = [];
    let wake = () => {};
    const ended = { is: false };
    const { port1, port2 } = new MessageChannel();
    port1.on('message', ({ piece }: Said) => {
      pieces.push(piece);
      wake();
    });
    const closed = new Promise<void>((resolve) => port1.once('close', resolve));
    const task = { ...taskOf(picture, question, choice, { input }), client };
    const ports = { own: port1, workers: port2 };
    const ask = async () => {
      const { waited } = await this.#ask(task, stop.signal, ports);
      // Pieces that are on their way still arrive: the worker closes the port behind the last.
      await closed;
      return { timings: { waiting: waited } };
    };
    const asked = traced('VisionPool.stream', () => abortable(signal, ask)).finally(() => {
      ended.is = true;
      wake();
    });
    asked.catch(() => {});
    try {
      for (;;) {
        while (pieces.length > 0) yield pieces.shift();
        if (ended.is) break;
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
      await asked;
    } finally {
      stop.abort();
      port1.close();
    }
  }

  /** How the pool is now. */
  health(): PoolHealth {
    const { workers, threads } = this.threads;
    const ready = this.#ready.size;
    const fault = ready === workers ? null : this.#fault;
    const load = { waiting: this.#queue.size, running: this.#running };
    return { state: this.#state, workers, threads, ready, fault, ...load, ...this.#counts };
  }

  /** Takes no more requests, answers those that it has, and ends the workers. Safe to call again. */
  dispose(): Promise<void> {
    if (this.#state === 'open') this.#state = 'draining';
    this.#pump();
    return this.#life.end(async () => {
      await this.workers.destroy();
      this.#state = 'closed';
    });
  }

  /** As {@link VisionPool.dispose}. */
  [ASYNC_DISPOSE](): Promise<void> {
    return this.dispose();
  }

  #opened(thread: number, fault: string | null): void {
    if (fault !== null) this.#fault = fault;
    else this.#ready.add(thread);
    if (this.#ready.size === this.threads.workers) this.#fault = null;
  }

  /**
   * A worker has ended. One that was ready is replaced at once; one that died while it started is not, as it might go on for ever: the next
   * request starts another, and those that wait for one while there is none are told.
   */
  #died(): void {
    if (this.#state === 'open') this.#counts.lost++;
    queueMicrotask(() => {
      const { threads } = this.workers;
      for (const thread of this.#ready)
        if (!threads.some(({ threadId }) => threadId === thread)) this.#ready.delete(thread);
      if (threads.length > 0) return;
      const reason = lost(new Error(this.#fault ?? 'it ended while it started'));
      for (const call of this.#calls) call.abort(reason);
    });
  }

  async #ask(
    asked: Asked,
    signal: AbortSignal | undefined,
    ports: { own: MessagePort; workers: MessagePort } | null = null,
  ): Promise<{ result: PlainResult | null; waited: number }> {
    const { deadline } = this.how;
    const until = deadline === undefined ? undefined : AbortSignal.timeout(deadline);
    const enqueue = () => this.#enqueue(asked, ports, signal !== undefined || until !== undefined);
    try {
      const answer = await abortable(until, () => this.#life.call(enqueue, signal));
      this.#counts.answered++;
      return answer;
    } catch (error) {
      const { code } = error as DesapError;
      this.#counts[code === 'ERR_ABORTED' ? 'aborted' : code === 'ERR_BUSY' ? 'refused' : 'failed']++;
      throw error;
    }
  }

  #enqueue(
    { client, ...asked }: Asked,
    given: { own: MessagePort; workers: MessagePort } | null,
    isAbortable: boolean,
  ): Promise<{ result: PlainResult | null; waited: number }> {
    const channel = given === null && isAbortable ? new MessageChannel() : null;
    const ports = given ?? (channel && { own: channel.port1, workers: channel.port2 });
    return new Promise((resolve, reject) => {
      const request: Request = {
        task: { ...asked, port: ports?.workers ?? null },
        isAlone: asked.further !== undefined,
        client,
        arrived: performance.now(),
        done: (outcome, waited) => {
          forget();
          channel?.port1.close();
          if ('error' in outcome) reject(fromPlainError(outcome.error));
          else resolve({ result: outcome.value, waited });
        },
        failed: (error) => {
          forget();
          ports?.own.close();
          reject(error);
        },
      };
      const forget = onAbort(() => {
        // Who waits is taken out. Who runs begins nothing more, and ends.
        if (this.#queue.remove(request)) request.failed(new DesapError('ERR_ABORTED', 'taken out of the queue'));
        else ports?.own.postMessage('abort');
      });
      try {
        this.#queue.push(request)?.failed(this.#queue.busy());
        this.#pump();
      } catch (error) {
        request.failed(error as DesapError);
      }
    });
  }

  /** Gives waiting requests to free workers. */
  #pump(): void {
    const { batch, window } = this.how;
    clearTimeout(this.#window);
    for (let first = this.#queue.first; first !== undefined && this.#free > 0; first = this.#queue.first) {
      const left = first.arrived + window - performance.now();
      if (left > 0 && this.#queue.size < batch && !first.isAlone && this.#state === 'open') {
        this.#window = setTimeout(() => this.#pump(), left);
        return;
      }
      void this.#run(this.#queue.take(batch));
    }
  }

  async #run(requests: readonly Request[]): Promise<void> {
    this.#free--;
    this.#running += requests.length;
    const began = performance.now();
    const transferList = requests.flatMap(({ task }) => task.port ?? []);
    const call = new AbortController();
    this.#calls.add(call);
    try {
      const outcomes = await this.workers.run(
        requests.map(({ task }) => task),
        { transferList, signal: call.signal },
      );
      for (const [i, { done, arrived }] of requests.entries()) done(outcomes[i], began - arrived);
    } catch (error) {
      const reason = call.signal.aborted ? (call.signal.reason as DesapError) : lost(error);
      for (const { failed } of requests) failed(reason);
    } finally {
      this.#calls.delete(call);
      this.#running -= requests.length;
      this.#free++;
      this.#pump();
    }
  }
}

function lost(cause: unknown): DesapError {
  return new DesapError('ERR_WORKER_LOST', `the worker died: ${messageOf(cause)}`, { cause });
}

function checkClient(client: string | undefined): void {
  if (client !== undefined) nonEmpty('client', client, 'the name of a client');
}

function urlOf(module: URL | string): string {
  const text = reading('continuation', () => String(module));
  const { href, protocol } = URL.canParse(text) ? new URL(text) : { href: '', protocol: '' };
  if (protocol === 'file:') return href;
  const wanted = 'the file: URL of a module (new URL("./it.js", import.meta.url))';
  throw invalid('ERR_VALUE', 'continuation', text, wanted);
}

/** What a worker is asked, as it is now. */
function taskOf(
  picture: PoolPicture,
  question: Question,
  choice: Choice,
  further?: Task['further'],
): Omit<Task, 'port'> {
  return {
    picture: pictureOf(picture),
    question:
      typeof question === 'object' && question !== null
        ? clonedTensors('question', question)
        : cloned('question', question),
    choice: cloned('options', choice),
    ...(further && { further: { input: cloned('input', further.input) } }),
  };
}

/** A picture as a worker sees it: bytes are shared with it. */
function pictureOf(given: PoolPicture): Picture {
  if (types.isAnyArrayBuffer(given) || ArrayBuffer.isView(given))
    return { bytes: sharedBytes(bytesOf('picture', given, PICTURE)) };
  if (typeof given !== 'object' || given === null || isArray(given))
    throw invalid('ERR_VALUE', 'picture', given, PICTURE);
  return { inputs: clonedTensors('picture', given) };
}
