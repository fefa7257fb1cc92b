import { SingleBar } from 'cli-progress';

/** Steps that the time left is reckoned from. */
const RECENT = 50;

/**
 * A progress bar on stderr; nothing where stderr is not a terminal.
 * @param done how much is done already; with it the bar tells the time left
 */
export function progress(what: string, total: number, done?: number): { step(): void; stop(): void } {
  const bar = new SingleBar({
    format: `${what} [{bar}] {value}/{total}${done === undefined ? '' : ', {eta_formatted} left'}`,
    stream: process.stderr,
    noTTYOutput: false,
    clearOnComplete: true,
    hideCursor: true,
    etaBuffer: RECENT,
  });
  bar.start(total, done ?? 0);
  return { step: () => bar.increment(), stop: () => bar.stop() };
}
