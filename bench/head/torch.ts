/** PyTorch's head: a process of Python per number of threads, which runs once whenever it is told to (bench/peers/torch_cpu.py). */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { type HeadWeights, saveHead } from '../../src/index.js';
import { formatSafeTensors } from '../../src/safetensors.js';
import type { Tensor } from '../../src/tensor.js';
import type { Contestant, Question } from './contestants.js';

const SCRIPT = fileURLToPath(new URL('../peers/torch_cpu.py', import.meta.url));
/** As much of what the process complained about as an error quotes. */
const COMPLAINT = 2000;

/** PyTorch's own name of the type. */
const BF16 = 'bfloat16';

interface Answer {
  readonly cpu_ms: number;
}

interface Ready extends Answer {
  /** Of PyTorch. */
  readonly version: string;
  /** Names as the process gives them: "eager, bfloat16". */
  readonly contestants: readonly string[];
}

/** A process that has compiled and warmed up PyTorch's heads. It ends when it is disposed of. */
export class TorchProcess implements Disposable {
  private readonly answers: AsyncIterator<string>;
  private readonly ended: Promise<number | NodeJS.Signals | null>;
  private complaint = '';
  private cpuMs = 0;
  private ready!: Ready;

  private constructor(
    private readonly child: ChildProcessWithoutNullStreams,
    private readonly threads: number,
  ) {
    this.answers = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    child.stderr.on('data', (text) => {
      this.complaint = `${this.complaint}${text}`.slice(-COMPLAINT);
    });
    // Of a process that has ended, or never began, the next answer tells.
    child.stdin.on('error', () => {});
    child.on('error', (error) => {
      this.complaint = error.message;
    });
    this.ended = new Promise((resolve) => {
      child.on('close', (code, signal) => resolve(code ?? signal));
    });
  }

  /**
   * Starts `python`, a program that has PyTorch and finds a C++ compiler. Compiling takes half a minute. `bf16`: in that type too.
   * @throws Error with what the process complained about, when it ends instead
   */
  static async start(
    python: string,
    weights: HeadWeights,
    question: Question,
    threads: number,
    bf16: boolean,
  ): Promise<TorchProcess> {
    const folder = await mkdtemp(join(tmpdir(), 'desap-bench-'));
    try {
      await writeInputs(folder, weights, question);
      const types = bf16 ? ['float32', BF16] : ['float32'];
      const torch = new TorchProcess(spawn(python, [SCRIPT, folder, `${threads}`, ...types]), threads);
      torch.ready = await torch.answer<Ready>();
      return torch;
    } finally {
      await rm(folder, { recursive: true });
    }
  }

  /** PyTorch's version. */
  get version(): string {
    return this.ready.version;
  }

  /** Milliseconds of processor time that the process had taken by its last answer; it rests from then on. */
  get processorTime(): number {
    return this.cpuMs;
  }

  contestants(): Contestant[] {
    return this.ready.contestants.map((contestant) => ({
      name: `PyTorch, ${contestant}`,
      arithmetic: contestant.endsWith(BF16) ? 'bf16' : 'float32',
      threads: this.threads,
      time: async () => (await this.ask<Answer & { ms: number }>(contestant, 'time')).ms,
      outcome: async () => {
        const { indices, assignment, tokens } = await this.ask<Answer & Record<string, number[]>>(
          contestant,
          'outcome',
        );
        return { indices, assignment, tokens: Float32Array.from(tokens) };
      },
    }));
  }

  private ask<T extends Answer>(contestant: string, order: 'time' | 'outcome'): Promise<T> {
    this.child.stdin.write(`${JSON.stringify({ contestant, order })}\n`);
    return this.answer<T>();
  }

  private async answer<T extends Answer>(): Promise<T> {
    const { value, done } = await this.answers.next();
    if (done) {
      const end = await this.ended;
      throw new Error(`${this.child.spawnfile}, which --python names, ended (${end}): ${this.complaint}`);
    }
    const answer = JSON.parse(value) as T;
    this.cpuMs = answer.cpu_ms;
    return answer;
  }

  [Symbol.dispose](): void {
    this.child.stdin.end();
  }
}

async function writeInputs(folder: string, weights: HeadWeights, { hidden, text, keep }: Question): Promise<void> {
  const entry = ({ data, dims }: Tensor) => ({ data: data as Float32Array, shape: [...dims] });
  const question = formatSafeTensors({ hidden: entry(hidden), text: entry(text) }, { keep: `${keep}` });
  await saveHead(weights, join(folder, 'head.safetensors'));
  await writeFile(join(folder, 'question.safetensors'), question);
}
