/** A glance at a tile: what a lower block of a CLIP tower makes of it. */
import type { InferenceSession } from 'onnxruntime-common';
import { type DeviceOptions, type HeadWeights, Pruner } from '../index.js';
import type { OrtModule } from '../onnx/edit.js';
import { openGraph } from '../onnx/edit.js';
import { readTaps } from '../onnx/head/taps.js';
import { blocksBefore, enteringStates, towerFront } from '../onnx/split.js';
import type { TowerStructure } from '../onnx/tower.js';
import { allOrNone, runSession } from './session.js';
import type { ViewRows } from './tile-rules.js';

/** What a glance is made with. */
interface Parts {
  readonly ort: OrtModule;
  readonly structure: TowerStructure;
  /** The head of the tower's last block: a glance reads out as it does. */
  readonly head: HeadWeights;
  readonly session: InferenceSession.SessionOptions;
  readonly device: DeviceOptions;
}

/** Of the forms of decoupled attention the one that found more objects. */
const KEYS = { encoding: 'kk' } as const;
const GLANCE = { argument: 'pixelValues', graph: 'the first blocks of the vision tower' };

/**
 * The block that a glance looks through, of a tower of L: round(L / 12), the second one at the lowest.
 * @param before how many of its blocks stand in front of the last
 */
export function glanceBlock(before: number): number {
  return Math.min(Math.max(1, Math.round((before + 1) / 12)), before - 1);
}

/**
 * The first b blocks of a tower, and what the decoupled attention of block b (eq. 2) gives with the read-out of the whole tower (eq. 1):
 * rows in the space of the questions for (b + 1/2) / L of a tile's encoding.
 */
export class Glance {
  private constructor(
    private readonly ort: OrtModule,
    private readonly front: InferenceSession,
    private readonly pruner: Pruner,
    /** b. */
    readonly block: number,
  ) {}

  /** @throws DesapError as `readTaps` and `Pruner.load` */
  static open({ ort, structure, head, session, device }: Parts): Promise<Glance> {
    const block = glanceBlock(blocksBefore(structure));
    return allOrNone(async (opened) => {
      const taps = await readTaps(ort, structure, { blocks: [block], heads: head.heads }, session);
      const { heads, epsilon, ln1, q, k, v, out } = taps.get(block)!;
      const own = { ...head, heads, epsilon, ln1, q, k, v, out };
      const pruner = opened(await Pruner.load(own, device), (one) => one.dispose());
      const front = opened(await openGraph(ort, towerFront(structure, block), session), (one) => one.release());
      return new Glance(ort, front, pruner, block);
    });
  }

  /**
   * @param pixels of one tile
   * @param dims [1, 3, S, S]
   * @returns unit rows of its patches
   */
  async at(pixels: Float32Array, dims: readonly number[]): Promise<ViewRows> {
    const image = new this.ort.Tensor('float32', pixels, dims);
    const states = (await runSession(this.front, GLANCE, { [this.front.inputNames[0]]: image }))[
      enteringStates(this.block)
    ];
    using analysis = await this.pruner.analyze({ data: states.data as Float32Array, dims: states.dims.slice(1) }, KEYS);
    return { data: analysis.patchEmbeddings().data as Float32Array, width: this.pruner.head.projectionDim };
  }

  async dispose(): Promise<void> {
    this.pruner.dispose();
    await this.front.release();
  }
}

/** The highest cosine of some of a tile's rows and the question's end row. */
export function glanceScore({ data, width }: ViewRows, end: Float32Array, patches: Int32Array): number {
  let best = Number.NEGATIVE_INFINITY;
  for (const patch of patches) {
    let cosine = 0;
    for (let c = 0; c < width; c++) cosine += data[patch * width + c] * end[c];
    best = Math.max(best, cosine);
  }
  return best;
}
