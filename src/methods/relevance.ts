/** How relevant a patch is to the question, as the methods without attention have it. */
import { mismatch } from '../errors.js';
import { layerNorm, linear, type Matrix, meanRow, unitRows } from './matrix.js';
import type { MethodImage } from './method.js';

/**
 * `negative`: minus the product with the question, since with CLIP's plain read-out relevant patches have low cosines; `positive`: the
 * product; `decoupled`: DeSAP's task map with the alignment `mean`.
 */
export const RELEVANCES = ['negative', 'positive', 'decoupled'] as const;
export type Relevance = (typeof RELEVANCES)[number];

/** The mean cosine of each patch's plain read-out and the question's end rows, [P]. */
export async function cosineRelevance(image: MethodImage, relevance: Relevance): Promise<Float64Array> {
  if (relevance === 'decoupled') return Float64Array.from(await image.taskMap());
  const { backend } = image;
  const { postNorm, epsilon, visualProjection } = await image.readOut();
  const normalized = await layerNorm(backend, image.states(), postNorm, epsilon);
  const embeddings = await linear(backend, normalized, noBias(visualProjection));
  const t = await unitRows(backend, await ends(image, visualProjection));
  const E = await unitRows(backend, embeddings);
  return signed(againstMean(E, t), relevance);
}

/**
 * The product of each patch's plain read-out and the question's end row, neither of unit length, [P]. The projection goes to the question's
 * side: (W^T t) . post_ln(x_i).
 */
export async function productRelevance(image: MethodImage, relevance: Relevance): Promise<Float64Array> {
  if (relevance === 'decoupled') return Float64Array.from(await image.taskMap());
  const { backend } = image;
  const { postNorm, epsilon, visualProjection: W } = await image.readOut();
  const t = meanRow(await ends(image, W));
  const folded = new Float64Array(W.cols);
  for (let e = 0; e < W.rows; e++) for (let c = 0; c < W.cols; c++) folded[c] += t[e] * W.data[e * W.cols + c];
  const normalized = await layerNorm(backend, image.states(), postNorm, epsilon);
  const row = { data: Float32Array.from(folded), rows: 1, cols: W.cols };
  return signed(Float64Array.from((await linear(backend, normalized, noBias(row))).data), relevance);
}

/** The question's end rows, which have to be of the space that the read-out goes to. */
async function ends(image: MethodImage, { rows: E }: Matrix): Promise<Matrix> {
  const text = await image.text();
  if (text.cols === E) return text;
  throw mismatch('ERR_SHAPE', 'question', `rows of ${text.cols} elements`, `${E}, as the read-out has`);
}

/** The mean over rows of t of their products with each row of x. */
function againstMean(x: Matrix, t: Matrix): Float64Array {
  const mean = meanRow(t);
  return Float64Array.from({ length: x.rows }, (_, i) => {
    let product = 0;
    for (let c = 0; c < x.cols; c++) product += x.data[i * x.cols + c] * mean[c];
    return product;
  });
}

function signed(products: Float64Array, relevance: Relevance): Float64Array {
  return relevance === 'negative' ? products.map((one) => -one) : products;
}

function noBias({ data, rows }: Matrix) {
  return { weight: data, bias: new Float32Array(rows) };
}
