/**
 * `Symbol.dispose` and `Symbol.asyncDispose`. Before Node 24 they are missing in realms other than the main one (tests in Jest, vitest's
 * vm pools); compilers of `using` then look for the names below.
 */
export const DISPOSE: typeof Symbol.dispose = Symbol.dispose ?? Symbol.for('Symbol.dispose');
export const ASYNC_DISPOSE: typeof Symbol.asyncDispose = Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose');
