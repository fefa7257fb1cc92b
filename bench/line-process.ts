/** A program that does what lines of JSON tell it, and answers each with one: how contestants in other languages take part. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

/** What every answer has. */
export interface Answer {
  /** Milliseconds of processor time that the process has taken. It rests until it is asked again. */
  readonly cpu_ms: number;
}

/** As much of what the process complained about as an error quotes. */
const COMPLAINT = 2000;

/** Its first answer comes unasked, when it is ready. It ends when it is disposed of. */
export class LineProcess<Ready extends Answer> implements Disposable {
  private readonly child: ChildProcessWithoutNullStreams;
  private readonly answers: AsyncIterator<string>;
  private readonly ended: Promise<number | NodeJS.Signals | null>;
  private complaint = '';
  private cpuMs = 0;
  /** Its first answer. */
  ready!: Ready;

  private constructor(
    private readonly name: string,
    [program, ...args]: readonly string[],
    environment: NodeJS.ProcessEnv,
  ) {
    this.child = spawn(program, args, { env: { ...process.env, ...environment } });
    this.answers = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
    this.child.stderr.on('data', (text) => {
      this.complaint = `${this.complaint}${text}`.slice(-COMPLAINT);
    });
    // Of a process that has ended, or never began, the next answer tells.
    this.child.stdin.on('error', () => {});
    this.child.on('error', (error) => {
      this.complaint = error.message;
    });
    this.ended = new Promise((resolve) => {
      this.child.on('close', (code, signal) => resolve(code ?? signal));
    });
  }

  /**
   * Starts it, and waits until it is ready.
   *
   * @param name what errors call it
   * @throws Error with what the process complained about, when it ends instead
   */
  static async start<Ready extends Answer>(
    name: string,
    command: readonly string[],
    environment: NodeJS.ProcessEnv = {},
  ): Promise<LineProcess<Ready>> {
    const started = new LineProcess<Ready>(name, command, environment);
    started.ready = await started.answer<Ready>();
    return started;
  }

  /** Milliseconds of processor time that the process had taken by its last answer. */
  get processorTime(): number {
    return this.cpuMs;
  }

  /** @throws Error as {@link LineProcess.start} */
  ask<T extends Answer>(order: object): Promise<T> {
    this.child.stdin.write(`${JSON.stringify(order)}\n`);
    return this.answer<T>();
  }

  private async answer<T extends Answer>(): Promise<T> {
    const { value, done } = await this.answers.next();
    if (done) throw new Error(`${this.name} ended (${await this.ended}): ${this.complaint}`);
    const answer = JSON.parse(value) as T;
    this.cpuMs = answer.cpu_ms;
    return answer;
  }

  [Symbol.dispose](): void {
    this.child.stdin.end();
  }
}
