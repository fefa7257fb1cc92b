/** LanguageBind's temporal sub-block: in front of a layer's attention, each row of a frame attends to the same row of the other frames. */
import { join } from 'node:path';
import { DesapError, invalid } from '../errors.js';
import { isFile } from '../files.js';
import type { LinearWeights } from '../head.js';
import type { Backend } from '../index.js';
import { openCheckpoint } from '../onnx/head/extract-safetensors.js';
import { toFloat32 } from '../safetensors.js';
import { float32, type Tensor } from '../tensor.js';

/** Weights of the temporal sub-block of one layer; D is the width, T the number of frames. */
export interface TemporalWeights {
  readonly frames: number;
  readonly heads: number;
  readonly epsilon: number;
  /** [T, D]. */
  readonly embedding: Float32Array;
  readonly norm: LinearWeights;
  readonly q: LinearWeights;
  readonly k: LinearWeights;
  readonly v: LinearWeights;
  readonly out: LinearWeights;
  /** Weight of the norm in front of the spatial attention of the layer before: the last one that the tower has. */
  readonly layerBefore: Float32Array;
}

/** The safetensors checkpoint of a folder, whole or in shards. */
export async function checkpointOf(folder: string): Promise<string> {
  for (const name of ['model.safetensors', 'model.safetensors.index.json'])
    if (await isFile(join(folder, name))) return join(folder, name);
  throw new DesapError(
    'ERR_FILE',
    `${join(folder, 'model.safetensors')}: got no such file (nor its index), wanted LanguageBind's checkpoint, which has the temporal weights`,
  );
}

/**
 * The temporal sub-block of the last layer of LanguageBind's video tower.
 *
 * @param path the checkpoint
 * @param about heads and epsilon, those of the spatial attention
 * @throws DesapError `ERR_FILE` where there is none
 */
export async function readTemporal(
  path: string,
  { heads, epsilon }: Pick<TemporalWeights, 'heads' | 'epsilon'>,
): Promise<TemporalWeights> {
  const checkpoint = await openCheckpoint(path);
  const layers = checkpoint.names.flatMap((name) => {
    const match = /^(.*encoder\.layers\.)(\d+)\.temporal_embedding$/.exec(name);
    return match ? [{ prefix: match[1], index: Number(match[2]) }] : [];
  });
  if (layers.length === 0)
    throw new DesapError(
      'ERR_FILE',
      `${path}: looked for tensors '...encoder.layers.<n>.temporal_embedding'; found none`,
    );
  const { prefix, index } = layers.reduce((last, layer) => (layer.index > last.index ? layer : last));
  const read = async (name: string, layer = index) => {
    const full = `${prefix}${layer}.${name}`;
    const tensor = await checkpoint.read(full);
    return { shape: tensor.shape, data: toFloat32(tensor, `${path}: tensor '${full}'`) };
  };
  const linear = async (name: string): Promise<LinearWeights> => ({
    weight: (await read(`${name}.weight`)).data,
    bias: (await read(`${name}.bias`)).data,
  });
  const { shape, data: embedding } = await read('temporal_embedding');
  const width = shape[shape.length - 1];
  const weights = {
    ...{ frames: embedding.length / width, heads, epsilon, embedding },
    norm: await linear('temporal_layer_norm1'),
    q: await linear('temporal_attn.q_proj'),
    k: await linear('temporal_attn.k_proj'),
    v: await linear('temporal_attn.v_proj'),
    out: await linear('temporal_attn.out_proj'),
    layerBefore: (await read('layer_norm1.weight', index - 1)).data,
  };
  const { norm, q, k, v, out } = weights;
  const fits = [q, k, v, out].every(({ weight, bias }) => weight.length === width * width && bias.length === width);
  if (!fits || norm.weight.length !== width || norm.bias.length !== width || width % heads !== 0)
    throw new DesapError('ERR_FILE', `${path}: the temporal weights of layer ${index} do not fit a width of ${width}`);
  return weights;
}

/**
 * x + O(attention(LN(x))) with x = hidden + embedding of the frame, where row n of a frame attends to row n of all frames:
 * softmax(q k^T / sqrt(D / H)) v over T.
 *
 * @param hidden [T N, D], the rows of one frame after the other
 * @returns [T N, D]
 * @throws DesapError `ERR_NOT_FINITE`; those of the kernels
 */
export async function temporalBlock(
  hidden: Float32Array,
  { frames, heads, epsilon, embedding, norm, q, k, v, out }: TemporalWeights,
  backend: Backend,
): Promise<Float32Array> {
  const width = norm.weight.length;
  const size = hidden.length / frames;
  if (!Number.isInteger(size / width)) throw invalid('ERR_SHAPE', 'hidden', hidden.length, `${frames} frames of rows`);
  const x = Float32Array.from(hidden, (value, i) => value + embedding[Math.floor(i / size) * width + (i % width)]);
  const dims = [hidden.length / width, width];
  const linear = async (rows: Tensor, { weight, bias }: LinearWeights) =>
    backend.linear({ x: rows, weight: float32(weight, [width, width]), bias });
  const rows = await backend.layerNorm({ x: float32(x, dims), ...norm, epsilon });
  const [Q, K, V] = [await linear(rows, q), await linear(rows, k), await linear(rows, v)].map(
    ({ data }) => data as Float32Array,
  );
  const context = acrossFrames({ Q, K, V }, { frames, heads, width });
  const { data: change } = await linear(float32(context, dims), out);
  for (let i = 0; i < x.length; i++) x[i] += (change as Float32Array)[i];
  return x;
}

function acrossFrames(
  { Q, K, V }: Readonly<Record<'Q' | 'K' | 'V', Float32Array>>,
  { frames, heads, width }: { readonly frames: number; readonly heads: number; readonly width: number },
): Float32Array {
  const context = new Float32Array(Q.length);
  const size = Q.length / frames;
  const own = width / heads;
  const scale = 1 / Math.sqrt(own);
  const weights = new Float64Array(frames);
  // `at`: where the part of one head in one row of the first frame begins.
  for (let at = 0; at < size; at += own)
    for (let t = 0; t < frames; t++) {
      let largest = Number.NEGATIVE_INFINITY;
      for (let s = 0; s < frames; s++) {
        let dot = 0;
        for (let i = 0; i < own; i++) dot += Q[t * size + at + i] * K[s * size + at + i];
        weights[s] = dot * scale;
        largest = Math.max(largest, weights[s]);
      }
      let sum = 0;
      for (let s = 0; s < frames; s++) {
        weights[s] = Math.exp(weights[s] - largest);
        sum += weights[s];
      }
      for (let i = 0; i < own; i++) {
        let value = 0;
        for (let s = 0; s < frames; s++) value += weights[s] * V[s * size + at + i];
        context[t * size + at + i] = value / sum;
      }
    }
  return context;
}
