import { type AnalyzeOptions, ImageAnalysis, type TensorLike, type TextEmbeddings } from '../index.js';
import { rowsOf } from '../methods/matrix.js';
import { Once } from '../once.js';
import type { ClipEncoder, Encoded } from './clip-encoder.js';
import { bytesOf } from './clip-tower.js';
import type { Comparison } from './image-base.js';
import { clipSource, gridOf, type MethodSource } from './method-source.js';

/** An analysis, and the milliseconds that it took. */
export interface AnalyzedTile {
  readonly analysis: ImageAnalysis;
  readonly milliseconds: number;
}

/** One tile (or frame) of an image, as a CLIP tower encoded it. */
export interface ClipTile {
  /** The pruner's view of its units: made once, and freed with the tile at the latest. */
  analyze(): Promise<AnalyzedTile>;
  /** The task map of its units where that is not the one that its analysis gives. */
  task?(text: TextEmbeddings, how: Comparison): Promise<Float32Array>;
  /** What methods read of its units. */
  source(): MethodSource;
  /** Hidden states of its units, [units, D]. */
  units(): TensorLike & { readonly data: Float32Array };
  /** The units that the tower did not drop; null: all. */
  readonly cut: { readonly stayed: Int32Array } | null;
  /** Hidden states of all of its units, where the tower dropped some of them. */
  everyUnit?(): Promise<TensorLike>;
  /** For each unit that the tower dropped: which of these kept ones, of those that stayed, is nearest; left out where it drops none. */
  nearest?(kept: Int32Array): Promise<Int32Array>;
  /** Hidden states of the class token, [1, D]. */
  classRow(): TensorLike & { readonly data: Float32Array };
  /** What it takes, its analysis counted too. */
  readonly byteLength: number;
  /** The tile needs its memory no more. */
  release(): Promise<void>;
}

/**
 * A tile of which some patches are units: the tower sees all of it, and the others are no part of the choice. Its global vector is that of
 * the whole tile. Where the tower drops rows, those that are left are the class token's and units.
 *
 * @param patches ascending; a tile without any is not analysed
 */
export function clipTile(
  encoder: ClipEncoder,
  encoded: Encoded,
  { patches, encoding }: { readonly patches: Int32Array; readonly encoding: AnalyzeOptions['encoding'] },
): ClipTile {
  const { batch, index, cut } = encoded;
  const { pruner } = encoder;
  const classRows = Number(pruner.head.classToken);
  const [, rows, width] = batch.dims;
  const isWhole = cut !== null || patches.length === rows - classRows;
  const part = new Once<ImageAnalysis>();
  const units = () => {
    const { data } = batch.rows(index);
    return isWhole
      ? { data: data.subarray(classRows * width), dims: [rows - classRows, width] }
      : picked({ data, dims: [rows, width] }, patches, classRows);
  };
  return {
    byteLength: bytesOf(encoded, pruner.head.projectionDim),
    source: () => clipSource(encoder, encoded, { patches: isWhole ? null : patches, grid: gridOf(encoded, classRows) }),
    units,
    cut,
    ...(cut && {
      everyUnit: async () => picked(await cut.whole(), patches, classRows),
      nearest: (kept) => cut.nearest(kept),
    }),
    classRow: () => ({ data: batch.rows(index).data.subarray(0, width), dims: [1, width] }),
    async release() {
      (await part.made())?.dispose();
      await batch.release();
    },
    async analyze() {
      const { analysis, milliseconds } = await batch.analyze(index, (tiles) =>
        pruner.analyzeBatch(tiles, { encoding }),
      );
      if (isWhole) return { analysis, milliseconds };
      const start = performance.now();
      const own = await part.get(async () => {
        const saliency = analysis.saliency();
        const parts = {
          patchEmbeddings: picked(analysis.patchEmbeddings(), patches),
          global: analysis.global(),
          saliency: Float32Array.from(patches, (patch) => saliency[patch]),
          features: units(),
        };
        return ImageAnalysis.from(parts, pruner.backend);
      });
      return { analysis: own, milliseconds: milliseconds + performance.now() - start };
    },
  };
}

/** Some rows of a matrix: row `first` + i for each i. */
function picked({ data, dims: [, width] }: TensorLike, rows: Int32Array, first = 0) {
  const { data: own } = rowsOf({ data: (data as Float32Array).subarray(first * width), cols: width }, rows);
  return { data: own, dims: [rows.length, width] };
}
