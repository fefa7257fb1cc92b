/**
 * DART in front of the language model, as TensorRT-Edge-LLM has it: pivots of large norm among patches and text tokens, and for each pivot the
 * patches that are least like it. The published one reads keys of decoder layer 2.
 */
import { integer, matrix, type TensorLike, widened } from '../tensor.js';
import { among, MERGING, type MergingOption, mergingOf, selected } from './choice.js';
import { cosines, type Matrix, rowsOf } from './matrix.js';
import { method } from './method.js';
import { descending, largest, others } from './ranks.js';

export interface DartOptions extends MergingOption {
  /** Patches among the pivots, at most K; default 4. */
  readonly pivots?: number;
  /** Text tokens among the pivots, at most M; default 4. */
  readonly textPivots?: number;
  /** Input embeddings of the prompt's tokens that are no image, [M, F]; default: there are no text pivots. */
  readonly textEmbeddings?: TensorLike;
}

export const dart = method<DartOptions>(
  { ...MERGING, pivots: true, textPivots: true, textEmbeddings: true },
  ({ pivots = 4, textPivots = 4, textEmbeddings, ...given }) => {
    integer('pivots', pivots, 1, 2 ** 31 - 1);
    integer('textPivots', textPivots, 0, 2 ** 31 - 1);
    if (textEmbeddings !== undefined) matrix('textEmbeddings', textEmbeddings);
    const merging = mergingOf(given);
    return {
      taps: [],
      isAsked: false,
      async choose(image, keep) {
        const F = await image.features();
        const patches = descending(lengths(F), Math.min(pivots, keep));
        const rows = [rowsOf(F, patches)];
        if (textEmbeddings !== undefined && textPivots > 0) {
          const text = matrix('textEmbeddings', textEmbeddings, { cols: F.cols });
          const M = { data: widened(text), rows: text.rows, cols: text.cols };
          rows.push(rowsOf(M, descending(lengths(M), Math.min(textPivots, M.rows))));
        }
        const near = (await Promise.all(rows.map((own) => cosines(image.backend, own, F)))).flatMap(rowsApart);
        const grown: number[] = [];
        near.forEach((row, served) => {
          const count = Math.ceil((keep - patches.length - grown.length) / (near.length - served));
          grown.push(
            ...largest(
              row.map((cosine) => -cosine),
              count,
              others(F.rows, [...patches, ...grown]),
            ),
          );
        });
        const kept = Int32Array.from([...patches, ...grown]).sort();
        return selected(image, kept, { merging, source: among(kept, grown) });
      },
    };
  },
);

/** The L1 norm of each row. */
function lengths({ data, rows, cols }: Matrix): Float64Array {
  return Float64Array.from({ length: rows }, (_, i) => {
    let length = 0;
    for (let c = 0; c < cols; c++) length += Math.abs(data[i * cols + c]);
    return length;
  });
}

function rowsApart({ data, rows, cols }: Matrix): Float32Array[] {
  return Array.from({ length: rows }, (_, i) => data.subarray(i * cols, (i + 1) * cols));
}
