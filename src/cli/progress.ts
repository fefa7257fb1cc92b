import bars from 'cli-progress';

/** Steps that the time left is reckoned from. */
const RECENT = 50;
const SIGNALS = ['SIGINT', 'SIGTERM'] as const;

/**
 * A progress bar on stderr; nothing where stderr is not a terminal.
 * @param done how much is done already; with it the bar tells the time left
 */
export function progress(what: string, total: number, done?: number): { step(): void; stop(): void } {
  let steps = 0;
  const bar = new bars.SingleBar({
    format: `${what} [{bar}] {value}/{total}${done === undefined ? '' : ', {eta_formatted} left'}`,
    stream: process.stderr,
    noTTYOutput: false,
    clearOnComplete: true,
    hideCursor: true,
    etaBuffer: RECENT,
    // Nothing is known of the time left before the first step.
    formatTime: (...time) => (steps === 0 ? '?' : bars.Format.TimeFormat(...time)),
  });
  const stop = () => {
    for (const signal of SIGNALS) process.off(signal, interrupted);
    bar.stop();
  };
  // Whoever breaks off gets the cursor back.
  const interrupted = (signal: NodeJS.Signals) => {
    stop();
    process.kill(process.pid, signal);
  };
  for (const signal of SIGNALS) process.once(signal, interrupted);
  bar.start(total, done ?? 0);
  return {
    step() {
      steps++;
      bar.increment();
    },
    stop,
  };
}
