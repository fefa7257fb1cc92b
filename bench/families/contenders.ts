/** Who competes: a model pruned, and the same model with all its visual tokens. One of them in a process. */
import * as ort from 'onnxruntime-node';
import { BlockHead, HostBuffer, ImageAnalysis, Pruner } from '../../src/index.js';
import { COS, FEATURES, HIDDEN, ROWS, SIN, TASK_ROWS } from '../../src/onnx/block-values.js';
import { type EditedGraph, openGraph } from '../../src/onnx/edit.js';
import { readLastBlock } from '../../src/onnx/last-block.js';
import { HIDDEN_STATES, PATCHES, projectorGraph, towerGraph } from '../../src/onnx/split.js';
import { readTower } from '../../src/onnx/tower.js';
import { float32, type Tensor } from '../../src/tensor.js';
import { atRest } from '../../src/vision/session.js';
import { randomHead } from '../../test/support.js';
import { PATCHES as BLOCK_PIXELS } from '../block/models.js';
import { normal, tensor } from '../data.js';
import { beginAnew, resident } from '../own-process.js';
import { type BlockModel, type ClipModel, type Model, pathsIn, TEXT, tokensOf } from './models.js';

export type Way = 'all' | 'pruned';
/** The prefill is of CLIP's models; an encoder by itself beside one with a block head is in `npm run bench:block`. */
export const WAYS: Record<Model['kind'], readonly Way[]> = { clip: ['all', 'pruned'], block: ['pruned'] };

/** What a process is to do. */
export interface Task {
  readonly model: Model;
  readonly way: Way;
  readonly folder: string;
  /** Runs that count, behind one that does not. */
  readonly runs: number;
}

/** Milliseconds of one run over all tiles. */
export interface Run {
  /** The encoder's session, one tile after the other; it ends behind the projector or connector, but of a pruned CLIP model in front of it. */
  readonly encoder: number;
  /**
   * The last layer of all tiles on the package's kernels, in one call and in a call a tile: a `Pruner`'s whole way to kept tokens, a
   * `BlockHead`'s analysis.
   */
  readonly together: number;
  readonly apart: number;
  /** The projector on the kept rows, or the connector on all. */
  readonly connector: number;
  /** What follows a `BlockHead`'s analysis: from the connector's rows to kept tokens. */
  readonly prune: number;
  /** One layer of the decoder. */
  readonly prefill: number;
}

/** Memory is resident memory in MB: once all is open, and at its largest while it ran. */
export interface Report {
  readonly runs: readonly Run[];
  readonly opened: number;
  readonly peak: number;
}

/** One run; `turn` counts them. */
type Contender = (turn: number) => Promise<Run>;

const NOTHING: Run = { encoder: 0, together: 0, apart: 0, connector: 0, prune: 0, prefill: 0 };

async function timed<T>(run: () => Promise<T>): Promise<[milliseconds: number, result: T]> {
  const start = performance.now();
  const result = await run();
  return [performance.now() - start, result];
}

async function each<T, R>(list: readonly T[], run: (one: T, i: number) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  for (const [i, one] of list.entries()) results.push(await run(one, i));
  return results;
}

const open = (graph: EditedGraph) => openGraph(ort, graph);
const rows = (data: Float32Array, ...dims: number[]) => new ort.Tensor('float32', data, dims);

/** One tensor of a `HostBuffer` for each tile, which both ONNX Runtime and the kernels work on. */
function tileMemory(tiles: number, size: readonly [rows: number, width: number]): Float32Array[] {
  const all = HostBuffer.forTensor('float32', [tiles, ...size], { pinned: false }).float32();
  const length = size[0] * size[1];
  return Array.from({ length: tiles }, (_, t) => all.subarray(t * length, (t + 1) * length));
}

/** Both ways to call the kernels, of which each comes first in every other run. They have to give the same. */
async function bothWays<T>(
  turn: number,
  together: () => Promise<T>,
  apart: () => Promise<T>,
  parts: (of: T) => string,
) {
  const [first, second] = turn % 2 === 0 ? [together, apart] : [apart, together];
  const [one, other] = [await timed(first), await timed(second)];
  if (parts(one[1]) !== parts(other[1])) throw new Error('one call and a call a tile give different results');
  const [[inOne], [inMany]] = turn % 2 === 0 ? [one, other] : [other, one];
  return { together: inOne, apart: inMany, result: one[1] };
}

async function openClip(model: ClipModel, way: Way, folder: string): Promise<Contender> {
  const { vision, tiles, keep, projectionDim, decoder } = model;
  const { image, width, heads, patch } = vision;
  const paths = pathsIn(folder);
  const pixels = Array.from({ length: tiles }, (_, t) => rows(normal(t + 1, 3 * image ** 2), 1, 3, image, image));
  const layer = await ort.InferenceSession.create(paths.decoder, atRest());
  const tokens = tokensOf(model)[way === 'all' ? 'all' : 'kept'] + TEXT.prompt;
  const prompt = {
    inputs_embeds: rows(normal(9, tokens * decoder.width), 1, tokens, decoder.width),
    position_ids: new ort.Tensor(
      'int64',
      BigInt64Array.from({ length: tokens }, (_, i) => BigInt(i)),
      [1, tokens],
    ),
  };
  const prefill = async () => (await timed(() => layer.run(prompt)))[0];
  if (way === 'all') {
    const whole = await ort.InferenceSession.create(paths.encoder, atRest());
    return async () => {
      const [encoder] = await timed(() => each(pixels, (tile) => whole.run({ [whole.inputNames[0]]: tile })));
      return { ...NOTHING, encoder, prefill: await prefill() };
    };
  }

  const structure = readTower(paths.encoder);
  const [tower, projector] = [await open(towerGraph(structure)), await open(projectorGraph(structure))];
  const pruner = await Pruner.load(randomHead(1, { width, heads, projectionDim }), { device: 'cpu' });
  const size = [(image / patch) ** 2 + 1, width] as const;
  const hidden = tileMemory(tiles, size);
  const images = hidden.map((data) => ({ data, dims: size }));
  const question = tensor(7, TEXT.question, projectionDim);
  return async (turn) => {
    const run = (tile: ort.Tensor, t: number) =>
      tower.run({ [tower.inputNames[0]]: tile }, { [HIDDEN_STATES]: rows(hidden[t], 1, ...size) });
    const [encoder] = await timed(() => each(pixels, run));
    const { together, apart, result } = await bothWays(
      turn,
      () => pruner.pruneBatch(images, question, { keep }),
      () => each(images, (one) => pruner.prune(one, question, { keep })),
      (kept) => String(kept.map(({ indices }) => indices)),
    );
    const merged = new Float32Array(tiles * keep * width);
    for (const [t, { tokens }] of result.entries()) merged.set(tokens.data as Float32Array, t * keep * width);
    const [connector] = await timed(() => projector.run({ [PATCHES]: rows(merged, tiles * keep, width) }));
    return { ...NOTHING, encoder, together, apart, connector, prefill: await prefill() };
  };
}

async function openBlock(model: BlockModel, folder: string): Promise<Contender> {
  const { shape, patches, tiles, keep } = model;
  const { encoder: path } = pathsIn(folder);
  const pixels = Array.from({ length: tiles }, (_, t) =>
    rows(normal(t + 1, patches * shape.channels), patches, shape.channels),
  );
  const block = readLastBlock(path);
  const [tower, connector] = [await open(block.tower), await open(block.connector)];
  const head = await BlockHead.load(await block.weights(ort), { device: 'cpu' });
  const size = [patches, shape.width] as const;
  const [hidden, attention] = [tileMemory(tiles, size), tileMemory(tiles, size)];
  const unit = Int32Array.from({ length: patches }, (_, i) => Math.floor(i / shape.unit));
  const fetches = Object.fromEntries(tower.outputNames.map((name) => [name, null]));
  const question = { embeddings: tensor(7, TEXT.question, shape.languageWidth), endOfText: TEXT.question - 1 };
  return async (turn) => {
    const run = (tile: ort.Tensor, t: number) =>
      tower.run({ [BLOCK_PIXELS]: tile }, { ...fetches, [HIDDEN]: rows(hidden[t], ...size) } as never);
    const [encoder, outputs] = await timed(() => each(pixels, run));
    const inputs = outputs.map((output, t) => ({
      hidden: { data: hidden[t], dims: size },
      attention: attention[t],
      unit,
      ...(block.rotary && { cos: output[COS] as Tensor, sin: output[SIN] as Tensor }),
    }));
    const { together, apart, result } = await bothWays(
      turn,
      () => head.analyzeBatch(inputs),
      () => each(inputs, ({ hidden, ...options }) => head.analyze(hidden, options)),
      (analyses) => String(analyses.map(({ saliency }) => saliency)),
    );
    const connect = (output: ort.InferenceSession.ReturnType, t: number) => {
      const crossing = Object.fromEntries(block.crossing.map((name) => [name, output[name]]));
      return connector.run({ ...crossing, [ROWS]: rows(attention[t], ...size) });
    };
    const [connected, task] = await timed(() => each(outputs, connect));
    const [prune] = await timed(() =>
      each(result, async ({ unitSaliency }, t) => {
        const matrix = ({ data }: ort.Tensor) =>
          float32(data as Float32Array, [patches / shape.unit, shape.languageWidth]);
        const parts = { patchEmbeddings: matrix(task[t][TASK_ROWS]), features: matrix(outputs[t][FEATURES]) };
        const image = await ImageAnalysis.from({ ...parts, saliency: unitSaliency as Float32Array }, head.backend);
        await image.prune(question, { keep });
        image.dispose();
      }),
    );
    return { ...NOTHING, encoder, together, apart, connector: connected, prune };
  };
}

/** Runs a contender, in a process that has run nothing else. */
export async function report({ model, way, folder, runs }: Task): Promise<Report> {
  const contender = await (model.kind === 'clip' ? openClip(model, way, folder) : openBlock(model, folder));
  const opened = resident('VmRSS');
  beginAnew();
  const all: Run[] = [];
  for (let turn = 0; turn <= runs; turn++) all.push(await contender(turn));
  return { runs: all.slice(1), opened, peak: resident('VmHWM') };
}
