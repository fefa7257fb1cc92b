/** Who competes: the encoder by itself, with copied nodes, and with its last block on the package's kernels. One of them in a process. */
import * as ort from 'onnxruntime-node';
import { BlockHead, type BlockOptions, HostBuffer, ImageAnalysis, openBackend } from '../../src/index.js';
import { COS, HIDDEN, ROWS, SIN, TASK_ROWS } from '../../src/onnx/block-values.js';
import { openGraph } from '../../src/onnx/edit.js';
import { readLastBlock } from '../../src/onnx/last-block.js';
import { type SplitEncoder, throughTail } from '../../src/onnx/split-encoder.js';
import { float32, type Tensor } from '../../src/tensor.js';
import { atRest } from '../../src/vision/session.js';
import { normal, tensor } from '../data.js';
import { beginAnew, resident } from '../own-process.js';
import { HANDED_OUT, withCopiedNodes } from './copied-nodes.js';
import { type EncoderShape, PATCHES } from './models.js';

/** What a process is to do. */
export interface Task {
  readonly way: Way;
  readonly path: string;
  readonly shape: EncoderShape;
  readonly patches: number;
  /** Runs that count, behind one that does not. */
  readonly runs: number;
}

export const WAYS = ['plain', 'copied', 'ours'] as const;
export type Way = (typeof WAYS)[number];

/** Processor time in milliseconds, of all threads, which other processes do not change much; and what a clock says. */
export interface Run {
  readonly clock: number;
  readonly whole: number;
  /** Of the whole, the block head's and the connector's. */
  readonly block: number;
  readonly connector: number;
}

/** What a process reports. Memory is resident memory in MB. */
export interface Report {
  readonly runs: readonly Run[];
  /** Once all is open: weights. */
  readonly opened: number;
  /** At its largest while it ran. */
  readonly peak: number;
  /** By how much the block head's first call made it grow at its largest, its result counted; null for the others. */
  readonly growth: number | null;
  /** Kept visual tokens, for a question of random rows; null where nothing was analysed. */
  readonly kept: readonly number[] | null;
}

/** What is known of an image. */
interface Parts {
  readonly rows: Float32Array;
  readonly saliency: Float32Array;
  readonly features: Float32Array;
}

interface Encoded extends Pick<Run, 'block' | 'connector'> {
  /** Null where nothing was analysed. */
  readonly parts: Parts | null;
}

interface Contender {
  encode(pixels: ort.Tensor): Promise<Encoded>;
  /** {@link Report.growth}, once it has run. */
  growth?(): number;
}

const OPEN: Record<Way, (task: Task) => Promise<Contender>> = {
  plain: async ({ path }) => {
    const session = await ort.InferenceSession.create(path, atRest());
    return {
      encode: async (pixels) => {
        await session.run({ [PATCHES]: pixels });
        return { block: 0, connector: 0, parts: null };
      },
    };
  },
  copied: async ({ path, shape }) => {
    const session = await openGraph(ort, withCopiedNodes(path, shape.unit));
    return {
      encode: async (pixels) => {
        const outputs = await session.run({ [PATCHES]: pixels });
        const floats = (name: string) => outputs[name].data as Float32Array;
        const { rows, saliency, features } = HANDED_OUT;
        const parts = { rows: floats(rows), saliency: floats(saliency), features: floats(features) };
        return { block: 0, connector: 0, parts };
      },
    };
  },
  ours: async ({ path, shape, patches }) => {
    const encoder = readLastBlock(path);
    const split = encoder.split as SplitEncoder;
    const tower = await openGraph(ort, split.tower);
    const tail = await openGraph(ort, split.tail);
    const connector = await openGraph(ort, encoder.connector);
    const head = await BlockHead.load(await encoder.weights(ort), { device: 'cpu' });
    const unit = Int32Array.from({ length: patches }, (_, patch) => Math.floor(patch / shape.unit));
    const size = [patches, shape.width];
    const memory = () => HostBuffer.forTensor('float32', size, { pinned: false }).tensor('float32', size);
    const [hidden, attention, selfAttention] = [memory(), memory(), memory()];
    const place = (tensor: Tensor) => new ort.Tensor('float32', tensor.data as Float32Array, size);
    const fetches = { ...Object.fromEntries(tower.outputNames.map((name) => [name, null])), [HIDDEN]: place(hidden) };
    let growth: number | null = null;
    const grown = async <T>(call: () => Promise<T>) => {
      const before = resident('VmRSS');
      beginAnew();
      const result = await call();
      growth = resident('VmHWM') - before;
      return result;
    };
    let tables: Pick<BlockOptions, 'cos' | 'sin'> = {};
    const analyze = () => {
      const rows = { attention: attention.data as Float32Array, selfAttention: selfAttention.data as Float32Array };
      return head.analyze(hidden, { ...tables, ...(shape.unit > 1 && { unit }), ...rows });
    };
    return {
      encode: async (pixels) => {
        const outputs = await tower.run({ [PATCHES]: pixels }, fetches as never);
        if (encoder.rotary) tables = { cos: outputs[COS] as Tensor, sin: outputs[SIN] as Tensor };
        const crossing = Object.fromEntries(encoder.crossing.map((name) => [name, outputs[name]]));
        const connected = async (rows: ort.Tensor) =>
          (await connector.run({ ...crossing, [ROWS]: rows }))[TASK_ROWS].data as Float32Array;
        const start = processorTime();
        const { saliency, unitSaliency } = growth === null ? await grown(analyze) : await analyze();
        const analysed = processorTime();
        const ends = { hidden: hidden.data as Float32Array, attention: selfAttention.data as Float32Array, dims: size };
        await throughTail(ort, (feeds) => tail.run(feeds) as Promise<Record<string, ort.Tensor>>, ends);
        const features = await connected(place(selfAttention));
        const encoded = processorTime();
        const rows = await connected(place(attention));
        const parts = { rows, saliency: unitSaliency ?? saliency, features };
        return { block: analysed - start, connector: processorTime() - encoded, parts };
      },
      growth: () => growth as number,
    };
  },
};

function processorTime(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** Runs a contender, in a process that has run nothing else. */
export async function report(task: Task): Promise<Report> {
  const { way, shape, patches } = task;
  const contender = await OPEN[way](task);
  const pixels = new ort.Tensor('float32', normal(3, patches * shape.channels), [patches, shape.channels]);
  const opened = resident('VmRSS');
  let last = await contender.encode(pixels);
  beginAnew();
  const runs: Run[] = [];
  while (runs.length < task.runs) {
    const [clock, start] = [performance.now(), processorTime()];
    last = await contender.encode(pixels);
    const { block, connector } = last;
    runs.push({ clock: performance.now() - clock, whole: processorTime() - start, block, connector });
  }
  const peak = resident('VmHWM');
  return { runs, opened, peak, growth: contender.growth?.() ?? null, kept: await keptOf(last) };
}

/** One of nine visual tokens, for a question of random rows. */
async function keptOf({ parts }: Encoded): Promise<number[] | null> {
  if (parts === null) return null;
  const tokens = parts.saliency.length;
  const matrix = (data: Float32Array) => float32(data, [tokens, data.length / tokens]);
  const backend = openBackend({ device: 'cpu' });
  const { rows, features, saliency } = parts;
  const analysis = await ImageAnalysis.from(
    { patchEmbeddings: matrix(rows), saliency, features: matrix(features) },
    backend,
  );
  const embeddings = tensor(5, 30, rows.length / tokens);
  const { indices } = await analysis.prune({ embeddings, endOfText: 29 }, { keep: Math.round(tokens / 9) });
  analysis.dispose();
  backend.dispose();
  return [...indices];
}
