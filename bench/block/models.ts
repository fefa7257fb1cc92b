/**
 * Vision encoders of true width, with random weights: patches, two blocks, a connector. Two blocks are enough to see what the last one
 * costs, beside one that stays as it is.
 */
import { DataType } from '../../src/onnx/format/proto.js';
import { type AttentionForm, type BlockShape, EncoderBlocks } from '../encoder-blocks.js';
import { RandomModel } from '../onnx-models.js';

export type { AttentionForm } from '../encoder-blocks.js';

export interface EncoderShape extends BlockShape {
  readonly name: string;
  /** Qwen2.5-VL: rotary positions; SigLIP: learned ones. */
  readonly kind: 'qwen' | 'siglip';
  /** Numbers of a patch. */
  readonly channels: number;
  /** Patches that the connector joins: consecutive rows. */
  readonly unit: number;
  readonly languageWidth: number;
}

export const QWEN: EncoderShape = {
  name: 'Qwen2.5-VL',
  width: 1280,
  heads: 16,
  intermediate: 3420,
  kind: 'qwen',
  channels: 2 * 3 * 14 ** 2,
  unit: 4,
  languageWidth: 2048,
};

export const SO400M: EncoderShape = {
  name: 'SigLIP so400m',
  width: 1152,
  heads: 16,
  intermediate: 4304,
  kind: 'siglip',
  channels: 3 * 14 ** 2,
  unit: 1,
  languageWidth: 2048,
};

/** Values of the last block that the copied nodes read, or write in place of the file's own. */
export const LAST = {
  /** [1, N, H, dh], in front of the rotation and behind it. */
  plain: 'last.plain',
  q: 'last.q',
  k: 'last.k',
  v: 'last.v',
  /** [1, H, N, dh]. */
  context: 'last.context',
  /** [N, D], behind the output projection. */
  projected: 'last.projected',
  /** [N, D], behind the block: what the connector reads. */
  rows: 'last.rows',
} as const;

export const PATCHES = 'pixel_values';
export const FEATURES = 'image_features';
/** `pixel_values` [N, C] to `image_features` [N / unit, W], for N patches on a grid of which rows are as long as columns. */
export function encoder(shape: EncoderShape, patches: number, form: AttentionForm): RandomModel {
  const graph = new RandomModel();
  graph.inputs = [{ name: PATCHES, type: DataType.float, dims: [patches, shape.channels] }];
  const build = new EncoderBlocks(graph, shape, { form });
  let x = build.linear(PATCHES, shape.channels, shape.width);
  if (shape.kind === 'siglip') x = graph.add('Add', [x, graph.weight([patches, shape.width])]);
  const rotation = shape.kind === 'qwen' ? build.rotation(Math.sqrt(patches)) : null;
  x = build.block(x, rotation);
  graph.outputs = [connector(build, shape, build.block(x, rotation, LAST))];
  return graph;
}

/** A norm; then of Qwen2.5-VL two linear layers on the patches of a unit, of SigLIP one. */
function connector(build: EncoderBlocks, { width, unit, languageWidth, kind }: EncoderShape, x: string): string {
  const joined = build.reshape(build.norm(x), -1, unit * width);
  if (kind === 'siglip') return build.linear(joined, unit * width, languageWidth, FEATURES);
  const inner = build.gelu(build.linear(joined, unit * width, unit * width));
  return build.linear(inner, unit * width, languageWidth, FEATURES);
}
