/** Who competes: our head, ONNX Runtime's, and the JavaScript reference; PyTorch's is in torch.ts. Each computes the same from the same memory. */
import { InferenceSession } from 'onnxruntime-node';
import { type DeviceOptions, devices, type HeadWeights, Pruner } from '../../src/index.js';
import type { Tensor } from '../../src/tensor.js';
import { atRest } from '../../src/vision/session.js';
import { tensor } from '../data.js';
import { LLAVA } from '../harness.js';
import type { Outcome } from './agreement.js';
import { GRAPH_NAMES, type GraphName, headGraph } from './graphs.js';
import type { Arithmetic } from './peaks.js';
import { timed } from './rounds.js';

export interface Contestant {
  readonly name: string;
  readonly threads: number;
  readonly arithmetic: Arithmetic;
  /** Runs once, and tells how many milliseconds that took. */
  time(): Promise<number>;
  /** Runs once, for its results. */
  outcome(): Promise<Outcome>;
}

/** One image and one question. */
export interface Question {
  readonly hidden: Tensor;
  readonly text: Tensor;
  readonly keep: number;
}

/** Seeds with no near tie: at both cuts the scores differ by 0.7 % of the largest or more. */
export const question = (): Question => ({
  hidden: tensor(27, LLAVA.rows, LLAVA.width),
  text: tensor(28, LLAVA.text, LLAVA.projectionDim),
  keep: LLAVA.keep,
});

/** Our head. */
export async function ours(
  name: string,
  weights: HeadWeights,
  { hidden, text, keep }: Question,
  options: DeviceOptions,
): Promise<Contestant> {
  const pruner = await Pruner.load(weights, options);
  const run = () => pruner.pruneSync(hidden, text, { keep });
  const outcome = async () => {
    const { indices, assignment, tokens } = run();
    return { indices: [...indices], assignment: [...assignment], tokens: tokens.data as Float32Array };
  };
  const float32 = options.isa === 'avx2' ? 'float32 by AVX2' : 'float32';
  const arithmetic = pruner.precision === 'bf16' ? 'bf16' : float32;
  return { name, threads: options.threads ?? 1, arithmetic, time: () => timed(run), outcome };
}

/** A graph in ONNX Runtime. Its threads rest between its runs, as they must not compete with the next contestant's. */
export async function onnxRuntime(
  name: string,
  graph: Uint8Array,
  { hidden, text }: Question,
  threads: number,
): Promise<Contestant> {
  const session = await InferenceSession.create(graph, atRest({ intraOpNumThreads: threads }));
  const run = () => session.run({ hidden, text });
  const outcome = async () => {
    const { indices, assignment, tokens } = await run();
    const numbers = ({ data }: { data: unknown }) => Array.from(data as BigInt64Array, Number);
    return { indices: numbers(indices), assignment: numbers(assignment), tokens: tokens.data as Float32Array };
  };
  return { name, threads, arithmetic: 'float32', time: () => timed(run), outcome };
}

/** The graphs for a question, by name. */
export function graphsFor(
  weights: HeadWeights,
  { hidden, text, keep }: Question,
): [name: GraphName, graph: Uint8Array][] {
  const shape = { rows: hidden.dims[0], text: text.dims[0], keep };
  return GRAPH_NAMES.map((name) => [name, headGraph(name, weights, shape)]);
}

/** Instruction sets of this machine, best first. */
export function instructionSets(): readonly string[] {
  const cpu = devices().find(({ device }) => device === 'cpu');
  if (!cpu?.available || !('isas' in cpu)) throw new Error('the CPU addon is not available');
  return cpu.isas as readonly string[];
}

/**
 * The instruction set with bfloat16 products, or undefined. Where they are not faster than float32's, the package computes in float32
 * unless it is asked for this one by name.
 */
export function bf16Isa(): DeviceOptions['isa'] {
  return instructionSets().find((isa) => isa.endsWith('bf16')) as DeviceOptions['isa'];
}
