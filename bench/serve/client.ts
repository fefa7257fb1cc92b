/** Requests to a server, and what they took. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

export interface Load {
  readonly loop: { readonly p50: number; readonly p99: number; readonly max: number };
  /** Milliseconds of processor time, and bytes. */
  readonly cpu: number;
  readonly rss: number;
}

export interface Served {
  readonly seconds: number;
  /** Milliseconds of each request, in the order of their ends. */
  readonly latencies: readonly number[];
  readonly failed: number;
  readonly load: Load;
}

export interface Asked {
  readonly image: string;
  readonly question: string;
  readonly keep: number | 'all';
}

/** A server in a process of its own. */
export class Server implements AsyncDisposable {
  private constructor(
    private readonly child: ChildProcess,
    private readonly url: string,
  ) {}

  static async start(args: readonly string[]): Promise<Server> {
    const child = fork(fileURLToPath(new URL('./server.mjs', import.meta.url)), args, { execArgv: [] });
    const [url] = await Promise.race([
      once(child, 'message'),
      once(child, 'exit').then(([code]) => {
        throw new Error(`the server ended with ${code}`);
      }),
    ]);
    return new Server(child, url as string);
  }

  /** The whole answer. */
  async ask(asked: Asked): Promise<string> {
    const headers = { 'content-type': 'application/json' };
    const reply = await fetch(`${this.url}/answer`, { method: 'POST', headers, body: JSON.stringify(asked) });
    const text = await reply.text();
    if (reply.status !== 200) throw new Error(`${reply.status} ${text}`);
    return text;
  }

  async load(): Promise<Load> {
    return (await fetch(`${this.url}/load`)).json() as Promise<Load>;
  }

  /** Keeps some requests in flight until the time is up, or asks a number of them at once. */
  async run(asked: (i: number) => Asked, how: { inFlight: number; seconds?: number }): Promise<Served> {
    await this.load();
    const start = performance.now();
    const latencies: number[] = [];
    let [next, failed] = [0, 0];
    const isOver = () => performance.now() - start > 1000 * (how.seconds ?? 0);
    const one = async () => {
      do {
        const began = performance.now();
        await this.ask(asked(next++)).then(
          () => latencies.push(performance.now() - began),
          () => failed++,
        );
      } while (!isOver());
    };
    await Promise.all(Array.from({ length: how.inFlight }, one));
    return { seconds: (performance.now() - start) / 1000, latencies, failed, load: await this.load() };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.child, 'exit');
    this.child.kill('SIGTERM');
    await ended;
  }
}

/** The value below which a share of all lies. */
export function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}
