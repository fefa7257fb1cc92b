/** What goes between a pool and its workers, and how it travels. */
import type { MessagePort } from 'node:worker_threads';
import { DesapError, type DesapErrorCode, messageOf } from '../errors.js';
import type { Limits } from '../limits.js';
import type { Tensor } from '../tensor.js';
import { float32 } from '../tensor.js';
import type { VisionModelOptions } from '../vision/families.js';
import type { PrunedFeatures, Question, VisionInputs, VisionPruneOptions } from '../vision/vision-model.js';

/** What a worker is started with. */
export interface WorkerData {
  readonly model: string;
  readonly options: VisionModelOptions;
  readonly limits: Limits;
  /** Bytes that each worker keeps. */
  readonly cache: { readonly images: number; readonly questions: number };
  /** The URL of a module that says what follows pruning. */
  readonly continuation: string | null;
}

/** A picture: the bytes of an image file, or what an image processor made of it. */
export type Picture = { readonly bytes: Uint8Array } | { readonly inputs: VisionInputs };

/** How to prune; with `keep: 'all'` not at all. */
export interface Choice extends Omit<VisionPruneOptions, 'keep'> {
  keep?: number | 'all';
}

/** What a worker is asked. */
export interface Task {
  readonly picture: Picture;
  readonly question: Question;
  readonly choice: Choice;
  /** Carries pieces out and `abort` in; null where there is neither. */
  readonly port: MessagePort | null;
  /** What the continuation is given; undefined: it is not asked. */
  readonly further?: { readonly input: unknown };
}

/** What became of a task. */
export type Outcome<T> = { readonly value: T } | { readonly error: PlainError };

/** A result without classes. */
export type PlainResult = Omit<PrunedFeatures, 'features' | 'further'> & {
  readonly features: PlainTensor;
  readonly further?: Readonly<Record<string, PlainTensor>>;
};

interface PlainTensor {
  readonly data: Float32Array;
  readonly dims: readonly number[];
}

interface PlainError {
  readonly code: DesapErrorCode;
  readonly message: string;
  readonly stack?: string;
}

/** An error that `postMessage` takes as it is: it would lose its class and its code. */
export function plainError(error: unknown): PlainError {
  const { stack } = error as { stack?: string };
  if (error instanceof DesapError) return { code: error.code, message: error.message, stack };
  return { code: 'ERR_INTERNAL', message: `worker: ${messageOf(error)}`, stack };
}

/** The same error again, with the stack that it had in the worker. */
export function fromPlainError({ code, message, stack }: PlainError): DesapError {
  return Object.assign(new DesapError(code, message), stack !== undefined && { stack });
}

/** ONNX Runtime's memory cannot be moved to another thread: features are copied once, into memory that can. */
export function plainResult({ features, further, ...result }: PrunedFeatures): PlainResult {
  return { ...result, features: plainTensor(features), ...(further && { further: mapped(further, plainTensor) }) };
}

export function fromPlainResult({ features, further, ...result }: PlainResult): PrunedFeatures {
  const tensor = ({ data, dims }: PlainTensor) => float32(data, dims);
  return { ...result, features: tensor(features), ...(further && { further: mapped(further, tensor) }) };
}

function plainTensor({ data, dims }: Tensor): PlainTensor {
  return { data: (data as Float32Array).slice(), dims };
}

function mapped<T, R>(values: Readonly<Record<string, T>>, map: (value: T) => R): Record<string, R> {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, map(value)]));
}

/** Memory of results, which is moved to the other thread and not copied. */
export function memoryOf(results: readonly Outcome<PlainResult | null>[]): ArrayBuffer[] {
  const memory = new Set<ArrayBuffer>();
  for (const result of results) if ('value' in result && result.value !== null) collect(result.value, memory);
  return [...memory];
}

function collect(value: unknown, memory: Set<ArrayBuffer>): void {
  if (ArrayBuffer.isView(value)) {
    if (value.buffer instanceof ArrayBuffer && value.byteLength === value.buffer.byteLength) memory.add(value.buffer);
  } else if (typeof value === 'object' && value !== null) for (const one of Object.values(value)) collect(one, memory);
}

/** Memory that both threads see: what is shared already stays where it is, and other memory is copied once. */
export function sharedBytes<T extends Uint8Array | Float32Array | BigInt64Array | Uint16Array>(view: T): T {
  if (view.buffer instanceof SharedArrayBuffer) return view;
  const View = view.constructor as new (buffer: SharedArrayBuffer) => T;
  const copy = new View(new SharedArrayBuffer(view.byteLength));
  copy.set(view as never);
  return copy;
}
