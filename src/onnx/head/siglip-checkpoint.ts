import type { BlockWeights } from '../../block-weights.js';
import { checkBlock } from '../../block-weights.js';
import { DesapError, describe } from '../../errors.js';
import { toFloat32 } from '../../safetensors.js';
import { configBeside, openCheckpoint, visionConfig } from './extract-safetensors.js';
import type { SiglipVision } from './siglip.js';

/** What transformers takes where `config.json` says nothing: the defaults of its SiglipVisionConfig. */
const DEFAULTS = { heads: 12, epsilon: 1e-6 };

/**
 * The same of a Hugging Face SigLIP checkpoint in safetensors: a whole SiglipModel or Siglip2Model, its vision tower, or either under a
 * prefix.
 *
 * @param path `model.safetensors`, or `model.safetensors.index.json` of a sharded one; `config.json` is looked for beside it
 * @throws DesapError `ERR_FILE` when a tensor is missing; `ERR_SHAPE`, `ERR_VALUE`, `ERR_NOT_FINITE` for weights that do not fit together
 */
export async function siglipFromCheckpoint(path: string): Promise<SiglipVision> {
  const checkpoint = await openCheckpoint(path);
  const settings = visionConfig(await configBeside(path));
  const probe = checkpoint.names.find((name) => /(^|\.)head\.probe$/.test(name));
  if (probe === undefined)
    throw new DesapError('ERR_FILE', `${path}: looked for a tensor 'vision_model.head.probe' of SigLIP; found none`);
  const prefix = probe.slice(0, -'head.probe'.length);

  const values = async (name: string) =>
    toFloat32(await checkpoint.read(`${prefix}${name}`), `${path}: tensor '${prefix}${name}'`);
  const layer = async (name: string) => ({
    weight: await values(`${name}.weight`),
    bias: await values(`${name}.bias`),
  });
  const { num_attention_heads: heads = DEFAULTS.heads, layer_norm_eps: epsilon = DEFAULTS.epsilon } = settings;
  const block = async (index: number): Promise<BlockWeights> => {
    const name = `encoder.layers.${index}`;
    const norm1 = await layer(`${name}.layer_norm1`);
    return {
      width: norm1.weight.length,
      heads,
      norm: 'layer',
      epsilon,
      norm1,
      q: await layer(`${name}.self_attn.q_proj`),
      k: await layer(`${name}.self_attn.k_proj`),
      v: await layer(`${name}.self_attn.v_proj`),
      out: await layer(`${name}.self_attn.out_proj`),
      siglip: null,
    };
  };
  const pattern = /^encoder\.layers\.(\d+)\.self_attn\.q_proj\.weight$/;
  const count = checkpoint.names
    .filter((name) => name.startsWith(prefix))
    .map((name) => Number(pattern.exec(name.slice(prefix.length))?.[1] ?? -1) + 1)
    .reduce((most, one) => Math.max(most, one), 0);
  if (count < 2 || count !== (settings.num_hidden_layers ?? count))
    throw new DesapError(
      'ERR_FILE',
      `${path}: got ${count} layers '${prefix}encoder.layers.<n>', wanted ${describe(settings.num_hidden_layers ?? 'two or more')}`,
    );

  const [weight, bias] = [await values('head.attention.in_proj_weight'), await values('head.attention.in_proj_bias')];
  const third = (part: number) => ({
    weight: weight.slice((part * weight.length) / 3, ((part + 1) * weight.length) / 3),
    bias: bias.slice((part * bias.length) / 3, ((part + 1) * bias.length) / 3),
  });
  const fc1 = await layer('head.mlp.fc1');
  const head = {
    mlpWidth: fc1.bias.length,
    postNorm: await layer('post_layernorm'),
    probe: await values('head.probe'),
    q: third(0),
    k: third(1),
    v: third(2),
    out: await layer('head.attention.out_proj'),
    norm: await layer('head.layernorm'),
    fc1,
    fc2: await layer('head.mlp.fc2'),
  };
  const blocks = [await block(count - 1), await block(count - 2)] as const;
  checkBlock({ ...blocks[0], siglip: head }, path);
  return { head, heads, epsilon, blocks };
}
