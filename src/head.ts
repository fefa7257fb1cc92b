import { type Abortable, abortable, signalOf } from './abort.js';
import { DesapError, invalid, mismatch } from './errors.js';
import { field, fields } from './options.js';
import { writeWhole } from './output-file.js';
import { formatSafeTensors, readWeights, type SafeTensors, toFloat32 } from './safetensors.js';
import { boolean, float32Array, nonEmpty, object } from './tensor.js';

/** A linear layer y = x W^T + b: `weight` is [out, in] row-major, `bias` is [out]. */
export interface LinearWeights {
  readonly weight: Float32Array;
  readonly bias: Float32Array;
}

/**
 * The weights that DeSAP needs of an encoder: its last layer's attention and its read-out (arXiv 2604.11240, section 4.1).
 * D = `width`, E = `projectionDim`.
 */
export interface HeadWeights {
  /** D, the width of the hidden states. */
  readonly width: number;
  /** H, attention heads; divides D. */
  readonly heads: number;
  /** E, the width of the space that image and text share. */
  readonly projectionDim: number;
  /** Whether row 0 of the hidden states is the class token. */
  readonly classToken: boolean;
  /** Epsilon of both layer norms (CLIP: 1e-5). */
  readonly epsilon: number;
  /** Layer norm before the last attention: weight and bias [D]. */
  readonly ln1: LinearWeights;
  /** Projections of the last attention, each [D, D] with bias [D]; q is not pre-scaled by 1/sqrt(dh). */
  readonly q: LinearWeights;
  readonly k: LinearWeights;
  readonly v: LinearWeights;
  readonly out: LinearWeights;
  /** Layer norm after the encoder: weight and bias [D]. */
  readonly postNorm: LinearWeights;
  /** Visual projection [E, D], no bias. */
  readonly visualProjection: Float32Array;
}

const LAYERS = [
  ['ln1', 'ln1'],
  ['q', 'q'],
  ['k', 'k'],
  ['v', 'v'],
  ['out', 'out'],
  ['postNorm', 'post_ln'],
] as const;

const FIELDS: readonly (keyof HeadWeights)[] = [
  ...(['width', 'heads', 'projectionDim', 'classToken', 'epsilon'] as const),
  ...LAYERS.map(([layer]) => layer),
  'visualProjection',
];

/** The names that its tensors have in files. */
const TENSORS: ReadonlySet<string> = new Set(
  LAYERS.flatMap(([, key]) => [`${key}.weight`, `${key}.bias`]).concat('visual_projection.weight'),
);
const isWeight = (name: string) => TENSORS.has(name.replace(/^weight\./, ''));

/** Where the configuration of a head or a block lies in the metadata of its `.safetensors` file. */
export const CONFIG_KEY = 'desap.head';

/**
 * Checks a head once, at the boundary: extents against `width`, `heads` and `projectionDim`, and every value for NaN and Inf. What it
 * gives is as it was then: each field was read once. The weights are not copied.
 * @throws DesapError `ERR_SHAPE`, `ERR_VALUE`, `ERR_NOT_FINITE`
 */
export function checkHead(head: HeadWeights, name = 'head'): HeadWeights {
  const given = fields(name, object(name, head, 'the weights of a head'), FIELDS);
  const { width, heads, projectionDim, classToken, epsilon } = given;
  if (projectionDim === undefined && field(name, head as { embedding?: unknown }, 'embedding') !== undefined)
    throw mismatch('ERR_VALUE', name, "the unknown field 'embedding'", 'projectionDim, its name now');
  for (const [key, value] of Object.entries({ width, heads, projectionDim }))
    if (!Number.isSafeInteger(value) || value < 1)
      throw invalid('ERR_VALUE', `${name}.${key}`, value, 'a positive integer');
  if (width % heads !== 0) throw invalid('ERR_VALUE', `${name}.heads`, heads, `a divisor of the width ${width}`);
  if (typeof epsilon !== 'number' || !(epsilon > 0 && epsilon < 1))
    throw invalid('ERR_VALUE', `${name}.epsilon`, epsilon, 'a number between 0 and 1');
  boolean(`${name}.classToken`, classToken);
  const layers = LAYERS.map(([layer]) => {
    const isNorm = layer === 'ln1' || layer === 'postNorm';
    const want = { weight: isNorm ? width : width * width, bias: width };
    return [layer, checkLayer(`${name}.${layer}`, given[layer], want)];
  });
  return {
    ...{ width, heads, projectionDim, classToken, epsilon },
    ...(Object.fromEntries(layers) as Record<(typeof LAYERS)[number][0], LinearWeights>),
    visualProjection: checkWeights(`${name}.visualProjection`, given.visualProjection, projectionDim * width),
  };
}

/**
 * Checks a layer: how many elements its weight and its bias have, and every value for NaN and Inf. What it gives is as it was then; the
 * weights are not copied.
 * @throws DesapError `ERR_VALUE`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_NOT_FINITE`
 */
export function checkLayer(name: string, layer: LinearWeights, want: { weight: number; bias: number }): LinearWeights {
  const { weight, bias } = fields(name, object(name, layer, '{ weight, bias }'), ['weight', 'bias']);
  return {
    weight: checkWeights(`${name}.weight`, weight, want.weight),
    bias: checkWeights(`${name}.bias`, bias, want.bias),
  };
}

function checkWeights(name: string, given: Float32Array, length: number): Float32Array {
  const data = float32Array(name, given);
  if (data.length !== length) throw mismatch('ERR_SHAPE', name, `${data.length} elements`, `${length} elements`);
  for (let i = 0; i < length; i++)
    if (!Number.isFinite(data[i]))
      throw mismatch('ERR_NOT_FINITE', name, `${data[i]} at element ${i}`, 'finite weights');
  return data;
}

/**
 * A head from the content of a `.safetensors` file: tensors `ln1`, `q`, `k`, `v`, `out`, `post_ln` (each `.weight` and
 * `.bias`) and `visual_projection.weight`, in F32, F16 or BF16, with or without the prefix `weight.`; `heads`, `cls` and
 * `epsilon` as JSON in the metadata key `desap.head` or `config`.
 * @throws DesapError `ERR_FILE` when a tensor or the configuration is missing; see also {@link checkHead}
 */
export function headFromSafeTensors(file: SafeTensors, name = 'head'): HeadWeights {
  const wanted = 'a head file (made by: desap extract)';
  const config = fileConfig<{ kind?: string; heads?: number; cls?: boolean; epsilon?: number }>(file, name, wanted);
  if (config.kind === 'block')
    throw new DesapError(
      'ERR_FILE',
      `${name}: got the last block of an encoder, which BlockHead.load takes, wanted ${wanted}`,
    );
  const find = (key: string) => {
    const tensor = file.tensors.get(key) ?? file.tensors.get(`weight.${key}`);
    if (tensor === undefined) throw new DesapError('ERR_FILE', `${name}: got no tensor '${key}', wanted ${wanted}`);
    return tensor;
  };
  const values = (key: string, ...shape: number[]) => {
    const tensor = find(key);
    if (tensor.shape.join() !== shape.join())
      throw invalid('ERR_SHAPE', `${name}: tensor '${key}'`, tensor.shape, `[${shape.join(', ')}]`);
    return toFloat32(tensor, `${name}: tensor '${key}'`);
  };
  const width = find('ln1.weight').shape[0] ?? 0;
  const projectionDim = find('visual_projection.weight').shape[0] ?? 0;
  const layers = Object.fromEntries(
    LAYERS.map(([field, key]) => {
      const isNorm = field === 'ln1' || field === 'postNorm';
      return [
        field,
        {
          weight: isNorm ? values(`${key}.weight`, width) : values(`${key}.weight`, width, width),
          bias: values(`${key}.bias`, width),
        },
      ];
    }),
  ) as Record<(typeof LAYERS)[number][0], LinearWeights>;
  return checkHead(
    {
      width,
      projectionDim,
      heads: config.heads ?? Number.NaN,
      classToken: config.cls ?? true,
      epsilon: config.epsilon ?? 1e-5,
      ...layers,
      visualProjection: values('visual_projection.weight', projectionDim, width),
    },
    name,
  );
}

/**
 * The configuration in the metadata of a head file or a block file, as JSON in the key `desap.head` or `config`.
 * @throws DesapError `ERR_FILE`
 */
export function fileConfig<T extends object>(file: SafeTensors, name: string, wanted: string): T {
  const json = file.metadata[CONFIG_KEY] ?? file.metadata.config;
  if (json === undefined)
    throw new DesapError(
      'ERR_FILE',
      `${name}: got a safetensors file without the metadata key '${CONFIG_KEY}', wanted ${wanted}`,
    );
  let config: unknown;
  try {
    config = JSON.parse(json);
  } catch (cause) {
    throw new DesapError('ERR_FILE', `${name}: the metadata key '${CONFIG_KEY}' is not JSON`, { cause });
  }
  if (typeof config === 'object' && config !== null) return config as T;
  throw invalid('ERR_FILE', `${name}: the metadata key '${CONFIG_KEY}'`, config, 'a JSON object');
}

/**
 * Reads a head file.
 * @param source its path or its bytes
 * @param call `signal` ends it
 * @throws DesapError `ERR_FILE`, `ERR_VALUE`, `ERR_SHAPE`, `ERR_NOT_FINITE`, `ERR_ABORTED`
 */
export async function loadHead(source: string | Uint8Array | ArrayBuffer, call?: Abortable): Promise<HeadWeights> {
  return abortable(signalOf('call', call), () => readWeights(source, 'head', isWeight, headFromSafeTensors));
}

/** The head in memory of its own. */
export function copyHead(head: HeadWeights): HeadWeights {
  const copy = ({ weight, bias }: LinearWeights) => ({ weight: weight.slice(), bias: bias.slice() });
  const { width, heads, projectionDim, classToken, epsilon, ln1, q, k, v, out, postNorm, visualProjection } = head;
  return {
    ...{ width, heads, projectionDim, classToken, epsilon },
    ln1: copy(ln1),
    q: copy(q),
    k: copy(k),
    v: copy(v),
    out: copy(out),
    postNorm: copy(postNorm),
    visualProjection: visualProjection.slice(),
  };
}

/** The bytes of a head file. */
export function formatHead(given: HeadWeights): Uint8Array {
  const head = checkHead(given);
  const { width, projectionDim } = head;
  const tensors: Record<string, { data: Float32Array; shape: number[] }> = {};
  for (const [field, key] of LAYERS) {
    const isNorm = field === 'ln1' || field === 'postNorm';
    tensors[`${key}.weight`] = { data: head[field].weight, shape: isNorm ? [width] : [width, width] };
    tensors[`${key}.bias`] = { data: head[field].bias, shape: [width] };
  }
  tensors['visual_projection.weight'] = { data: head.visualProjection, shape: [projectionDim, width] };
  const config = { heads: head.heads, cls: head.classToken, epsilon: head.epsilon };
  return formatSafeTensors(tensors, { format: 'pt', [CONFIG_KEY]: JSON.stringify(config) });
}

/**
 * Writes a head file, whole or not at all.
 * @param call `signal` ends it, where writing has not begun
 * @throws DesapError `ERR_FILE`, `ERR_VALUE`, `ERR_SHAPE`, `ERR_NOT_FINITE`, `ERR_ABORTED`
 */
export async function saveHead(head: HeadWeights, path: string, call?: Abortable): Promise<void> {
  const file = nonEmpty('path', path, 'where to write the head');
  await abortable(signalOf('call', call), () => writeWhole(file, formatHead(head)));
}
