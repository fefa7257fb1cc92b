/**
 * Serving: a model in worker threads, with one queue.
 *
 * @module desap/server
 */

export type { Continuation, Continued, OpenContinuation } from './continuation.js';
export { httpStatus } from './http-status.js';
export type { Choice } from './messages.js';
export type { PoolHealth, PoolPicture, StreamOptions, VisionPoolOptions } from './pool.js';
export { VisionPool } from './pool.js';
