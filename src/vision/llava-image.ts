import type { Tensor } from 'onnxruntime-common';
import type { AnalyzeOptions, Pruner, TensorLike } from '../index.js';
import type { Grid } from '../methods/method.js';
import type { Encoded } from './clip-encoder.js';
import { bytesOf, type Rows } from './clip-tower.js';
import { type Analyzed, EncodedImageBase, type ImageOwner, type Kept, tokensOf } from './image-base.js';
import { plainLayout, withoutDropped } from './layout.js';
import { gridOf, type MethodSource } from './method-source.js';
import type { Tile } from './vision-model.js';
import type { Part } from './whole-image.js';

/** What an image needs of its `LlavaVision`. */
interface Vision extends ImageOwner {
  readonly pruner: Pruner;
  readonly dropsClassToken: boolean;
  project(rows: TensorLike): Promise<Tensor>;
}

/** How an image was encoded. */
interface About {
  /** [3, H, W]. */
  readonly extents: readonly number[];
  readonly encoding: AnalyzeOptions['encoding'];
  /** What methods read of it, given the grid of its patches. */
  readonly source: (grid: Grid) => MethodSource;
}

/** One encoded image for many questions; made by `LlavaVision.encode`. */
export class LlavaImage extends EncodedImageBase {
  /** @internal */
  constructor(
    private readonly vision: Vision,
    private readonly encoded: Encoded,
    private readonly how: About,
  ) {
    const { rows, cut, milliseconds } = encoded;
    const patches = rows - Number(vision.pruner.head.classToken);
    const layout = withoutDropped(plainLayout([tileOf(how.extents, patches)], [patches]), [cut]);
    super('LlavaImage', vision, { layout, form: 'clip', milliseconds });
  }

  /**
   * Hidden states in front of the encoder's last layer, [N, D], of the rows that the tower did not drop; valid until `dispose`.
   * @throws DesapError `ERR_DISPOSED`
   */
  get hidden(): Rows {
    this.check();
    return this.#states;
  }

  /** The patch rows of {@link LlavaImage.hidden}, [P, D]; the same memory. */
  get patchStates(): Rows {
    return withoutFirst(this.hidden, this.#classRows);
  }

  get #states(): Rows {
    return this.encoded.batch.rows(this.encoded.index);
  }

  get #classRows(): number {
    return Number(this.vision.pruner.head.classToken);
  }

  get byteLength(): number {
    return bytesOf(this.encoded, this.vision.pruner.head.projectionDim);
  }

  protected async makeAnalyses(): Promise<Analyzed> {
    const { encoding } = this.how;
    const { analysis, milliseconds } = await this.encoded.batch.analyze(this.encoded.index, (images) =>
      this.vision.pruner.analyzeBatch(images, { encoding }),
    );
    return { analyses: [analysis], milliseconds };
  }

  protected methodSource(): MethodSource {
    return this.how.source(this.encoded.cut ? gridOf(this.encoded, this.#classRows) : this.tiles[0]);
  }

  protected override async projected(): Promise<TensorLike[]> {
    return [await this.vision.project(this.patchStates)];
  }

  protected connect(kept: readonly Kept[]): Promise<Tensor> {
    return this.vision.project(tokensOf(kept));
  }

  /** [1, P, W]; [1, P + 1, W], the class token's first, of a file that has it among its features. */
  protected async everything(): Promise<Tensor> {
    const rows = (await this.encoded.cut?.whole()) ?? this.#states;
    return this.vision.project(this.vision.dropsClassToken ? withoutFirst(rows, this.#classRows) : rows);
  }

  protected override async nearest({ dropped }: Part, kept: Int32Array): Promise<Int32Array> {
    return (await this.encoded.cut?.nearest(kept)) ?? dropped;
  }

  protected free(): Promise<void> {
    return this.encoded.batch.release();
  }
}

/** A matrix without its first rows. */
function withoutFirst({ data, dims: [all, width] }: Rows, rows: number): Rows {
  return { data: data.subarray(rows * width), dims: [all - rows, width] };
}

/** Patches that are no squares stand in one line. */
function tileOf(extents: readonly number[], patches: number): Tile {
  const [height, width] = extents.slice(-2);
  const side = Math.sqrt((height * width) / patches);
  const [rows, columns] = [height / side, width / side];
  return Number.isInteger(rows) && Number.isInteger(columns)
    ? { frame: 0, rows, columns }
    : { frame: 0, rows: 1, columns: patches };
}
