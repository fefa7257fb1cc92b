/** How much of an image, or how many images, a tower takes in one run. */
import type { InferenceSession } from 'onnxruntime-common';

/**
 * On a processor, products of some hundred rows are as fast as any, and activations of more rows than these leave the cache: seventeen tiles
 * of 1024 rows take longer together than one by one. Fewer rows are not worth the call of each operator.
 */
const ROWS = 1024;

/**
 * Rows of one run, where one tile or image does not have more: no limit where another device than the processor runs the session.
 * It follows from shapes alone, never from times: what is computed together does not change from one process to the next.
 */
export function rowsAtOnce({ executionProviders = [] }: InferenceSession.SessionOptions = {}): number {
  const isCpu = executionProviders.every((one) => (typeof one === 'string' ? one : one.name) === 'cpu');
  return isCpu ? ROWS : Number.POSITIVE_INFINITY;
}

/** Tiles of so many rows that make one run. */
export function tilesAtOnce(rows: number, most: number): number {
  return Math.max(1, Math.floor(most / rows));
}
