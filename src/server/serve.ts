/** What a worker does with requests: pictures to features, and what follows. */
import { createHash } from 'node:crypto';
import { abortable } from '../abort.js';
import { DesapError, messageOf, mismatch } from '../errors.js';
import type { TextEmbeddings } from '../index.js';
import { AnyresImageProcessor } from '../vision/anyres-images.js';
import { asks } from '../vision/ask-ahead.js';
import type { KeptPatches } from '../vision/compact.js';
import { ImageProcessor } from '../vision/image-processor.js';
import { openVisionModel } from '../vision/open.js';
import type { EncodedImage, PrunedFeatures, Question, VisionInputs, VisionModel } from '../vision/vision-model.js';
import { Cache, type Lease } from './cache.js';
import type { Continuation, OpenContinuation } from './continuation.js';
import {
  type Outcome,
  type Picture,
  type PlainResult,
  plainError,
  plainResult,
  type Task,
  type WorkerData,
} from './messages.js';

/** What a worker says to the port of a request. */
export type Said = { readonly piece: unknown };

/** A model in a worker. */
export class Service {
  readonly #images: Cache<EncodedImage>;
  readonly #questions: Cache<TextEmbeddings>;

  private constructor(
    cache: WorkerData['cache'],
    private readonly vision: VisionModel,
    private readonly read: (bytes: Uint8Array) => Promise<VisionInputs>,
    private readonly goOn: Continuation | null,
  ) {
    this.#images = new Cache(
      cache.images,
      ({ byteLength }) => byteLength,
      (image) => image.dispose(),
    );
    this.#questions = new Cache(cache.questions, bytesOf);
  }

  /** @throws DesapError as `openVisionModel`; `ERR_VALUE` for a module without a continuation */
  static async open({ model, options, cache, continuation }: WorkerData): Promise<Service> {
    const vision = await openVisionModel(model, options);
    const read = await readerOf(vision, model);
    if (continuation === null) return new Service(cache, vision, read, null);
    const { default: open } = await moduleOf(continuation);
    const wanted = 'a module whose default export is a function that gives one';
    if (typeof open !== 'function') throw mismatch('ERR_VALUE', 'continuation', `${continuation} without one`, wanted);
    const goOn = await open({ vision, model, threads: options.threads as number });
    if (typeof goOn !== 'function')
      throw mismatch('ERR_VALUE', 'continuation', `${continuation} that gives none`, wanted);
    return new Service(cache, vision, read, goOn);
  }

  /** Each request by itself where it fails; those that are only pruned are pruned in one go. */
  async serve(tasks: readonly Task[]): Promise<Outcome<PlainResult | null>[]> {
    const listeners = tasks.map(listen);
    try {
      const images = await Promise.all(tasks.map((task, i) => outcome(() => this.#encode(task, listeners[i].signal))));
      try {
        return await this.#serve(
          tasks,
          images,
          listeners.map(({ signal }) => signal),
        );
      } finally {
        for (const image of images) if ('value' in image) image.value.release();
      }
    } finally {
      for (const { close } of listeners) close();
    }
  }

  async #serve(
    tasks: readonly Task[],
    images: readonly Outcome<Lease<EncodedImage>>[],
    signals: readonly AbortSignal[],
  ): Promise<Outcome<PlainResult | null>[]> {
    const together = await this.#pruneTogether(tasks, images);
    return Promise.all(
      tasks.map((task, i) => {
        const image = images[i];
        if ('error' in image) return image;
        return outcome(async () => {
          const work = async () => {
            const pruned = together?.[i] ?? (await this.#prune(task, image.value.value));
            if (task.further === undefined) return plainResult(pruned as PrunedFeatures);
            await this.#goOn(task, pruned, signals[i]);
            return null;
          };
          return abortable(signals[i], work);
        });
      }),
    );
  }

  /** Pruned in one go; null where there is one alone, or where one of them fails: each then says by itself what is wrong. */
  async #pruneTogether(
    tasks: readonly Task[],
    images: readonly Outcome<Lease<EncodedImage>>[],
  ): Promise<(PrunedFeatures | undefined)[] | null> {
    const own = [...tasks.keys()].filter((i) => 'value' in images[i] && tasks[i].choice.keep !== 'all');
    if (own.length < 2) return null;
    const pruned = await Promise.all(own.map((i) => this.#asked(tasks[i].question)))
      .then((questions) =>
        this.vision.pruneImages(
          own.map((i) => (images[i] as { value: Lease<EncodedImage> }).value.value),
          questions,
          own.map((i) => tasks[i].choice as object),
        ),
      )
      .catch(() => null);
    return pruned && tasks.map((_, i) => pruned[own.indexOf(i)]);
  }

  async #encode({ picture, question, choice }: Task, signal: AbortSignal): Promise<Lease<EncodedImage>> {
    const { keep, ...how } = choice;
    // What is refused costs no run of the tower.
    if (keep !== 'all' && typeof question === 'string' && asks({ keep, ...how }))
      await this.vision.checkQuestion(question, { signal });
    return this.#images.get(
      () => digest(picture),
      async () => {
        const inputs = 'bytes' in picture ? await this.read(picture.bytes) : picture.inputs;
        const images = await this.vision.encode(inputs, undefined, { signal });
        if (images.length === 1) return images[0];
        for (const image of images) image.dispose();
        throw mismatch('ERR_SHAPE', 'image', `${images.length} images`, 'one');
      },
    );
  }

  /** A question that was encoded before needs no text tower. */
  async #asked(question: Question): Promise<Question> {
    if (typeof question !== 'string' || !this.#questions.isOn) return question;
    const { value } = await this.#questions.get(
      () => question,
      () => this.vision.encodeQuestion(question),
    );
    return value;
  }

  async #prune({ question, choice }: Task, image: EncodedImage): Promise<Kept> {
    const { keep, ...how } = choice;
    if (keep !== 'all') return image.prune(await this.#asked(question), { keep, ...how });
    const all = Int32Array.from({ length: image.tokenCount }, (_, place) => place);
    return { features: await image.all(), indices: all, assignment: all };
  }

  async #goOn({ question, further, port }: Task, { features, ...kept }: Kept, signal: AbortSignal): Promise<void> {
    if (this.goOn === null) throw new DesapError('ERR_INTERNAL', 'continuation: none');
    const asked = typeof question === 'string' ? question : null;
    try {
      for await (const piece of this.goOn({ features, kept, question: asked, input: further?.input, signal })) {
        if (signal.aborted) return;
        port?.postMessage({ piece } satisfies Said);
      }
    } catch (cause) {
      if (cause instanceof DesapError) throw cause;
      throw new DesapError('ERR_CONTINUATION', `continuation: ${messageOf(cause)}`, { cause });
    }
  }
}

/** Features, and which of the image's tokens they stand for. */
type Kept = KeptPatches & Pick<PrunedFeatures, 'features'>;

/** What stands for a picture: its bytes, or every input with its name, type and extents. */
function digest(picture: Picture): string {
  const hash = createHash('sha256');
  if ('bytes' in picture) return hash.update('bytes').update(picture.bytes).digest('base64');
  for (const [name, value] of Object.entries(picture.inputs).sort(([a], [b]) => (a < b ? -1 : 1))) {
    const { data, ...about } = value as { data?: ArrayBufferView };
    hash.update(JSON.stringify([name, Array.isArray(value) ? value : about]));
    if (data !== undefined) hash.update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  return hash.digest('base64');
}

function bytesOf({ embeddings, endOfText }: TextEmbeddings): number {
  const { byteLength } = embeddings.data as Float32Array;
  return byteLength + (typeof endOfText === 'object' ? endOfText.byteLength : 0);
}

/** The signal of a request, which its port gives. */
function listen({ port }: Task): { readonly signal: AbortSignal; close(): void } {
  const control = new AbortController();
  port?.on('message', () => control.abort());
  return { signal: control.signal, close: () => port?.close() };
}

async function outcome<T>(work: () => Promise<T>): Promise<Outcome<T>> {
  try {
    return { value: await work() };
  } catch (error) {
    return { error: plainError(error) };
  }
}

/** @throws DesapError `ERR_FILE` for a module that is not there, or fails while it is imported */
async function moduleOf(url: string): Promise<{ default?: OpenContinuation }> {
  try {
    return await import(url);
  } catch (cause) {
    throw new DesapError('ERR_FILE', `continuation: ${url} cannot be imported: ${messageOf(cause)}`, { cause });
  }
}

/** How a family's images are read. */
async function readerOf({ family }: VisionModel, model: string): Promise<(bytes: Uint8Array) => Promise<VisionInputs>> {
  if (family === 'llava') {
    const images = await ImageProcessor.open(model);
    return async (bytes) => ({ pixelValues: await images.process(bytes) });
  }
  if (family === 'llava_next') {
    const images = await AnyresImageProcessor.open(model);
    return async (bytes) => ({ ...(await images.process(bytes)) });
  }
  return async () => {
    throw mismatch('ERR_VALUE', 'image', 'the bytes of an image', `inputs, as the processor of '${family}' makes them`);
  };
}
