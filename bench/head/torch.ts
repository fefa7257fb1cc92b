/** PyTorch's head: a process of Python per number of threads, which runs once whenever it is told to (bench/peers/torch_cpu.py). */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type HeadWeights, saveHead } from '../../src/index.js';
import { formatSafeTensors } from '../../src/safetensors.js';
import type { Tensor } from '../../src/tensor.js';
import { type Answer, LineProcess } from '../line-process.js';
import type { Contestant, Question } from './contestants.js';

const SCRIPT = fileURLToPath(new URL('../peers/torch_cpu.py', import.meta.url));

/** PyTorch's own name of the type. */
const BF16 = 'bfloat16';

interface Ready extends Answer {
  /** Of PyTorch. */
  readonly version: string;
  /** Names as the process gives them: "eager, bfloat16". */
  readonly contestants: readonly string[];
}

/** A process that has compiled and warmed up PyTorch's heads. It ends when it is disposed of. */
export class TorchProcess implements Disposable {
  private constructor(
    private readonly lines: LineProcess<Ready>,
    private readonly threads: number,
  ) {}

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
      const command = [python, SCRIPT, folder, `${threads}`, ...types];
      return new TorchProcess(await LineProcess.start<Ready>(`${python}, which --python names,`, command), threads);
    } finally {
      await rm(folder, { recursive: true });
    }
  }

  /** PyTorch's version. */
  get version(): string {
    return this.lines.ready.version;
  }

  /** Milliseconds of processor time that the process had taken by its last answer; it rests from then on. */
  get processorTime(): number {
    return this.lines.processorTime;
  }

  contestants(): Contestant[] {
    const { lines, threads } = this;
    return lines.ready.contestants.map((contestant) => ({
      name: `PyTorch, ${contestant}`,
      arithmetic: contestant.endsWith(BF16) ? 'bf16' : 'float32',
      threads,
      time: async () => (await lines.ask<Answer & { ms: number }>({ contestant, order: 'time' })).ms,
      outcome: async () => {
        const order = { contestant, order: 'outcome' };
        const { indices, assignment, tokens } = await lines.ask<Answer & Record<string, number[]>>(order);
        return { indices, assignment, tokens: Float32Array.from(tokens) };
      },
    }));
  }

  [Symbol.dispose](): void {
    this.lines[Symbol.dispose]();
  }
}

async function writeInputs(folder: string, weights: HeadWeights, { hidden, text, keep }: Question): Promise<void> {
  const entry = ({ data, dims }: Tensor) => ({ data: data as Float32Array, shape: [...dims] });
  const question = formatSafeTensors({ hidden: entry(hidden), text: entry(text) }, { keep: `${keep}` });
  await saveHead(weights, join(folder, 'head.safetensors'));
  await writeFile(join(folder, 'question.safetensors'), question);
}
