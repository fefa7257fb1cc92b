import type { InferenceSession, Tensor } from 'onnxruntime-common';
import type { SiglipHead } from '../block-weights.js';
import { DesapError } from '../errors.js';
import type { LinearWeights } from '../head.js';
import { readLayer } from './block-weights.js';
import { cut, type OrtModule, openGraph } from './edit.js';
import { Builder } from './format/builder.js';
import { DataType } from './format/proto.js';
import { times } from './linear-weights.js';
import { product } from './search/attention.js';
import type { LayerNorm } from './search/norm.js';
import type { PoolingHead } from './search/pooling-head.js';
import { readFloats, readVector } from './weights.js';

/** One image as the file takes it. */
export interface PoolingTrial {
  readonly feeds: Readonly<Record<string, Tensor>>;
  readonly rows: number;
}

const ROWS = 'desap.pooled_rows';
const QUERY = 'desap.query';
const KEYS = 'desap.keys';
const VALUES = 'desap.values';

/**
 * The weights of a pooling head, float32. Those of the probe's attention are what it makes of the rows of an identity matrix, which holds
 * for every packing and for quantised files; the probe comes behind its projection, which is an identity then.
 *
 * @param trial inputs that the file takes, and N, the rows that it makes of them
 * @throws DesapError `ERR_GRAPH`, `ERR_FILE`
 */
export async function readPoolingHead(
  ort: OrtModule,
  head: PoolingHead,
  trial: PoolingTrial,
): Promise<{ head: SiglipHead; heads: number }> {
  const { graph, postNorm, norm, fc1, fc2, out, laterBias } = head;
  const { model } = graph;
  const width = postNorm.weight.dims[0];
  const attention = await probeAttention(ort, head, trial, width);
  const first = await readLayer(ort, graph, fc1, width);
  const bias = laterBias === null ? first.bias : sum(first.bias, await readVector(model, laterBias));
  const mlpWidth = first.bias.length;
  const last = await readLayer(ort, graph, fc2, mlpWidth);
  const factor = laterBias === null ? await activationFactor(ort, head, trial, mlpWidth) : 1;
  return {
    heads: attention.heads,
    head: {
      mlpWidth,
      postNorm: await readNorm(head, postNorm),
      probe: attention.query,
      q: identity(width),
      k: attention.keys,
      v: attention.values,
      out: await readLayer(ort, graph, out, width),
      norm: await readNorm(head, norm),
      fc1: { weight: first.weight, bias },
      fc2: { weight: times(last.weight, factor), bias: last.bias },
    },
  };
}

async function readNorm({ graph: { model } }: PoolingHead, { weight, bias }: LayerNorm): Promise<LinearWeights> {
  return { weight: await readFloats(model, weight), bias: await readFloats(model, bias) };
}

function sum(a: Float32Array, b: Float32Array): Float32Array {
  return a.map((value, i) => value + b[i]);
}

function identity(width: number): LinearWeights {
  const weight = new Float32Array(width * width);
  for (let i = 0; i < width; i++) weight[i * width + i] = 1;
  return { weight, bias: new Float32Array(width) };
}

const HIDDEN = 'desap.mlp_hidden';
const ACTIVATED = 'desap.mlp_activated';

/** What the activation is a multiple of GELU by: optimisers move a factor of it into the layer behind. */
async function activationFactor(
  ort: OrtModule,
  { graph, fc1, fc2 }: PoolingHead,
  { feeds }: PoolingTrial,
  mlpWidth: number,
): Promise<number> {
  const builder = new Builder(graph.model.opset);
  builder.cast(HIDDEN, graph.elementType(fc1.output), fc1.output);
  builder.float(fc2.input, ACTIVATED);
  const inputs = [{ name: HIDDEN, type: DataType.float }];
  const session = await openGraph(ort, cut(graph.model, { inputs, outputs: [ACTIVATED], nodes: builder.nodes }));
  try {
    const large = new ort.Tensor('float32', new Float32Array(mlpWidth).fill(LARGE), [1, mlpWidth]);
    const { [ACTIVATED]: activated } = await session.run({ ...needed(session, feeds), [HIDDEN]: large });
    return (activated.data as Float32Array)[0] / LARGE;
  } finally {
    await session.release();
  }
}

/** Where GELU is its argument: the rest is below float32's rounding. */
const LARGE = 16;

/** How many images there are may be read off the file's own inputs. */
function needed(session: InferenceSession, feeds: PoolingTrial['feeds']): Record<string, Tensor> {
  return Object.fromEntries(Object.entries(feeds).filter(([name]) => session.inputNames.includes(name)));
}

/** What the probe's attention is made of. */
interface ProbeAttention {
  readonly heads: number;
  /** The query as it meets plain keys under 1/sqrt(dh), [D]. */
  readonly query: Float32Array;
  readonly keys: LinearWeights;
  readonly values: LinearWeights;
}

async function probeAttention(
  ort: OrtModule,
  head: PoolingHead,
  { feeds, rows }: PoolingTrial,
  width: number,
): Promise<ProbeAttention> {
  const { graph, postNorm, factors } = head;
  const builder = new Builder(graph.model.opset);
  builder.cast(ROWS, graph.elementType(postNorm.output), postNorm.output);
  const operands = { [QUERY]: head.query, [KEYS]: head.keys, [VALUES]: head.values };
  const outputs = Object.entries(operands).map(([name, value]) => builder.float(value, name));
  const inputs = [{ name: ROWS, type: DataType.float }];
  const session = await openGraph(ort, cut(graph.model, { inputs, outputs, nodes: builder.nodes }));
  /** What comes of unit vectors, the first of them `first`; none beyond the last. */
  const run = (first: number, count = rows) => {
    const data = new Float32Array(rows * width);
    for (let r = 0; r < count && first + r < width; r++) data[r * width + first + r] = 1;
    return session.run({ ...needed(session, feeds), [ROWS]: new ort.Tensor('float32', data, [1, rows, width]) });
  };
  try {
    const [zeros, one] = [await run(width), await run(0, 1)];
    const layers = [KEYS, VALUES].map((name) => {
      const layout = layoutOf(graph.model.name, one[name], zeros[name], rows);
      const bias = layout.rowsOf(zeros[name]).slice(0, width);
      return { name, layout, bias, weight: new Float32Array(width * width) };
    });
    for (let first = 0; first < width; first += rows) {
      const made = await run(first);
      for (const { name, layout, bias, weight } of layers) {
        const columns = layout.rowsOf(made[name]);
        for (let r = 0; r < rows && first + r < width; r++)
          for (let o = 0; o < width; o++) weight[o * width + first + r] = columns[r * width + o] - bias[o];
      }
    }
    const [keys, values] = layers;
    const heads = head.heads ?? values.layout.heads;
    // A scale that cannot be told is taken for 1/sqrt(dh): numbers decide.
    const scale = product(graph, factors, width / heads) ?? (width / heads) ** -0.5;
    const excess = scale * Math.sqrt(width / heads);
    const query = (zeros[QUERY].data as Float32Array).slice(0, width).map((value) => value * excess);
    return { heads, query, keys, values };
  } finally {
    await session.release();
  }
}

/** How an operand [.., H, N, dh] lies, in any order of its axes. */
interface Layout {
  /** H; 1 where an operand is not split. */
  readonly heads: number;
  /** Its rows [N, D]. */
  rowsOf(operand: Tensor): Float32Array;
}

/** @param one, zeros an operand of two runs, whose first row alone was another */
function layoutOf(name: string, one: Tensor, zeros: Tensor, rows: number): Layout {
  const { dims } = one;
  const [a, b] = [one.data as Float32Array, zeros.data as Float32Array];
  const behind = (axis: number) => dims.slice(axis + 1).reduce((size, extent) => size * extent, 1);
  const isRows = (axis: number) =>
    dims[axis] === rows && a.every((value, i) => value === b[i] || Math.floor(i / behind(axis)) % rows === 0);
  const axis = [...dims.keys()].find(isRows);
  if (axis === undefined)
    throw new DesapError(
      'ERR_GRAPH',
      `${name}: looked for ${rows} rows in the keys and values of the pooling head; found the dims [${dims.join(', ')}]`,
    );
  const others = dims.filter((extent, i) => i !== axis && extent !== 1);
  const inner = behind(axis);
  const rowsOf = ({ data }: Tensor) => {
    const moved = new Float32Array(data.length);
    const width = data.length / rows;
    for (let i = 0; i < data.length; i++) {
      const [outer, row] = [Math.floor(i / (inner * rows)), Math.floor(i / inner) % rows];
      moved[row * width + outer * inner + (i % inner)] = (data as Float32Array)[i];
    }
    return moved;
  };
  return { heads: others.length === 2 ? others[0] : 1, rowsOf };
}
