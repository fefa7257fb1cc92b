/** A LLaVA and the CLIP pair whose tower it has, both with fresh random weights, as folders for Transformers.js. */
import { cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Editable } from '../../onnx/editable.js';
import { normal } from '../../support.js';
import { type DecoderShape, decoder, embedTokens } from './decoder.js';
import { FLOAT, SmallGraph } from './graph.js';

const IMAGE = 32;
const PATCH = 8;
/** Patches of an image. */
export const PATCHES = (IMAGE / PATCH) ** 2;
const TOWER = { width: 24, heads: 3, layers: 3, embedding: 96 };

export const DECODER: DecoderShape = { width: 32, heads: 4, kvHeads: 2, layers: 2, vocabulary: 64 };
export const IMAGE_TOKEN = 62;

export interface SmallLlava {
  readonly root: string;
  /** Folders under the root. */
  readonly llava: string;
  readonly clip: string;
}

/** Writes both folders under `root`. */
export async function writeLlava(root: string, seed: number, shape: Partial<DecoderShape> = {}): Promise<SmallLlava> {
  const full = { ...DECODER, ...shape };
  const [llava, clip] = [join(root, 'small-llava'), join(root, 'small-clip')];
  await mkdir(join(llava, 'onnx'), { recursive: true });
  await mkdir(join(clip, 'onnx'), { recursive: true });
  for (const name of ['tokenizer.json', 'tokenizer_config.json']) {
    await cp(join('models/tiny-llava', name), join(llava, name));
    await cp(join('models/tiny-clip', name), join(clip, name));
  }
  const json = async (name: string, change: object) => {
    const file = JSON.parse(await readFile(join('models/tiny-llava', name), 'utf8'));
    await writeFile(join(llava, name), JSON.stringify({ ...file, ...change }));
  };
  await json('processor_config.json', {});
  await json('preprocessor_config.json', {
    size: { shortest_edge: IMAGE },
    crop_size: { height: IMAGE, width: IMAGE },
  });
  const { vocabulary, width, layers, heads, kvHeads } = full;
  const text = { vocab_size: vocabulary, hidden_size: width, num_hidden_layers: layers };
  await writeFile(
    join(llava, 'config.json'),
    JSON.stringify({
      model_type: 'llava',
      architectures: ['LlavaForConditionalGeneration'],
      image_token_index: IMAGE_TOKEN,
      text_config: { model_type: 'llama', ...text, num_attention_heads: heads, num_key_value_heads: kvHeads },
      vision_config: { model_type: 'clip_vision_model', image_size: IMAGE, patch_size: PATCH },
      eos_token_id: 2,
    }),
  );
  const onnx = (folder: string, name: string, bytes: Uint8Array) =>
    writeFile(join(folder, 'onnx', `${name}.onnx`), bytes);
  await onnx(llava, 'vision_encoder', tower(seed, 'llava', width));
  await onnx(llava, 'embed_tokens', embedTokens(seed + 1000, full));
  await onnx(llava, 'decoder_model_merged', decoder(seed + 2000, full));
  await onnx(clip, 'vision_model', tower(seed, 'clip', width));
  await onnx(clip, 'text_model', await textTower(seed + 3000));
  return { root, llava, clip };
}

/** The same seed gives both files the same tower; CLIP's goes on for one more layer. */
function tower(seed: number, kind: 'llava' | 'clip', languageWidth: number): Uint8Array {
  const { width, heads, layers, embedding } = TOWER;
  const g = new SmallGraph(seed);
  const pixels = g.input('pixel_values', FLOAT, ['batch_size', 3, IMAGE, IMAGE]);
  const patches = g.add('Conv', [pixels, g.random([width, 3, PATCH, PATCH], 0.1)], {
    kernel_shape: { ints: [PATCH, PATCH] },
    strides: { ints: [PATCH, PATCH] },
  });
  const rows = g.transpose(g.reshape(patches, [0, width, -1]), [0, 2, 1]);
  const batch = g.unsqueeze(g.extent(pixels, 0), 0);
  const cls = g.add('Expand', [g.random([1, 1, width], 1), g.concat([batch, g.integers([1, width])], 0)]);
  const placed = g.add('Add', [g.concat([cls, rows], 1), g.random([1, PATCHES + 1, width], 0.5)]);
  let x = g.layerNorm(placed, width);
  for (let layer = 0; layer < layers - (kind === 'llava' ? 1 : 0); layer++) {
    const normed = g.layerNorm(x, width);
    const dh = width / heads;
    const [q, k, v] = [0, 1, 2].map(() =>
      g.transpose(g.reshape(g.linear(normed, width, width), [0, 0, heads, dh]), [0, 2, 1, 3]),
    );
    x = g.add('Add', [x, g.linear(g.attend(q, k, v, { heads, headExtent: dh }), width, width)]);
    x = g.add('Add', [x, g.linear(g.gelu(g.linear(g.layerNorm(x, width), width, 2 * width)), 2 * width, width)]);
  }
  if (kind === 'llava') {
    const own = g.slice(x, 1, Number.MAX_SAFE_INTEGER, 1);
    const projected = g.linear(g.gelu(g.linear(own, width, languageWidth)), languageWidth, languageWidth);
    g.output(projected, 'image_features');
  } else {
    const row = g.add('Gather', [x, g.integers([0], [])], { axis: { i: 1 } });
    g.output(g.linear(g.layerNorm(row, width), width, embedding, false), 'image_embeds');
  }
  return g.bytes();
}

/** The example model's text tower with other weights of the same sizes. */
async function textTower(seed: number): Promise<Uint8Array> {
  const graph = await Editable.from(await readFile('models/tiny-clip/onnx/text_model.onnx'));
  let next = seed;
  for (const [name, tensor] of graph.tensors) {
    if (tensor.type !== FLOAT || tensor.dims.length !== 2) continue;
    const values = graph.values(name);
    const deviation = Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
    const fresh = normal(next++, values.length, deviation);
    graph.tensors.set(name, { ...tensor, data: { bytes: new Uint8Array(fresh.buffer) } });
  }
  return graph.bytes();
}
