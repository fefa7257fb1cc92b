/** Who competes in choosing rows: our kernels, their reference in JavaScript, and programs of others that `--python` names. */
import { type Backend, openBackend } from '../../src/index.js';
import { timed } from '../head/rounds.js';
import { type Answer, LineProcess } from '../line-process.js';
import type { Inputs } from './inputs.js';

export interface Contestant {
  readonly name: string;
  /** Runs once, and tells how many milliseconds that took. */
  time(): Promise<number>;
  /** Runs once, for the rows that it chooses. */
  picks(): Promise<ArrayLike<number>>;
  /** MB that its first call added to its process at its most; null where that is measured elsewhere. */
  readonly memory: number | null;
}

/** w of L_ij = (1 - w + w g_i g_j) cos_ij, OpenVINO GenAI's default. */
export const BLEND = 0.5;
/** OpenVINO GenAI takes the share that it removes, in percent. */
const REMOVED = 89;

/** How many rows it keeps of P. */
export const keptOf = (patches: number) => Math.round(patches * (1 - REMOVED / 100));

/** A device of ours with one thread. */
export const oneThread = () => openBackend({ device: 'cpu', threads: 1 });
/** Float64 in JavaScript. */
export const reference = () => openBackend({ device: 'reference' });

export type Kernel = 'dpp' | 'farthest';

/** One call of a kernel. */
export function call(backend: Backend, kernel: Kernel, { x, relevance }: Inputs, count: number): Int32Array {
  if (kernel === 'farthest') return backend.sync.farthestPoints({ x, count });
  return backend.sync.dpp({ x, relevance, count, blend: BLEND });
}

export function own(name: string, backend: Backend, kernel: Kernel, given: Inputs): Contestant {
  const run = () => call(backend, kernel, given, keptOf(given.relevance.length));
  return { name, time: () => timed(run), picks: async () => run(), memory: null };
}

/** What processes of others answer. */
interface Ready extends Answer {
  readonly memory_mb: number;
  /** numpy's. */
  readonly version?: string;
}
interface Choice extends Answer {
  readonly ms: number;
  readonly picks: readonly number[];
}

/** Programs of others, each in a process of its own for the inputs of a folder. They end when this is disposed of. */
export class Others implements Disposable {
  private readonly processes: LineProcess<Ready>[] = [];
  readonly contestants: Contestant[] = [];

  /** Milliseconds of processor time that they have taken: it is not foreign load. */
  get processorTime(): number {
    return this.processes.reduce((sum, { processorTime }) => sum + processorTime, 0);
  }

  /** numpy's way, in the file beside this one that does it. */
  async numpy(python: string, script: string, inputs: readonly string[], kernel: Kernel): Promise<void> {
    const command = [python, script, ...inputs, `${BLEND}`];
    const started = await this.start(`${python}, which --python names,`, command, { OPENBLAS_NUM_THREADS: '1' });
    this.enter(started, `numpy ${started.ready.version}, float32`, kernel);
  }

  /** OpenVINO GenAI's pruner, by the program that runs it. */
  async openvino(program: string, [folder, patches, width]: readonly string[]): Promise<void> {
    for (const [split, form] of ['whole', 'its default of two halves'].entries()) {
      const command = [program, folder, patches, width, `${REMOVED}`, `${split}`];
      this.enter(await this.start(program, command), `OpenVINO GenAI, ${form}`, 'dpp');
    }
  }

  private async start(name: string, command: readonly string[], environment = {}): Promise<LineProcess<Ready>> {
    const started = await LineProcess.start<Ready>(name, command, environment);
    this.processes.push(started);
    return started;
  }

  private enter(lines: LineProcess<Ready>, name: string, contestant: Kernel): void {
    const ask = (order: string) => lines.ask<Choice>({ contestant, order });
    this.contestants.push({
      name,
      time: async () => (await ask('time')).ms,
      picks: async () => (await ask('picks')).picks,
      memory: contestant === 'dpp' ? lines.ready.memory_mb : null,
    });
  }

  [Symbol.dispose](): void {
    for (const one of this.processes) one[Symbol.dispose]();
  }
}
