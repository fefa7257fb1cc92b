import { SingleBar } from 'cli-progress';

/** A progress bar on stderr; nothing where stderr is not a terminal. */
export function progress(what: string, total: number): { step(): void; stop(): void } {
  const bar = new SingleBar({
    format: `${what} [{bar}] {value}/{total}`,
    stream: process.stderr,
    noTTYOutput: false,
    clearOnComplete: true,
    hideCursor: true,
  });
  bar.start(total, 0);
  return { step: () => bar.increment(), stop: () => bar.stop() };
}
