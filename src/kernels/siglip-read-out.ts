/**
 * SigLIP's read-out. Row i goes through the pooling head as a sequence of one row: its softmax over one key is 1, so the probe drops
 * out. The whole head over all rows gives the global vector, and its probe's attention is a saliency.
 *
 *   h = layer_norm(attention; postNorm), z_i = W_o (W_v h_i + b_v) + b_o, embeddings_i = unit(z_i + mlp(layer_norm(z_i; norm)))
 *   p = softmax(query . (W_k h + b_k) / sqrt(dh)) per head; saliency = mean over heads of p
 *   y = W_o (sum_j p_j (W_v h_j + b_v)) + b_o, global = unit(y + mlp(layer_norm(y; norm)));  mlp(x) = fc2 gelu(fc1 x)
 *
 * attention, embeddings: [N, D]; query, global: [D]; saliency: [N].
 */
import type { KernelArguments } from './kernels.js';
import { layerNorm } from './layer-norm.js';
import { linear } from './linear.js';
import { dot, type Matrix64, matrix64, type NumberMatrix, type Numbers, softmax } from './numeric.js';
import { unitRows } from './unit-rows.js';

type Head = Omit<KernelArguments['siglipReadOut'], 'attention'>;

export function siglipReadOut(
  attention: NumberMatrix,
  head: Head,
): { embeddings: Matrix64; global: Float64Array; saliency: Float64Array } {
  const { rows: n, cols: d } = attention;
  const h = layerNorm(attention, head.postNorm.weight, head.postNorm.bias, head.epsilon);
  const values = dense(h, head.value);
  const keys = dense(h, head.key);

  const dh = d / head.heads;
  const saliency = new Float64Array(n);
  const pooled = matrix64(1, d);
  for (let first = 0; first < d; first += dh) {
    const p = Float64Array.from({ length: n }, (_, j) => dot(head.query, first, keys.data, j * d + first, dh));
    for (let j = 0; j < n; j++) p[j] /= Math.sqrt(dh);
    softmax(p);
    for (let j = 0; j < n; j++) {
      saliency[j] += p[j] / head.heads;
      for (let c = first; c < first + dh; c++) pooled.data[c] += p[j] * values.data[j * d + c];
    }
  }

  return { embeddings: behind(values, head), global: behind(pooled, head).data, saliency };
}

/** What stands behind the head's attention: projection, residual MLP; made unit rows. */
function behind(context: NumberMatrix, { out, norm, fc1, fc2, epsilon }: Head): Matrix64 {
  const z = dense(context, out);
  const hidden = dense(layerNorm(z, norm.weight, norm.bias, epsilon), fc1);
  hidden.data.forEach((x, i) => {
    hidden.data[i] = gelu(x);
  });
  const residual = dense(hidden, fc2);
  return unitRows({ ...z, data: z.data.map((x, i) => x + residual.data[i]) });
}

const dense = (x: NumberMatrix, { weight, bias }: { weight: Numbers; bias: Numbers }) =>
  linear(x, { data: weight, rows: bias.length, cols: x.cols }, bias);

/** GELU in its form with tanh. */
function gelu(x: number): number {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}
