/** A continuation for tests: says what it was given, in pieces; dies, fails or goes on for ever where it is told to. */
import { setTimeout as sleep } from 'node:timers/promises';

export default async function open({ vision, threads }) {
  return async function* go({ features, kept, question, input, signal }) {
    if (input === 'die') process.exit(3);
    if (input === 'fail') throw new Error('no such luck');
    yield { family: vision.family, threads, question, dims: features.dims, indices: kept.indices };
    for (let piece = 0; input === 'endless' || piece < 3; piece++) {
      if (signal.aborted) return;
      yield piece;
      await sleep(5);
    }
  };
}
