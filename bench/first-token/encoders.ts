/**
 * Vision encoders as files of model folders hold them: true shapes, random weights, and the inputs and outputs that each family has. The
 * blocks are written out as exporters write them; what belongs to no block is as short as it can be.
 */
import { DataType } from '../../src/onnx/format/proto.js';
import { type BlockShape, EncoderBlocks } from '../encoder-blocks.js';
import { RandomModel } from '../onnx-models.js';

/** An encoder, and how many of its blocks stand in the file. */
export interface Encoder extends BlockShape {
  readonly family: 'llava' | 'idefics3' | 'lfm2_vl' | 'qwen';
  readonly blocks: number;
  /** Extent of a patch, and of a tile, in pixels. */
  readonly patch: number;
  readonly image: number;
  /** Rows, and columns, of patches that become one visual token. */
  readonly side: number;
  readonly languageWidth: number;
  /** Width between the connector's two layers; with one layer it has none. */
  readonly connectorWidth?: number;
}

const CHANNELS = 3;
/** Qwen-VL: each patch is of two frames. */
const FRAMES = 2;

/** Numbers of a patch, where the encoder is given patches. */
export const numbersOf = ({ family, patch }: Encoder): number =>
  CHANNELS * patch ** 2 * (family === 'qwen' ? FRAMES : 1);
/** Patches of a tile. */
export const patchesOf = ({ image, patch }: Encoder): number => Math.floor(image / patch) ** 2;

const WRITERS: Record<Encoder['family'], (graph: RandomModel, shape: Encoder) => string> = {
  llava,
  idefics3,
  lfm2_vl: lfm2,
  qwen,
};

/** The graph of an encoder: its output is `image_features`. */
export function encoderGraph(shape: Encoder): RandomModel {
  const graph = new RandomModel();
  graph.outputs = [graph.add('Identity', [WRITERS[shape.family](graph, shape)], {}, { outputs: ['image_features'] })];
  return graph;
}

const input = (graph: RandomModel, name: string, type: number, dims: readonly (number | string)[]) => {
  graph.inputs.push({ name, type, dims });
  return name;
};

/** Tiles [tiles, 3, S, S] as rows [tiles, N, D]. */
function embedded(graph: RandomModel, build: EncoderBlocks, { image, patch, width }: Encoder): string {
  const pixels = input(graph, 'pixel_values', DataType.float, ['tiles', CHANNELS, image, image]);
  const kernel = { kernel_shape: { ints: [patch, patch] }, strides: { ints: [patch, patch] } };
  const convolved = graph.add('Conv', [pixels, graph.weight([width, CHANNELS, patch, patch])], kernel);
  return build.transpose(build.reshape(convolved, 0, width, -1), 0, 2, 1);
}

function blocks(build: EncoderBlocks, x: string, count: number, rotation?: ReturnType<EncoderBlocks['rotation']>) {
  let rows = x;
  for (let i = 0; i < count; i++) rows = build.block(rows, rotation);
  return rows;
}

/** One layer, or two with a GELU between them. */
function connected(build: EncoderBlocks, x: string, from: number, shape: Encoder): string {
  const { connectorWidth, languageWidth } = shape;
  if (connectorWidth === undefined) return build.linear(x, from, languageWidth);
  return build.linear(build.gelu(build.linear(x, from, connectorWidth)), connectorWidth, languageWidth);
}

/** LLaVA: CLIP's tower up to what enters its last block, without the class token in the features. */
function llava(graph: RandomModel, shape: Encoder): string {
  const { width } = shape;
  const build = new EncoderBlocks(graph, shape, { batched: true });
  const patches = embedded(graph, build, shape);
  const count = graph.add('Slice', [graph.add('Shape', [patches]), graph.integers([0]), graph.integers([1])]);
  const extents = graph.add('Concat', [count, graph.integers([1, width])], { axis: { i: 0 } });
  const classToken = graph.add('Expand', [graph.weight([1, 1, width]), extents]);
  const tokens = graph.add('Concat', [classToken, patches], { axis: { i: 1 } });
  const positions = graph.weight([1, patchesOf(shape) + 1, width]);
  const entering = build.norm(graph.add('Add', [tokens, positions]));
  const rows = blocks(build, entering, shape.blocks);
  const [from, to, axis] = [1, 2 ** 31 - 1, 1].map((value) => graph.integers([value]));
  return connected(build, graph.add('Slice', [rows, from, to, axis]), width, shape);
}

/** Idefics3, SmolVLM: squares of patches are shuffled into one visual token. */
function idefics3(graph: RandomModel, shape: Encoder): string {
  const { width, side, image, patch } = shape;
  const build = new EncoderBlocks(graph, shape, { batched: true });
  const positions = graph.weight([patchesOf(shape), width]);
  const entering = graph.add('Add', [embedded(graph, build, shape), positions]);
  const rows = build.norm(blocks(build, entering, shape.blocks));
  const across = image / patch / side;
  const squares = build.transpose(build.reshape(rows, -1, across, side, across, side, width), 0, 1, 3, 2, 4, 5);
  const area = side ** 2 * width;
  return connected(build, build.reshape(squares, -1, across ** 2, area), area, shape);
}

/**
 * LFM2-VL: tiles of any grid, filled up with rows of padding; squares of patches are joined into one visual token, and padding is left
 * out. Positions are those of the first rows: interpolation is no part of the time that counts.
 */
function lfm2(graph: RandomModel, shape: Encoder): string {
  const { width, side } = shape;
  const op = (name: string, ...inputs: string[]) => graph.add(name, inputs);
  const whole = (value: number) => graph.integers([value], []);
  const pixels = input(graph, 'pixel_values', DataType.float, ['tiles', 'patches', numbersOf(shape)]);
  const flags = input(graph, 'pixel_attention_mask', DataType.int64, ['tiles', 'patches']);
  const grids = input(graph, 'spatial_shapes', DataType.int64, ['tiles', 2]);
  const shown = op('Unsqueeze', graph.add('Cast', [flags], { to: { i: DataType.float } }), graph.integers([1, 2]));
  const mask = op('Mul', op('Sub', shown, graph.floats([1], [])), graph.floats([1e9], []));
  const build = new EncoderBlocks(graph, shape, { batched: true, mask });
  const extents = op('Shape', pixels);
  const extent = (axis: number) => op('Gather', extents, graph.integers([axis]));
  const positions = op('Slice', graph.weight([patchesOf(shape), width]), graph.integers([0]), extent(1));
  const entering = op('Add', build.linear(pixels, numbersOf(shape), width), positions);
  const rows = build.reshape(build.norm(blocks(build, entering, shape.blocks)), -1, width);
  // Token j of a tile, in row r and column c of its tokens, joins the rows (side r + dy) columns + side c + dx.
  const [columns, count] = [graph.add('Gather', [grids, graph.integers([1])], { axis: { i: 1 } }), extent(1)];
  const joins = side ** 2;
  const token = op('Range', whole(0), op('Div', op('Squeeze', count), whole(joins)), whole(1));
  const across = op('Div', columns, whole(side));
  const downward = op('Mul', op('Mul', op('Div', token, across), columns), whole(side));
  const first = op('Add', downward, op('Mul', op('Mod', token, across), whole(side)));
  const [dy, dx] = [Math.floor, (value: number) => Math.round((value % 1) * side)].map((of) =>
    graph.integers(Array.from({ length: joins }, (_, i) => of(i / side))),
  );
  const beside = op('Add', op('Mul', op('Unsqueeze', columns, graph.integers([2])), dy), dx);
  const inTile = op('Min', op('Add', op('Unsqueeze', first, graph.integers([2])), beside), op('Sub', count, whole(1)));
  const tile = op('Mul', op('Range', whole(0), op('Squeeze', extent(0)), whole(1)), count);
  const places = op('Add', op('Unsqueeze', tile, graph.integers([1, 2])), inTile);
  const joined = build.reshape(op('Gather', rows, places), -1, joins * width);
  const tokens = graph.add('ReduceProd', [grids], { axes: { ints: [1] }, keepdims: { i: 1 } });
  const isShown = build.reshape(op('Less', token, op('Div', tokens, whole(joins))), -1);
  const own = op('Gather', joined, build.reshape(op('NonZero', isShown), -1));
  return connected(build, own, joins * width, shape);
}

/** Qwen2-VL, Qwen2.5-VL: one image of any grid, whose squares of patches follow one another; every block sees the whole of it. */
function qwen(graph: RandomModel, shape: Encoder): string {
  const { width, side } = shape;
  const pixels = input(graph, 'pixel_values', DataType.float, ['patches', numbersOf(shape)]);
  const grids = input(graph, 'image_grid_thw', DataType.int64, ['images', 3]);
  const build = new EncoderBlocks(graph, shape);
  const [first, last] = [0, 2].map((value) => graph.integers([value], []));
  const columns = graph.add('Gather', [graph.add('Gather', [grids, first]), last]);
  const entering = build.linear(pixels, numbersOf(shape), width);
  const rotation = build.rotationOf(entering, columns);
  const rows = build.norm(blocks(build, entering, shape.blocks, rotation));
  return connected(build, build.reshape(rows, -1, side ** 2 * width), side ** 2 * width, shape);
}
