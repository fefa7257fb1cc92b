import { type Abortable, abortable, signalOf } from './abort.js';
import { alternatives, DesapError, invalid, mismatch } from './errors.js';
import { CONFIG_KEY, fileConfig, type LinearWeights } from './head.js';
import { fields } from './options.js';
import { writeWhole } from './output-file.js';
import { formatSafeTensors, readWeights, type SafeTensors, toFloat32 } from './safetensors.js';
import { float32Array, nonEmpty, object } from './tensor.js';

/** A linear layer whose bias may be missing: `weight` [out, in] row-major, `bias` [out] or null. */
export interface OptionalBias {
  readonly weight: Float32Array;
  readonly bias: Float32Array | null;
}

/**
 * SigLIP's pooling head: a learned probe attends over the normalised rows of the encoder, and a residual MLP follows. D = width of the
 * block, F = `mlpWidth`.
 */
export interface SiglipHead {
  /** F. */
  readonly mlpWidth: number;
  /** Layer norm behind the encoder, [D]. */
  readonly postNorm: LinearWeights;
  /** [D]. */
  readonly probe: Float32Array;
  /** The probe's attention, each [D, D] with bias [D]. */
  readonly q: LinearWeights;
  readonly k: LinearWeights;
  readonly v: LinearWeights;
  readonly out: LinearWeights;
  /** Layer norm in front of the MLP, [D]. */
  readonly norm: LinearWeights;
  /** [F, D] and [D, F]. */
  readonly fc1: LinearWeights;
  readonly fc2: LinearWeights;
}

/**
 * The last block of an encoder without class token: what decoupled attention and saliency need of it, and, where the encoder is SigLIP's,
 * its pooling head. D = `width`.
 */
export interface BlockWeights {
  /** D, the width of the hidden states. */
  readonly width: number;
  /** H, attention heads; divides D. */
  readonly heads: number;
  /** The norm in front of the attention: `layer`, or `rms` (x / sqrt(mean(x^2) + epsilon) * weight). */
  readonly norm: 'layer' | 'rms';
  /** Epsilon of every norm. */
  readonly epsilon: number;
  /** [D]; without bias for `rms`. */
  readonly norm1: OptionalBias;
  /** Projections of the attention, each [D, D]; q is not pre-scaled by 1/sqrt(dh). */
  readonly q: OptionalBias;
  readonly k: OptionalBias;
  readonly v: OptionalBias;
  readonly out: OptionalBias;
  /** SigLIP's read-out; null: the rows behind `out` go into a connector outside. */
  readonly siglip: SiglipHead | null;
}

/** A layer of a block: its field, its name in files, and its extents; a norm has one. */
interface Layer<Field extends string> {
  readonly field: Field;
  readonly key: string;
  /** Of D and F: [out, in], or [D] of a norm. */
  readonly shape: (d: number, f: number) => readonly number[];
  readonly bias: 'always' | 'maybe';
}

const norm = (d: number) => [d];
const square = (d: number) => [d, d];

const LAYERS: readonly Layer<'norm1' | 'q' | 'k' | 'v' | 'out'>[] = [
  { field: 'norm1', key: 'ln1', shape: norm, bias: 'maybe' },
  { field: 'q', key: 'q', shape: square, bias: 'maybe' },
  { field: 'k', key: 'k', shape: square, bias: 'maybe' },
  { field: 'v', key: 'v', shape: square, bias: 'maybe' },
  { field: 'out', key: 'out', shape: square, bias: 'maybe' },
];
const PACKED = 'qkv';

const HEAD_LAYERS: readonly Layer<Exclude<keyof SiglipHead, 'mlpWidth' | 'probe'>>[] = [
  { field: 'postNorm', key: 'post_ln', shape: norm, bias: 'always' },
  { field: 'q', key: 'head_q', shape: square, bias: 'always' },
  { field: 'k', key: 'head_k', shape: square, bias: 'always' },
  { field: 'v', key: 'head_v', shape: square, bias: 'always' },
  { field: 'out', key: 'head_out', shape: square, bias: 'always' },
  { field: 'norm', key: 'head_ln', shape: norm, bias: 'always' },
  { field: 'fc1', key: 'fc1', shape: (d, f) => [f, d], bias: 'always' },
  { field: 'fc2', key: 'fc2', shape: (d, f) => [d, f], bias: 'always' },
];

const FIELDS: readonly (keyof BlockWeights)[] = [
  ...(['width', 'heads', 'norm', 'epsilon', 'siglip'] as const),
  ...LAYERS.map((layer) => layer.field),
];
const HEAD_FIELDS: readonly (keyof SiglipHead)[] = ['mlpWidth', 'probe', ...HEAD_LAYERS.map((layer) => layer.field)];

/** The names that its tensors have in files. */
const TENSORS: ReadonlySet<string> = new Set(
  [PACKED, ...[...LAYERS, ...HEAD_LAYERS].map(({ key }) => key)]
    .flatMap((key) => [`${key}.weight`, `${key}.bias`])
    .concat('probe'),
);
const isWeight = (name: string) => TENSORS.has(name.replace(/^weight\./, ''));

const sizeOf = (shape: readonly number[]) => shape.reduce((product, extent) => product * extent, 1);

/**
 * Checks a block once, at the boundary: its numbers, the extents of its layers, and every value for NaN and Inf. What it gives is as it
 * was then: each field was read once. The weights are not copied.
 * @throws DesapError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, `ERR_NOT_FINITE`
 */
export function checkBlock(block: BlockWeights, name = 'block'): BlockWeights {
  const given = fields(name, object(name, block, 'the weights of a block'), FIELDS);
  const { width, heads, norm, epsilon, siglip } = given;
  positive(`${name}.width`, width);
  positive(`${name}.heads`, heads);
  if (width % heads !== 0) throw invalid('ERR_VALUE', `${name}.heads`, heads, `a divisor of the width ${width}`);
  if (norm !== 'layer' && norm !== 'rms')
    throw invalid('ERR_VALUE', `${name}.norm`, norm, alternatives(['layer', 'rms']));
  if (typeof epsilon !== 'number' || !(epsilon > 0 && epsilon < 1))
    throw invalid('ERR_VALUE', `${name}.epsilon`, epsilon, 'a number between 0 and 1');
  const layers = Object.fromEntries(
    LAYERS.map((layer) => [layer.field, checkLayer(`${name}.${layer.field}`, given[layer.field], layer, width, 0)]),
  ) as Record<(typeof LAYERS)[number]['field'], OptionalBias>;
  const { bias } = layers.norm1;
  if ((bias === null) !== (norm === 'rms'))
    throw mismatch(
      'ERR_VALUE',
      `${name}.norm1.bias`,
      bias === null ? 'none' : 'one',
      norm === 'rms' ? "null, which the norm 'rms' has" : "a bias, which the norm 'layer' has",
    );
  const checked = { width, heads, norm, epsilon, ...layers };
  return { ...checked, siglip: siglip === null ? null : checkSiglip(`${name}.siglip`, siglip, width) };
}

function checkSiglip(name: string, siglip: SiglipHead, width: number): SiglipHead {
  const given = fields(name, object(name, siglip, "SigLIP's pooling head, or null"), HEAD_FIELDS);
  const { mlpWidth } = given;
  positive(`${name}.mlpWidth`, mlpWidth);
  const probe = checkValues(`${name}.probe`, given.probe, width);
  const layers = HEAD_LAYERS.map((layer) => [
    layer.field,
    checkLayer(`${name}.${layer.field}`, given[layer.field], layer, width, mlpWidth),
  ]);
  return { mlpWidth, probe, ...Object.fromEntries(layers) } as SiglipHead;
}

function positive(name: string, value: number): void {
  if (!Number.isSafeInteger(value) || value < 1) throw invalid('ERR_VALUE', name, value, 'a positive integer');
}

function checkLayer(
  name: string,
  given: OptionalBias,
  layer: Layer<string>,
  width: number,
  mlpWidth: number,
): OptionalBias {
  const { weight, bias } = fields(name, object(name, given, '{ weight, bias }'), ['weight', 'bias']);
  const shape = layer.shape(width, mlpWidth);
  const isBiased = bias !== null || layer.bias === 'always';
  return {
    weight: checkValues(`${name}.weight`, weight, sizeOf(shape)),
    bias: isBiased ? checkValues(`${name}.bias`, bias, shape[0]) : null,
  };
}

function checkValues(name: string, values: Float32Array | null, length: number): Float32Array {
  const data = float32Array(name, values);
  if (data.length !== length) throw mismatch('ERR_SHAPE', name, `${data.length} elements`, `${length} elements`);
  const bad = data.findIndex((value) => !Number.isFinite(value));
  if (bad >= 0) throw mismatch('ERR_NOT_FINITE', name, `${data[bad]} at element ${bad}`, 'finite weights');
  return data;
}

/** What the metadata of a block file says in JSON. */
interface BlockConfig {
  kind?: string;
  heads?: number;
  norm?: BlockWeights['norm'];
  eps?: number;
  siglip?: boolean;
  cls?: boolean;
}

/**
 * A block from the content of a `.safetensors` file: tensors `ln1`, `q`, `k`, `v`, `out` (each `.weight` and, where there is one, `.bias`;
 * `qkv` packed in place of q, k and v), and for SigLIP's head `probe` and `post_ln`, `head_q`, `head_k`, `head_v`, `head_out`,
 * `head_ln`, `fc1`, `fc2`, in F32, F16 or BF16, with or without the prefix `weight.`; `kind: "block"`, `heads`, `norm`, `eps` and `siglip`
 * as JSON in the metadata key `desap.head` or `config`.
 * @throws DesapError `ERR_FILE` when a tensor or the configuration is missing; see also {@link checkBlock}
 */
export function blockFromSafeTensors(file: SafeTensors, name = 'block'): BlockWeights {
  const config = fileConfig<BlockConfig>(file, name, 'a block file');
  if (config.kind !== 'block') throw invalid('ERR_FILE', `${name}: config.kind`, config.kind, "'block'");
  if (config.cls) throw invalid('ERR_FILE', `${name}: config.cls`, config.cls, 'false: a block has no class token');
  const find = (key: string) => file.tensors.get(key) ?? file.tensors.get(`weight.${key}`);
  const needed = (key: string) => {
    const tensor = find(key);
    if (tensor === undefined) throw new DesapError('ERR_FILE', `${name}: got no tensor '${key}', wanted a block file`);
    return tensor;
  };
  const values = (key: string, shape: readonly number[]) => {
    const tensor = needed(key);
    if (tensor.shape.join() !== shape.join())
      throw invalid('ERR_SHAPE', `${name}: tensor '${key}'`, tensor.shape, `[${shape.join(', ')}]`);
    return toFloat32(tensor, `${name}: tensor '${key}'`);
  };
  const optional = (key: string, shape: readonly number[]) => (find(key) ? values(key, shape) : null);

  const width = needed('ln1.weight').shape[0] ?? 0;
  const mlpWidth = config.siglip ? (needed('fc1.weight').shape[0] ?? 0) : 0;
  const read = ({ key, shape, bias }: Layer<string>) => {
    const extents = shape(width, mlpWidth);
    const rows = extents.slice(0, 1);
    const weight = values(`${key}.weight`, extents);
    return { weight, bias: bias === 'always' ? values(`${key}.bias`, rows) : optional(`${key}.bias`, rows) };
  };
  const packed = find(`${PACKED}.weight`) && {
    weight: values(`${PACKED}.weight`, [3 * width, width]),
    bias: optional(`${PACKED}.bias`, [3 * width]),
  };
  const layers = Object.fromEntries(
    LAYERS.map((layer) => {
      const part = ['q', 'k', 'v'].indexOf(layer.key);
      return [layer.field, packed && part >= 0 ? partOf(packed, part) : read(layer)];
    }),
  ) as Pick<BlockWeights, 'norm1' | 'q' | 'k' | 'v' | 'out'>;
  const head = config.siglip
    ? {
        mlpWidth,
        probe: values('probe', [width]),
        ...(Object.fromEntries(HEAD_LAYERS.map((layer) => [layer.field, read(layer)])) as unknown as Omit<
          SiglipHead,
          'mlpWidth' | 'probe'
        >),
      }
    : null;
  const { heads = Number.NaN, norm = 'layer', eps: epsilon = 1e-6 } = config;
  return checkBlock({ width, heads, norm, epsilon, ...layers, siglip: head }, name);
}

/** One of the three layers of a packed projection. */
function partOf({ weight, bias }: OptionalBias, part: number): OptionalBias {
  const third = (data: Float32Array) => data.subarray((part * data.length) / 3, ((part + 1) * data.length) / 3);
  return { weight: third(weight), bias: bias && third(bias) };
}

/**
 * Reads a block file.
 * @param source its path or its bytes
 * @param call `signal` ends it
 * @throws DesapError `ERR_FILE`, `ERR_VALUE`, `ERR_SHAPE`, `ERR_NOT_FINITE`, `ERR_ABORTED`
 */
export async function loadBlock(source: string | Uint8Array | ArrayBuffer, call?: Abortable): Promise<BlockWeights> {
  return abortable(signalOf('call', call), () => readWeights(source, 'block', isWeight, blockFromSafeTensors));
}

/** The block in memory of its own. */
export function copyBlock(block: BlockWeights): BlockWeights {
  const copy = <B extends Float32Array | null>({ weight, bias }: { weight: Float32Array; bias: B }) => ({
    weight: weight.slice(),
    bias: (bias?.slice() ?? null) as B,
  });
  const layers = Object.fromEntries(LAYERS.map(({ field }) => [field, copy(block[field])]));
  const siglip = block.siglip && {
    ...block.siglip,
    probe: block.siglip.probe.slice(),
    ...Object.fromEntries(HEAD_LAYERS.map(({ field }) => [field, copy((block.siglip as SiglipHead)[field])])),
  };
  return { ...block, ...layers, siglip };
}

/** The bytes of a block file. */
export function formatBlock(given: BlockWeights): Uint8Array {
  const block = checkBlock(given);
  const { width, heads, norm, epsilon, siglip } = block;
  const tensors: Record<string, { data: Float32Array; shape: readonly number[] }> = {};
  const add = ({ key, shape }: Layer<string>, { weight, bias }: OptionalBias) => {
    const extents = shape(width, siglip?.mlpWidth ?? 0);
    tensors[`${key}.weight`] = { data: weight, shape: extents };
    if (bias) tensors[`${key}.bias`] = { data: bias, shape: extents.slice(0, 1) };
  };
  for (const layer of LAYERS) add(layer, block[layer.field]);
  if (siglip) {
    tensors.probe = { data: siglip.probe, shape: [width] };
    for (const layer of HEAD_LAYERS) add(layer, siglip[layer.field]);
  }
  const config: BlockConfig = { kind: 'block', heads, norm, eps: epsilon, ...(siglip && { siglip: true }) };
  return formatSafeTensors(tensors, { format: 'pt', [CONFIG_KEY]: JSON.stringify(config) });
}

/** Writes a block file, whole or not at all. */
export async function saveBlock(block: BlockWeights, path: string, call?: Abortable): Promise<void> {
  const file = nonEmpty('path', path, 'where to write the block');
  await abortable(signalOf('call', call), () => writeWhole(file, formatBlock(block)));
}
