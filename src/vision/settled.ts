import { DesapError } from '../errors.js';

/**
 * One call for several things, such as the images of a run. Where one of them is not finite, each has a call of its own: that one fails,
 * and the others do not.
 *
 * @param call gives each of some things its result, or fails for all of them
 * @throws what `call` throws for other reasons
 */
export async function settled<T, R>(
  things: readonly T[],
  call: (some: readonly T[]) => Promise<readonly R[]>,
): Promise<PromiseSettledResult<R>[]> {
  try {
    return (await call(things)).map((value) => ({ status: 'fulfilled', value }));
  } catch (error) {
    if (!(error instanceof DesapError) || error.code !== 'ERR_NOT_FINITE') throw error;
    if (things.length === 1) return [{ status: 'rejected', reason: error }];
    const each: PromiseSettledResult<R>[] = [];
    for (const one of things) each.push(...(await settled([one], call)));
    return each;
  }
}

/** The result, or what went wrong instead. */
export function resultOf<R>(one: PromiseSettledResult<R>): R {
  if (one.status === 'fulfilled') return one.value;
  throw one.reason;
}
