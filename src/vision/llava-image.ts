import type { Tensor } from 'onnxruntime-common';
import type { AnalyzeOptions, Pruner, TensorLike } from '../index.js';
import type { Grid } from '../methods/method.js';
import { type Analyzed, EncodedImageBase, type ImageOwner, type Kept, tokensOf } from './image-base.js';
import { plainLayout } from './layout.js';
import type { MethodSource } from './method-source.js';
import type { TowerBatch } from './tower-batch.js';
import type { Tile } from './vision-model.js';

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
  readonly milliseconds: number;
}

/** float32 rows, [rows, D]. */
export type Rows = TensorLike & { readonly data: Float32Array };

/** One encoded image for many questions; made by `LlavaVision.encode`. */
export class LlavaImage extends EncodedImageBase {
  /** @internal */
  constructor(
    private readonly vision: Vision,
    private readonly batch: TowerBatch,
    private readonly index: number,
    private readonly how: About,
  ) {
    const patches = batch.dims[1] - Number(vision.pruner.head.classToken);
    const layout = plainLayout([tileOf(how.extents, patches)], [patches]);
    super('LlavaImage', vision, { layout, form: 'clip', milliseconds: how.milliseconds });
  }

  /**
   * Hidden states in front of the encoder's last layer, [N, D]; valid until `dispose`.
   * @throws DesapError `ERR_DISPOSED`
   */
  get hidden(): Rows {
    this.check();
    return this.batch.rows(this.index);
  }

  /** The patch rows of {@link LlavaImage.hidden}, [P, D]; the same memory. */
  get patchStates(): Rows {
    return last(this.hidden, this.tokenCount);
  }

  get byteLength(): number {
    return this.batch.byteLength(this.vision.pruner.head.projectionDim);
  }

  protected async makeAnalyses(): Promise<Analyzed> {
    const { encoding } = this.how;
    const { analysis, milliseconds } = await this.batch.analyze(this.index, (images) =>
      this.vision.pruner.analyzeBatch(images, { encoding }),
    );
    return { analyses: [analysis], milliseconds };
  }

  protected methodSource(): MethodSource {
    return this.how.source(this.tiles[0]);
  }

  protected override async projected(): Promise<TensorLike[]> {
    return [await this.vision.project(this.patchStates)];
  }

  protected connect(kept: readonly Kept[]): Promise<Tensor> {
    return this.vision.project(tokensOf(kept));
  }

  /** [1, P, W]; [1, P + 1, W], the class token's first, of a file that has it among its features. */
  protected everything(): Promise<Tensor> {
    const rows = this.batch.rows(this.index);
    return this.vision.project(this.vision.dropsClassToken ? last(rows, this.tokenCount) : rows);
  }

  protected free(): Promise<void> {
    return this.batch.release();
  }
}

/** The last rows of a matrix. */
function last({ data, dims: [, width] }: Rows, rows: number): Rows {
  return { data: data.subarray(data.length - rows * width), dims: [rows, width] };
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
