import { realpath } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { DesapError, describe, invalid } from '../../errors.js';
import { isFile, readJson } from '../../files.js';
import { checkHead, type HeadWeights } from '../../head.js';
import { isInside, namedFile } from '../../named-files.js';
import { reading } from '../../options.js';
import { openSafeTensors, type SafeTensorsFile, type StoredTensor, toFloat32 } from '../../safetensors.js';

/** The part of a Hugging Face CLIP `config.json` that a head needs. */
export interface VisionConfig {
  readonly num_attention_heads?: number;
  readonly layer_norm_eps?: number;
  readonly num_hidden_layers?: number;
}

/** What transformers takes where `config.json` says nothing: the defaults of its CLIPVisionConfig. */
const DEFAULT_EPSILON = 1e-5;

/**
 * The head of a Hugging Face CLIP checkpoint in safetensors: a whole CLIPModel, a CLIPVisionModelWithProjection, or either
 * under a prefix. The last layer is the one with the highest number.
 *
 * @param path `model.safetensors`, or `model.safetensors.index.json` of a sharded one
 * @param config `config.json` as an object, or its `vision_config`; default: the file beside the checkpoint
 * @param heads H, where there is no config
 * @throws DesapError `ERR_FILE` when a tensor is missing, `ERR_VALUE` without a head count
 */
export async function headFromCheckpoint(path: string, config?: object, heads?: number): Promise<HeadWeights> {
  const checkpoint = await openCheckpoint(path);
  const settings = visionConfig(config ?? (await configBeside(path)));
  const missing = (what: string) => new DesapError('ERR_FILE', `${path}: ${what}`);

  const layers = checkpoint.names.flatMap((name) => {
    const match = /^(.*?)encoder\.layers\.(\d+)\.self_attn\.q_proj\.weight$/.exec(name);
    return match !== null && !match[1].includes('text_model') ? [{ prefix: match[1], index: Number(match[2]) }] : [];
  });
  if (layers.length === 0)
    throw missing("looked for tensors 'vision_model.encoder.layers.<n>.self_attn.q_proj.weight'; found none");
  const { prefix, index } = layers.reduce((last, layer) => (layer.index > last.index ? layer : last));
  if (settings.num_hidden_layers !== undefined && settings.num_hidden_layers !== index + 1)
    throw missing(
      `got layers up to ${index}, wanted ${describe(settings.num_hidden_layers)} layers as config.json says: the last layer is missing`,
    );
  const count = heads ?? settings.num_attention_heads;
  if (count === undefined)
    throw invalid(
      'ERR_VALUE',
      'heads',
      heads,
      'the head count, as no config.json with num_attention_heads lies beside the checkpoint',
    );

  const layer = `${prefix}encoder.layers.${index}.`;
  const values = async (name: string) => toFloat32(await checkpoint.read(name), `${path}: tensor '${name}'`);
  const linear = async (name: string) => ({
    weight: await values(`${name}.weight`),
    bias: await values(`${name}.bias`),
  });
  const projection = checkpoint.names.find((name) => name.endsWith('visual_projection.weight'));
  if (projection === undefined)
    throw missing(
      "looked for a tensor 'visual_projection.weight'; found none (a CLIPVisionModel has none: take a CLIPModel or a CLIPVisionModelWithProjection)",
    );
  const ln1 = await linear(`${layer}layer_norm1`);
  const head: HeadWeights = {
    width: ln1.weight.length,
    heads: count,
    projectionDim: (await checkpoint.read(projection)).shape[0],
    classToken: checkpoint.names.includes(`${prefix}embeddings.class_embedding`),
    epsilon: settings.layer_norm_eps ?? DEFAULT_EPSILON,
    ln1,
    q: await linear(`${layer}self_attn.q_proj`),
    k: await linear(`${layer}self_attn.k_proj`),
    v: await linear(`${layer}self_attn.v_proj`),
    out: await linear(`${layer}self_attn.out_proj`),
    postNorm: await linear(`${prefix}post_layernorm`),
    visualProjection: await values(projection),
  };
  return checkHead(head, path);
}

/** The tensors of one safetensors file, or of the shards that an index names; each is read when it is asked for. */
export interface Checkpoint {
  readonly names: readonly string[];
  /** @throws DesapError `ERR_FILE` where there is none of this name */
  read(name: string): Promise<StoredTensor>;
}

/** @throws DesapError `ERR_FILE` */
export async function openCheckpoint(path: string): Promise<Checkpoint> {
  if (!path.endsWith('.index.json')) {
    const { shapes, read } = await openSafeTensors(path);
    return { names: [...shapes.keys()], read };
  }
  const { weight_map: map } = (await readJson(path)) as { weight_map?: Record<string, unknown> };
  if (typeof map !== 'object' || map === null)
    throw new DesapError('ERR_FILE', `${path}: looked for the key weight_map; found none`);
  const index = { path: await realpath(path), folder: dirname(path) };
  const shards = new Map<string, Promise<SafeTensorsFile>>();
  const read = async (name: string) => {
    if (!Object.hasOwn(map, name))
      throw new DesapError('ERR_FILE', `${path}: looked for the tensor '${name}'; found none`);
    const named = map[name];
    if (!isInside(named))
      throw invalid('ERR_FILE', `${path}: weight_map['${name}']`, named, 'the name of a file in its folder');
    const file = namedFile(path, index, named);
    const shard = shards.get(file) ?? openSafeTensors(file);
    shards.set(file, shard);
    return (await shard).read(name);
  };
  return { names: Object.keys(map), read };
}

export async function configBeside(path: string): Promise<object> {
  const file = join(dirname(path), 'config.json');
  return (await isFile(file)) ? readJson(file) : {};
}

export function visionConfig(config: object): VisionConfig {
  return reading('config', () => {
    const own = (config as { vision_config?: VisionConfig }).vision_config ?? (config as VisionConfig);
    const { num_attention_heads, layer_norm_eps, num_hidden_layers } = own;
    return { num_attention_heads, layer_norm_eps, num_hidden_layers };
  });
}
