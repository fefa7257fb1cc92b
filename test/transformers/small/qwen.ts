/** Qwen2-VL and Qwen2.5-VL with fresh random weights, as folders for Transformers.js. */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type DecoderShape, decoder, embedTokens } from './decoder.js';
import { FLOAT, INT64, SmallGraph } from './graph.js';

const PATCH = 4;
const MERGE = 2;
const UNIT = MERGE ** 2;
/** Side of a window, in visual tokens. */
const WINDOW = 2;
const TOWER = { width: 16, heads: 2, layers: 3, channels: 3 * 2 * PATCH * PATCH };
const MASKED = -1e9;

export const IMAGE_TOKEN = 64;
const SPECIAL = ['<|image_pad|>', '<|vision_start|>', '<|vision_end|>', '<|im_start|>', '<|im_end|>', '<|video_pad|>'];
const WORDS = ['user', 'assistant'];
const VOCABULARY = 64 + SPECIAL.length + WORDS.length;
const DECODER: DecoderShape = {
  width: 32,
  heads: 4,
  kvHeads: 2,
  layers: 2,
  vocabulary: VOCABULARY,
  sections: [2, 1, 1],
};

export type Kind = 'qwen2_vl' | 'qwen2_5_vl';

/** Changes to the encoder that leave its weights as they are. */
export interface EncoderForm {
  /** Window order; default: for Qwen2.5-VL. */
  readonly windows?: boolean;
  /** Whether patches see their window only, except in the last block; default true. */
  readonly masks?: boolean;
  /**
   * Further outputs, in the grid's order: `attended`, the last block's attention of unrotated queries to themselves, projected and merged
   * [M, W]; `received`, the mean attention that each visual token receives [M].
   */
  readonly inspect?: boolean;
  /**
   * How the attention is written: `plain`; or as exports of scaled_dot_product_attention have it, with a batch extent, the scale on
   * both operands, a guard for rows without keys, and Split in place of Gather. Default `plain`.
   */
  readonly style?: 'plain' | 'sdpa';
}

export const PREFIX = '<|im_start|>user\n';
export const IMAGE = '<|vision_start|><|image_pad|><|vision_end|>';
export const SUFFIX = '<|im_end|>\n<|im_start|>assistant\n';

/** Writes the folder `small-qwen` under `root` and returns its path. */
export async function writeQwen(root: string, seed: number, kind: Kind, form: EncoderForm = {}): Promise<string> {
  const folder = join(root, 'small-qwen');
  await mkdir(join(folder, 'onnx'), { recursive: true });
  const write = (name: string, file: object) => writeFile(join(folder, name), JSON.stringify(file));
  const newer = kind === 'qwen2_5_vl';
  await writeTokenizer(write);
  await write('processor_config.json', {});
  await write('preprocessor_config.json', {
    image_processor_type: 'Qwen2VLImageProcessor',
    processor_class: newer ? 'Qwen2_5_VLProcessor' : 'Qwen2VLProcessor',
    ...{ do_resize: true, do_rescale: true, do_normalize: true, do_convert_rgb: true },
    ...{ image_mean: [0.5, 0.5, 0.5], image_std: [0.25, 0.25, 0.25], rescale_factor: 1 / 255 },
    ...{ patch_size: PATCH, temporal_patch_size: 2, merge_size: MERGE, min_pixels: 64, max_pixels: 40 * 40 },
  });
  const text = {
    ...{ vocab_size: VOCABULARY, hidden_size: DECODER.width, num_hidden_layers: DECODER.layers },
    ...{ num_attention_heads: DECODER.heads, num_key_value_heads: DECODER.kvHeads },
  };
  const name = newer ? 'Qwen2_5_VLForConditionalGeneration' : 'Qwen2VLForConditionalGeneration';
  await write('config.json', {
    model_type: kind,
    architectures: [name],
    ...{ image_token_id: 64, vision_start_token_id: 65, vision_end_token_id: 66, video_token_id: 69 },
    // The older model has its language model's config at the top, the newer one apart.
    ...(newer ? { text_config: { model_type: `${kind}_text`, ...text } } : text),
    vision_config: {
      ...{ spatial_merge_size: MERGE, patch_size: PATCH, temporal_patch_size: 2, depth: TOWER.layers },
      ...(newer ? { fullatt_block_indexes: [TOWER.layers - 1] } : {}),
    },
    eos_token_id: 2,
  });
  const onnx = (file: string, bytes: Uint8Array) => writeFile(join(folder, 'onnx', `${file}.onnx`), bytes);
  await onnx('vision_encoder', encoder(seed, kind, form));
  await onnx('inspected', encoder(seed, kind, { ...form, inspect: true }));
  await onnx('embed_tokens', embedTokens(seed + 1000, DECODER));
  await onnx('decoder_model_merged', decoder(seed + 2000, DECODER));
  return folder;
}

async function writeTokenizer(write: (name: string, file: object) => Promise<void>): Promise<void> {
  const read = async (name: string) => JSON.parse(await readFile(join('models/tiny-llava', name), 'utf8'));
  const tokenizer = await read('tokenizer.json');
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  for (const [i, content] of SPECIAL.entries()) {
    tokenizer.added_tokens.push({ id: 64 + i, content, ...flags });
    tokenizer.model.vocab[content] = 64 + i;
  }
  for (const [i, word] of WORDS.entries()) tokenizer.model.vocab[word] = 64 + SPECIAL.length + i;
  await write('tokenizer.json', tokenizer);
  const { chat_template: _, ...config } = await read('tokenizer_config.json');
  await write('tokenizer_config.json', { ...config, chat_template: "{{ messages[0]['role'] }}" });
}

export function encoder(seed: number, kind: Kind, form: EncoderForm): Uint8Array {
  const { width, heads, layers, channels } = TOWER;
  const newer = kind === 'qwen2_5_vl';
  const dh = width / heads;
  const g = new SmallGraph(seed);
  const pixels = g.input('pixel_values', FLOAT, ['patches', channels]);
  const grid = g.input(newer ? 'image_grid_thw' : 'grid_thw', INT64, ['images', 3]);
  const extent = (axis: number) => g.add('Gather', [g.reshape(grid, [-1]), g.integers([axis], [])], { axis: { i: 0 } });
  const [height, columns] = [extent(1), extent(2)];
  const order = (form.windows ?? newer) ? windowOrder(g, height, columns) : null;

  let x = g.linear(pixels, channels, width, false);
  let [h, w] = ['h', 'w'].map((axis) => places(g, height, columns, axis === 'h'));
  const inOrder = (value: string, extents: number[]) =>
    order === null
      ? value
      : g.reshape(g.add('Gather', [g.reshape(value, [-1, UNIT, ...extents]), order.index], { axis: { i: 0 } }), [
          -1,
          ...extents,
        ]);
  x = inOrder(x, [width]);
  [h, w] = [inOrder(h, []), inOrder(w, [])];
  const [cos, sin] = rotary(g, h, w, dh);

  const normKind = newer ? 'rms' : 'layer';
  const norm = (value: string) => g.normLayer(width, normKind)(value);
  let [attended, received] = ['', ''];
  for (let layer = 0; layer < layers; layer++) {
    const mask = order && form.masks !== false && layer < layers - 1 ? order.mask : null;
    const packed = g.linear(norm(x), width, 3 * width);
    const parts = g.transpose(g.reshape(packed, [-1, 3, heads, dh]), [1, 0, 2, 3]);
    const sdpa = form.style === 'sdpa';
    const [q, k, v] = sdpa ? split(g, parts) : [0, 1, 2].map((part) => pick(g, parts, part));
    const project = g.linearLayer(width, width);
    const attend = (queries: string, keys: string) => {
      if (sdpa) {
        const [a, b, c] = [queries, keys, v].map((value) => g.transpose(value, [0, 2, 1, 3]));
        const root = g.scalar(dh ** -0.25);
        const turned = g.add('Mul', [g.transpose(b, [0, 1, 3, 2]), root]);
        const scores = g.add('MatMul', [g.add('Mul', [a, root]), turned]);
        const weights = g.add('Softmax', [mask ? g.add('Add', [scores, mask]) : scores], { axis: { i: -1 } });
        const guarded = g.add('Where', [g.add('IsNaN', [weights]), g.scalar(0), weights]);
        const context = g.reshape(g.transpose(g.add('MatMul', [guarded, c]), [0, 2, 1, 3]), [-1, width]);
        return { weights, projected: project(context) };
      }
      const [a, b, c] = [queries, keys, v].map((value) => g.transpose(value, [1, 0, 2]));
      const scaled = g.add('Div', [g.add('MatMul', [a, g.transpose(b, [0, 2, 1])]), g.scalar(Math.sqrt(dh))]);
      const weights = g.add('Softmax', [mask ? g.add('Add', [scaled, mask]) : scaled], { axis: { i: -1 } });
      const context = g.reshape(g.transpose(g.add('MatMul', [weights, c]), [1, 0, 2]), [-1, width]);
      return { weights, projected: project(context) };
    };
    const { weights, projected } = attend(g.rotate(q, cos, sin, dh), g.rotate(k, cos, sin, dh));
    if (form.inspect && layer === layers - 1) {
      attended = attend(q, q).projected;
      received = g.add('ReduceMean', [weights], { axes: { ints: sdpa ? [0, 1, 2] : [0, 1] }, keepdims: { i: 0 } });
    }
    x = g.add('Add', [x, projected]);
    const inner = norm(x);
    const hidden = newer
      ? g.add('Mul', [g.silu(g.linear(inner, width, 2 * width)), g.linear(inner, width, 2 * width)])
      : g.gelu(g.linear(inner, width, 2 * width));
    x = g.add('Add', [x, g.linear(hidden, 2 * width, width)]);
  }
  const [last, first, second] = [
    g.normLayer(width, normKind),
    g.linearLayer(UNIT * width, UNIT * width),
    g.linearLayer(UNIT * width, DECODER.width),
  ];
  const back = (value: string) => (order ? g.add('Gather', [value, order.back], { axis: { i: 0 } }) : value);
  const merge = (value: string) => back(second(g.gelu(first(g.reshape(last(value), [-1, UNIT * width])))));
  g.output(merge(x), 'image_features');
  if (form.inspect) {
    g.output(merge(attended), 'attended');
    const groups = g.reshape(received, [-1, UNIT]);
    g.output(back(g.add('ReduceMean', [groups], { axes: { ints: [1] }, keepdims: { i: 0 } })), 'received');
  }
  return g.bytes();
}

/** One of queries, keys and values [L, H, dh]. */
function pick(g: SmallGraph, parts: string, part: number): string {
  return g.add('Gather', [parts, g.integers([part], [])], { axis: { i: 0 } });
}

/** Queries, keys and values [1, L, H, dh]. */
function split(g: SmallGraph, parts: string): string[] {
  const outputs = [g.fresh('part'), g.fresh('part'), g.fresh('part')];
  g.add('Split', [parts, g.integers([1, 1, 1])], { axis: { i: 0 } }, { outputs });
  return outputs;
}

/** Row or column of each patch, where patches of a group stand together. */
function places(g: SmallGraph, height: string, columns: string, rows: boolean): string {
  const [zero, one] = [g.integers([0], []), g.integers([1], [])];
  const range = g.add('Range', [zero, rows ? height : columns, one]);
  const shape = g.concat([g.unsqueeze(height, 0), g.unsqueeze(columns, 0)], 0);
  const all = g.add('Expand', [rows ? g.unsqueeze(range, 1) : g.unsqueeze(range, 0), shape]);
  const half = (value: string) => g.unsqueeze(g.add('Div', [value, g.integers([MERGE], [])]), 0);
  const two = g.integers([MERGE]);
  const split = g.add('Reshape', [all, g.concat([half(height), two, half(columns), two], 0)]);
  return g.reshape(g.transpose(split, [0, 2, 1, 3]), [-1]);
}

/** Cosines and sines [L, 1, dh] of rows and columns. */
function rotary(g: SmallGraph, h: string, w: string, dh: number): string[] {
  const quarter = dh / 4;
  const table = (f: (angle: number) => number) =>
    g.floats(
      Array.from({ length: 64 * quarter }, (_, at) => f(Math.floor(at / quarter) * 100 ** (-(at % quarter) / quarter))),
      [64, quarter],
    );
  return [Math.cos, Math.sin].map((f) => {
    const values = table(f);
    const [rows, cols] = [h, w].map((place) => g.add('Gather', [values, place], { axis: { i: 0 } }));
    return g.unsqueeze(g.concat([rows, cols, rows, cols], -1), 1);
  });
}

/** Visual tokens window by window, the way back, and the mask [L, L] that keeps patches in their windows. */
function windowOrder(g: SmallGraph, height: string, columns: string) {
  const scalar = (value: number) => g.integers([value], []);
  const [zero, one, side] = [scalar(0), scalar(1), scalar(WINDOW)];
  const [rows, cols] = [height, columns].map((extent) => g.add('Div', [extent, scalar(MERGE)]));
  const count = g.add('Mul', [rows, cols]);
  const index = g.add('Range', [zero, count, one]);
  const across = g.add('Div', [g.add('Add', [cols, scalar(WINDOW - 1)]), side]);
  const windowRow = g.add('Div', [g.add('Div', [index, cols]), side]);
  const windowColumn = g.add('Div', [g.add('Mod', [index, cols]), side]);
  const windows = g.add('Add', [g.add('Mul', [windowRow, across]), windowColumn]);
  // Sorted by window, and within it by place: one key, as the windows are filled in the order of the places.
  const key = g.add('Add', [g.add('Mul', [windows, count]), index]);
  const all = g.reshape(count, [1]);
  const ascending = (value: string) => {
    const outputs = [g.fresh('sorted'), g.fresh('places')];
    g.add('TopK', [value, all], { largest: { i: 0 }, axis: { i: 0 } }, { outputs });
    return outputs[1];
  };
  const forth = ascending(key);
  const own = g.unsqueeze(g.add('Gather', [windows, forth], { axis: { i: 0 } }), 1);
  const ofPatches = g.reshape(g.add('Tile', [own, g.integers([1, UNIT])]), [-1]);
  const same = g.add('Equal', [g.unsqueeze(ofPatches, 0), g.unsqueeze(ofPatches, 1)]);
  return { index: forth, back: ascending(forth), mask: g.add('Where', [same, g.scalar(0), g.scalar(MASKED)]) };
}
