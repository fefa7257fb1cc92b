import type { BlockWeights, OptionalBias } from '../block-weights.js';
import { DesapError } from '../errors.js';
import type { LinearWeights } from '../head.js';
import { cut, type OrtModule, openGraph } from './edit.js';
import { Builder } from './format/builder.js';
import type { OnnxNode } from './format/messages.js';
import { DataType } from './format/proto.js';
import { times, unscaled } from './linear-weights.js';
import type { Projection } from './search/attention.js';
import type { Graph } from './search/graph.js';
import type { LastBlock } from './search/last-block.js';
import type { Linear } from './search/linear.js';
import { readFloats, readMatrix, readVector } from './weights.js';

/**
 * The weights of a block, float32. Those that lie in the file as floating-point numbers are read; a weight in any other form
 * (quantised, or computed at run time) is what its layer makes of the rows of an identity matrix.
 *
 * @throws DesapError `ERR_GRAPH`, `ERR_FILE`
 */
export async function readBlockWeights(
  ort: OrtModule,
  { graph, block, heads }: Pick<LastBlock, 'graph' | 'block' | 'heads'>,
): Promise<BlockWeights> {
  const { model } = graph;
  const { norm, out } = block;
  const width = norm.weight.dims[0];
  const reader = new LayerReader(ort, graph, width);
  const [q, k, v, o] = [
    await reader.read('q', block.q),
    await reader.read('k', block.k),
    await reader.read('v', block.v),
    await reader.read('out', { ...out, layer: { of: out, part: null } }),
  ];
  const extent = width / heads;
  // A scale that cannot be told is taken for 1/sqrt(dh): numbers decide.
  const excess = (block.scale(extent) ?? extent ** -0.5) * Math.sqrt(extent);
  const [plainQ, plainK] = unscaled(withBias(q), withBias(k), excess, extent);
  const scaled = (layer: OptionalBias, plain: LinearWeights): OptionalBias =>
    layer.bias === null ? { weight: plain.weight, bias: null } : plain;
  return {
    width,
    heads,
    norm: norm.kind,
    epsilon: norm.epsilon,
    norm1: {
      weight: await readFloats(model, norm.weight),
      bias: norm.bias === null ? null : await readFloats(model, norm.bias),
    },
    q: scaled(q, plainQ),
    k: scaled(k, plainK),
    v,
    out: o,
    siglip: null,
  };
}

/**
 * One linear layer, float32; zeros where it has no bias.
 * @throws DesapError `ERR_GRAPH`, `ERR_FILE`
 */
export async function readLayer(ort: OrtModule, graph: Graph, linear: Linear, inputs: number): Promise<LinearWeights> {
  const layer = { of: linear, part: null };
  const { weight, bias } = await new LayerReader(ort, graph, inputs).read(linear.op, { ...linear, layer }, null);
  return { weight, bias: bias ?? new Float32Array(weight.length / inputs) };
}

function withBias({ weight, bias }: OptionalBias): LinearWeights {
  return { weight, bias: bias ?? new Float32Array() };
}

const PROBE = 'desap.probe';
const PROBED = 'desap.probed';

/** Reads layers of D inputs and D outputs; a packed one is probed once. */
class LayerReader {
  private readonly probed = new Map<Linear | OnnxNode, Promise<LinearWeights>>();

  constructor(
    private readonly ort: OrtModule,
    private readonly graph: Graph,
    private readonly width: number,
  ) {}

  /** @param outputs that there have to be; default: as many as inputs; null: any */
  async read(name: string, projection: Projection, outputs: number | null = this.width): Promise<OptionalBias> {
    const { weight: stored, bias: storedBias, alpha, beta, layer, op } = projection;
    const { graph, width } = this;
    const { model } = graph;
    const isWithin = stored === null && addsOwnBias(layer.of);
    const added = storedBias === null || isWithin ? null : times(await readVector(model, storedBias), beta);
    const own =
      stored === null
        ? await this.probedPart(layer)
        : { weight: times(await readMatrix(model, stored), alpha), bias: null };
    if (own.weight.length !== (outputs ?? own.weight.length / width) * width)
      throw new DesapError(
        'ERR_GRAPH',
        `${model.name}: the weight of ${name} (${op}): got ${own.weight.length} elements, wanted [${width}, ${width}]`,
      );
    return { weight: own.weight, bias: own.bias === null ? added : sum(own.bias, added) };
  }

  private async probedPart({ of, part }: Projection['layer']): Promise<OptionalBias> {
    const found = this.probed.get(of) ?? this.probe(of);
    this.probed.set(of, found);
    const { weight, bias } = await found;
    const rows = bias.length / (part?.count ?? 1);
    const first = (part?.index ?? 0) * rows;
    const own = bias.slice(first, first + rows);
    return {
      weight: weight.slice(first * this.width, (first + rows) * this.width),
      bias: own.every((value) => value === 0) ? null : own,
    };
  }

  /** What the layer makes of zeros is its bias; what it makes of unit vectors besides are the columns of its weight. */
  private async probe(of: Linear | OnnxNode): Promise<LinearWeights> {
    const { graph, ort, width } = this;
    const builder = new Builder(graph.model.opset);
    if ('product' in of) {
      builder.cast(PROBE, graph.elementType(of.input), of.input);
      builder.float(of.product, PROBED);
    } else {
      // QAttention: input, weight, bias, input scale, weight scale, mask, input zero point, weight zero point.
      const { inputs } = of;
      const weight = builder.add('DequantizeLinear', [inputs[1], inputs[4], inputs[7] ?? ''], { axis: { i: 1 } });
      builder.add('MatMul', [PROBE, builder.float(weight)], {}, PROBED);
    }
    const inputs = [{ name: PROBE, type: DataType.float }];
    const session = await openGraph(ort, cut(graph.model, { inputs, outputs: [PROBED], nodes: builder.nodes }));
    const identity = new Float32Array((width + 1) * width);
    for (let i = 0; i < width; i++) identity[(i + 1) * width + i] = 1;
    try {
      const results = await session.run({ [PROBE]: new ort.Tensor('float32', identity, [width + 1, width]) });
      const values = results[PROBED].data as Float32Array;
      const count = values.length / (width + 1);
      const bias = values.slice(0, count);
      const weight = new Float32Array(count * width);
      for (let o = 0; o < count; o++)
        for (let i = 0; i < width; i++) weight[o * width + i] = values[(i + 1) * count + o] - bias[o];
      return { weight, bias };
    } finally {
      await session.release();
    }
  }
}

/** Whether the operator that multiplies adds the bias too. */
function addsOwnBias(of: Linear | OnnxNode): boolean {
  return 'product' in of && of.bias !== null && of.product === of.output && of.laterBias === null;
}

function sum(a: Float32Array, b: Float32Array | null): Float32Array {
  return b === null ? a : a.map((value, i) => value + b[i]);
}
