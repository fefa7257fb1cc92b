/** The attention that the end of a text pays to its tokens in the tower's last block. */
import type { BlockWeights } from '../block-weights.js';
import { DesapError } from '../errors.js';
import { dot, type NumberMatrix, softmax } from '../kernels/numeric.js';
import { readBlockWeights } from './block-weights.js';
import type { OrtModule } from './edit.js';
import { readBlock } from './search/attention.js';
import { describeNode } from './search/graph.js';
import { lastAttention } from './search/last-attention.js';
import { headCount } from './search/last-block.js';
import { Linears } from './search/linear.js';
import { Norms } from './search/norm.js';
import { toleranceOf } from './search/precision.js';
import { softmaxAt } from './search/softmax.js';
import type { TextStructure } from './text.js';

/** Names of the values that {@link TextAttention.values} adds to a text tower's. */
export const TEXT_NORMED = 'desap.text_normed';
export const TEXT_ATTENDED = 'desap.text_attended';

/**
 * One row of the attention of the last block of a text tower, worked out from the block's input and weights: the graph's own softmax
 * lies inside of a fused operator in many files. L [T, D] are the rows behind the block's norm, e the last of them:
 *
 *     q = Wq L_e + bq,  a_h = softmax_i(q_h . (Wk L_i)_h / sqrt(dh)),  a = mean_h a_h
 *
 * The bias of the keys adds the same to all scores of a head, which a softmax does not see.
 */
export class TextAttention {
  private constructor(
    private readonly weights: Pick<BlockWeights, 'width' | 'heads' | 'q' | 'k' | 'v'>,
    /** Values of the graph to hand out: L, and what the output projection takes. */
    readonly values: Readonly<Record<string, string>>,
    /** What the file's arithmetic rounds between the two, relative to the largest magnitude. */
    readonly tolerance: number,
  ) {}

  /**
   * Finds the last block in front of a tower's final norm, and reads its weights.
   * @throws DesapError `ERR_GRAPH` where it is none that is read; `ERR_FILE`
   */
  static async read(ort: OrtModule, { graph, readOut }: TextStructure): Promise<TextAttention> {
    const { node } = lastAttention(graph, readOut.norm.output);
    const fail = (why: string) =>
      new DesapError(
        'ERR_GRAPH',
        `${graph.model.name}: looked for the attention of the last text block; found ${describeNode(node)}: ${why}. ` +
          "filter: { importance: 'cosine' } needs none",
      );
    const norms = new Norms(graph);
    const block = readBlock(graph, new Linears(graph), (value) => norms.behind(value), softmaxAt(graph, node) ?? node);
    if (typeof block === 'string') throw fail(block);
    if (block.rotary) throw fail('its queries and keys are rotated');
    const heads = headCount(block);
    if (heads === null) throw fail('no shape around it says how many heads it has');
    const { norm, out } = block;
    const values = { [TEXT_NORMED]: norm.output, [TEXT_ATTENDED]: out.input };
    const weights = await readBlockWeights(ort, { graph, block, heads });
    return new TextAttention(weights, values, toleranceOf(graph, out.input, norm.output));
  }

  /**
   * a [T], the mean over the heads.
   * @param normed L [T, D]
   */
  row(normed: NumberMatrix): Float64Array {
    const { heads } = this.weights;
    const mean = new Float64Array(normed.rows);
    for (let h = 0; h < heads; h++) for (const [i, a] of this.#head(normed, h).entries()) mean[i] += a / heads;
    return mean;
  }

  /**
   * What the output projection takes of the last row, [D]: Wv sum_i(a_i L_i) + bv in each head.
   * @param normed L [T, D]
   */
  attended({ data, rows, cols }: NumberMatrix): Float64Array {
    const { heads, v } = this.weights;
    const extent = cols / heads;
    const made = new Float64Array(cols);
    for (let h = 0; h < heads; h++) {
      const attention = this.#head({ data, rows, cols }, h);
      const mean = new Float64Array(cols);
      for (const [i, a] of attention.entries()) for (let c = 0; c < cols; c++) mean[c] += a * data[i * cols + c];
      for (let c = h * extent; c < (h + 1) * extent; c++)
        made[c] = dot(v.weight, c * cols, mean, 0, cols) + (v.bias?.[c] ?? 0);
    }
    return made;
  }

  /** a_h [T] of one head: (Wk_h^T q_h) . L_i in place of all keys. */
  #head({ data, rows, cols }: NumberMatrix, h: number): Float64Array {
    const { heads, q, k } = this.weights;
    const extent = cols / heads;
    const folded = new Float64Array(cols);
    for (let o = h * extent; o < (h + 1) * extent; o++) {
      const query = dot(q.weight, o * cols, data, (rows - 1) * cols, cols) + (q.bias?.[o] ?? 0);
      for (let c = 0; c < cols; c++) folded[c] += query * k.weight[o * cols + c];
    }
    const scores = Float64Array.from({ length: rows }, (_, i) => dot(folded, 0, data, i * cols, cols));
    const scaled = scores.map((score) => score / Math.sqrt(extent));
    softmax(scaled);
    return scaled;
  }
}
