/**
 * The pruning head as ONNX graphs, for ONNX Runtime to compete with. Inputs: `hidden` [N, D] (class token first) and `text`
 * [T, E] (not normalised, end of text last); outputs: {@link OUTPUTS}. All extents are fixed: ONNX Runtime plans its memory.
 */
import type { HeadWeights, LinearWeights } from '../../src/head.js';
import { DataType } from '../../src/onnx/format/proto.js';
import { shareOf } from '../../src/prune-request.js';
import { SmallGraph } from '../../test/transformers/small/graph.js';
import { foldReadOut } from './fold.js';

export interface GraphShape {
  /** N, with the class token. */
  readonly rows: number;
  /** T. */
  readonly text: number;
  /** K. */
  readonly keep: number;
}

/** Merged tokens [K, D], kept patches [K], the kept patch that each patch joins [P], A_t [P]. */
export const OUTPUTS = ['tokens', 'indices', 'assignment', 'task'] as const;

const LAMBDA = 0.1;

/** What all ways to write the head have in common. */
abstract class HeadGraph extends SmallGraph {
  protected readonly patches: number;
  protected readonly headExtent: number;

  constructor(
    protected readonly head: HeadWeights,
    protected readonly shape: GraphShape,
  ) {
    super(0);
    this.patches = shape.rows - 1;
    this.headExtent = head.width / head.heads;
  }

  /** The model's bytes. */
  write(): Uint8Array {
    const { head, shape } = this;
    const hidden = this.input('hidden', DataType.float, [shape.rows, head.width]);
    const text = this.input('text', DataType.float, [shape.text, head.projectionDim]);
    const normed = this.norm(hidden, head.ln1);
    const [q, v] = [this.dense(normed, head.q), this.dense(normed, head.v)];
    const task = this.task(this.dense(this.attention(q, v), head.out), this.unitRows(text));
    const kept = this.select(task, this.saliency(q, normed));
    const [tokens, assignment] = this.merge(hidden, kept);
    [tokens, kept, assignment, task].forEach((value, i) => {
      this.output(value, OUTPUTS[i]);
    });
    return this.bytes();
  }

  /** The context [N, D] of qq attention. */
  protected abstract attention(q: string, v: string): string;
  /** A_s [P]. */
  protected abstract saliency(q: string, normed: string): string;
  /** A_t [P] of the projected attention [N, D] and unit rows of text. */
  protected abstract task(attention: string, unitText: string): string;
  /** Merged tokens and the assignment. */
  protected abstract merge(hidden: string, kept: string): [tokens: string, assignment: string];

  protected norm(x: string, { weight, bias }: LinearWeights): string {
    const { width, epsilon } = this.head;
    const parameters = [weight, bias].map((values) => this.floats(values, [width]));
    return this.add('LayerNormalization', [x, ...parameters], { axis: { i: -1 }, epsilon: { f: epsilon } });
  }

  protected dense(x: string, { weight, bias }: LinearWeights): string {
    const { width } = this.head;
    return this.product(x, this.floats(weight, [width, width]), this.floats(bias, [width]));
  }

  /** x y^T (+ bias), as torch.nn.Linear is exported. */
  protected product(x: string, y: string, ...bias: string[]): string {
    return this.add('Gemm', [x, y, ...bias], { transB: { i: 1 } });
  }

  /** Lengths of the rows as a column. */
  protected lengths(x: string): string {
    const length = this.add('ReduceL2', [x], { axes: { ints: [1] }, keepdims: { i: 1 } });
    return this.add('Max', [length, this.scalar(1e-12)]);
  }

  protected unitRows(x: string): string {
    return this.add('Div', [x, this.lengths(x)]);
  }

  protected mean(x: string, axis: number): string {
    return this.add('ReduceMean', [x], { axes: { ints: [axis] }, keepdims: { i: 0 } });
  }

  /** Scores [H, N] of the class token to the mean of their softmax over the patches [P]. */
  protected meanOfHeads(scores: string): string {
    const scaled = this.add('Mul', [scores, this.scalar(this.headExtent ** -0.5)]);
    const attended = this.add('Softmax', [scaled], { axis: { i: -1 } });
    return this.slice(this.mean(attended, 0), 1, this.shape.rows, 0);
  }

  /** Eq. 3 from m [P, T], alpha [P, 1] and beta [1, T]. */
  protected alignment(m: string, alpha: string, beta: string): string {
    const matched = (own: string, other: string, axis: number, count: number) => {
      const exponents = this.add('Mul', [this.add('Mul', [other, m]), this.scalar(LAMBDA)]);
      const weights = this.add('Softmax', [exponents], { axis: { i: axis } });
      return this.add('Div', [this.add('Mul', [own, weights]), this.scalar(count)]);
    };
    const visualAlignment = matched(alpha, beta, 1, this.patches);
    const textAlignment = matched(beta, alpha, 0, this.shape.text);
    return this.mean(this.add('Mul', [this.add('Add', [visualAlignment, textAlignment]), m]), 1);
  }

  /** Kept patches, ascending: half of them by A_t, the others by A_s among the rest. */
  private select(task: string, saliency: string): string {
    const { keep } = this.shape;
    const byTask = shareOf(keep, 0.5);
    const [, chosen] = this.top(task, byTask, true);
    const never = this.floats(new Float32Array(byTask).fill(Number.NEGATIVE_INFINITY), [byTask]);
    const rest = this.add('ScatterElements', [saliency, chosen, never]);
    const [, others] = this.top(rest, keep - byTask, true);
    const [ascending] = this.top(this.concat([chosen, others], 0), keep, false);
    return ascending;
  }

  /** The k largest (or smallest) in order, and their indices. */
  private top(scores: string, k: number, largest: boolean): string[] {
    const outputs = [this.fresh('values'), this.fresh('indices')];
    this.add('TopK', [scores, this.integers([k])], { largest: { i: Number(largest) } }, { outputs });
    return outputs;
  }

  /** The position of the largest of each row, except in the `own` rows, which the positions 0, 1, ... are given. */
  protected nearest(similarities: string, own: string): string {
    const largest = this.add('ArgMax', [similarities], { axis: { i: 1 }, keepdims: { i: 0 } });
    return this.add('ScatterElements', [largest, own, this.positions([this.shape.keep])]);
  }

  /** 0 to K - 1. */
  protected positions(dims: number[]): string {
    return this.integers([...new Array(this.shape.keep).keys()], dims);
  }
}

/** As an exporter writes the textbook form: all keys, MatMul-Softmax-MatMul, ScatterElements. */
class NaturalGraph extends HeadGraph {
  protected attention(q: string, v: string): string {
    const { heads, width } = this.head;
    const queries = this.split(q);
    const context = this.attend(queries, queries, this.split(v), { heads, headExtent: this.headExtent });
    return this.reshape(context, [this.shape.rows, width]);
  }

  /** [N, D] to [1, H, N, dh]. */
  private split(x: string): string {
    return this.transpose(this.reshape(x, [1, -1, this.head.heads, this.headExtent]), [0, 2, 1, 3]);
  }

  protected saliency(q: string, normed: string): string {
    const keys = this.transpose(this.split(this.dense(normed, this.head.k)), [0, 1, 3, 2]);
    const scores = this.add('MatMul', [this.split(this.slice(q, 0, 1, 0)), keys]);
    return this.meanOfHeads(this.reshape(scores, [this.head.heads, this.shape.rows]));
  }

  protected task(attention: string, unitText: string): string {
    const { rows, text } = this.shape;
    const { width, projectionDim, postNorm, visualProjection } = this.head;
    const projection = this.floats(visualProjection, [projectionDim, width]);
    const embedded = this.unitRows(this.product(this.norm(attention, postNorm), projection));
    const [global, visual] = [this.slice(embedded, 0, 1, 0), this.slice(embedded, 1, rows, 0)];
    const endOfText = this.slice(unitText, text - 1, text, 0);
    const [m, alpha, beta] = [
      [visual, unitText],
      [visual, endOfText],
      [global, unitText],
    ].map(([x, y]) => this.product(x, y));
    return this.alignment(m, alpha, beta);
  }

  protected merge(hidden: string, kept: string): [string, string] {
    const { rows, keep } = this.shape;
    const { width } = this.head;
    const features = this.slice(hidden, 1, rows, 0);
    const unit = this.unitRows(features);
    const assignment = this.nearest(this.product(unit, this.add('Gather', [unit, kept])), kept);
    const places = this.add('Expand', [this.unsqueeze(assignment, 1), this.integers([this.patches, width])]);
    const zeros = (dims: number[]) => this.floats(new Float32Array(dims.reduce((a, b) => a * b)), dims);
    const ones = this.floats(new Float32Array(this.patches).fill(1), [this.patches]);
    const add = { reduction: { s: 'add' } };
    const sums = this.add('ScatterElements', [zeros([keep, width]), places, features], add);
    const counts = this.add('ScatterElements', [zeros([keep]), assignment, ones], add);
    return [this.add('Div', [sums, this.unsqueeze(counts, 1)]), assignment];
  }
}

/**
 * Tuned for ONNX Runtime: fused attention, keys through the class token only, a product in place of the scatter, alpha and beta
 * read off m, and no pass over [N, D] that a smaller one can do.
 */
class TunedGraph extends HeadGraph {
  protected attention(q: string, v: string): string {
    const { heads, width } = this.head;
    const { rows } = this.shape;
    const [queries, values] = [q, v].map((x) => this.reshape(x, [1, rows, width]));
    const operands = [queries, queries, values];
    const context = this.add('MultiHeadAttention', operands, { num_heads: { i: heads } }, { domain: 'com.microsoft' });
    return this.reshape(context, [rows, width]);
  }

  /** q_h k_jh = (W_kh^T q_h) L_j + q_h b_kh, whose last term is the same for every j and leaves the softmax. */
  protected saliency(q: string, normed: string): string {
    const { heads, width, k } = this.head;
    const query = this.reshape(this.slice(q, 0, 1, 0), [heads, 1, this.headExtent]);
    const byKey = this.add('MatMul', [query, this.floats(k.weight, [heads, this.headExtent, width])]);
    return this.meanOfHeads(this.product(this.reshape(byKey, [heads, width]), normed));
  }

  protected task(attention: string, unitText: string): string {
    const { width, projectionDim, postNorm, visualProjection } = this.head;
    const embedded = this.product(
      this.norm(attention, postNorm),
      this.floats(visualProjection, [projectionDim, width]),
    );
    return this.taskOfMatches(this.add('Div', [this.product(embedded, unitText), this.lengths(embedded)]));
  }

  /** A_t from the similarities [N, T] of all rows: alpha is the last column, beta the row of the class token. */
  protected taskOfMatches(matches: string): string {
    const { rows, text } = this.shape;
    const m = this.slice(matches, 1, rows, 0);
    return this.alignment(m, this.slice(m, text - 1, text, 1), this.slice(matches, 0, 1, 0));
  }

  /** All N rows take part, so that the patches need not be copied; the class token joins no kept patch. */
  protected merge(hidden: string, kept: string): [string, string] {
    const { rows, keep } = this.shape;
    const centreRows = this.add('Add', [kept, this.integers([1], [])]);
    const centres = this.unitRows(this.add('Gather', [hidden, centreRows]));
    const nearest = this.nearest(this.product(hidden, centres), centreRows);
    const joined = this.add('ScatterElements', [nearest, this.integers([0]), this.integers([-1])]);
    const members = this.cast(this.add('Equal', [joined, this.positions([keep, 1])]), DataType.float);
    const counts = this.add('ReduceSum', [members, this.integers([1])], { keepdims: { i: 1 } });
    const merged = this.add('Div', [this.add('MatMul', [members, hidden]), counts]);
    return [merged, this.slice(joined, 1, rows, 0)];
  }
}

/** Tuned, and the read-out folded into one square product: algebra that no exporter does. Narrower embeddings only (E < D). */
class FoldedGraph extends TunedGraph {
  constructor(
    head: HeadWeights,
    shape: GraphShape,
    private readonly folded = foldReadOut(head),
  ) {
    super({ ...head, out: folded.out }, shape);
  }

  protected override task(attention: string, unitText: string): string {
    const { width, projectionDim, epsilon } = this.head;
    const { diagonal, superdiagonal, shift, rotation } = this.folded;
    const sumOfSquares = (x: string) => this.add('ReduceSumSquare', [x], { axes: { ints: [1] }, keepdims: { i: 1 } });
    const variance = this.add('Div', [sumOfSquares(attention), this.scalar(width)]);
    const root = this.add('Sqrt', [this.add('Add', [variance, this.scalar(epsilon)])]);
    const terms = [diagonal, superdiagonal].map((values, k) =>
      this.add('Mul', [this.slice(attention, k, k + projectionDim, 1), this.floats(values, [projectionDim])]),
    );
    // z = B y~ and c = U^T W_vis beta: p / |p| = (z + root c) / |z + root c|, whose products with text rows and with itself need
    // only those of z and c.
    const z = this.add('Add', terms);
    const c = this.floats(shift, [1, projectionDim]);
    const rotated = this.product(unitText, this.floats(rotation, [projectionDim, projectionDim]));
    const [zText, cText] = [z, c].map((x) => this.product(x, rotated));
    const [zz, zc, cc] = [sumOfSquares(z), this.product(z, c), sumOfSquares(c)];
    const scaled = (x: string) => this.add('Mul', [x, root]);
    const twice = this.add('Add', [this.add('Add', [zc, zc]), scaled(cc)]);
    const length = this.add('Sqrt', [this.add('Add', [zz, scaled(twice)])]);
    return this.taskOfMatches(this.add('Div', [this.add('Add', [zText, scaled(cText)]), length]));
  }
}

const GRAPHS = { natural: NaturalGraph, tuned: TunedGraph, folded: FoldedGraph };
export type GraphName = keyof typeof GRAPHS;
export const GRAPH_NAMES = Object.keys(GRAPHS) as GraphName[];

/** The head as an ONNX model: its bytes. */
export function headGraph(name: GraphName, head: HeadWeights, shape: GraphShape): Uint8Array {
  return new GRAPHS[name](head, shape).write();
}
