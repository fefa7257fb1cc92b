import { DesapError, type DesapErrorCode } from '../errors.js';

/** Whose fault an error is. What is in no list is the operator's: files, devices, memory, bugs. */
const OF_CALLER: readonly DesapErrorCode[] = [
  ...(['ERR_SHAPE', 'ERR_DTYPE', 'ERR_VALUE', 'ERR_NOT_FINITE', 'ERR_DETACHED'] as const),
  // Of an open pool: the file that came with the request.
  'ERR_FILE',
];
const GONE: readonly DesapErrorCode[] = ['ERR_DISPOSED', 'ERR_WORKER_LOST'];

/**
 * The HTTP status of a request that failed: 400 by its own fault, 429 for a full queue, 504 past its deadline, 499 when its client has
 * gone, 503 while the pool closes or a worker is replaced, 500 for the rest.
 */
export function httpStatus(error: unknown): number {
  if (!(error instanceof DesapError)) return 500;
  const { code, cause } = error;
  if (OF_CALLER.includes(code)) return 400;
  if (code === 'ERR_BUSY') return 429;
  if (code === 'ERR_ABORTED') return (cause as Error | undefined)?.name === 'TimeoutError' ? 504 : 499;
  return GONE.includes(code) ? 503 : 500;
}
