import { DesapError } from '../errors.js';
import type { NumberMatrix } from '../kernels/numeric.js';
import { cut, type EditedGraph } from './edit.js';
import { Builder } from './format/builder.js';
import type { OnnxNode } from './format/messages.js';
import { type ModelSource, readModel } from './format/model.js';
import { isFloat } from './format/proto.js';
import { renamed } from './format/write.js';
import { findBlocks } from './search/attention.js';
import { ancestors, describeNode, Graph } from './search/graph.js';
import { Linears } from './search/linear.js';
import { Norms } from './search/norm.js';
import { positionCount } from './search/positions.js';
import { findReadOut, type ReadOut } from './search/read-out.js';
import { pickedBy, type TokenInputs, tokenInputs } from './search/token-inputs.js';
import { because, operators } from './tower.js';
import { readFloats } from './weights.js';

/** What a structural search found in the graph of a CLIP text tower. No name in the file had a part in it. */
export interface TextStructure extends TokenInputs {
  readonly graph: Graph;
  /** Final norm, text projection, and what picks the end-of-text row between them. */
  readonly readOut: ReadOut;
  /** Tokens that the position embedding has rows for; null when it was not found. */
  readonly contextLength: number | null;
  /** What enters the first layer: token and position embeddings. */
  readonly embedded: string;
}

/** Names of the values that {@link textGraph} hands out. */
export const TEXT_TOKENS = 'desap.text_tokens';
export const TEXT_EMBEDDING = 'desap.text_embedding';
export const TEXT_EMBEDDED = 'desap.text_embedded';

/**
 * Describes the text tower of an ONNX file: a CLIP `text_model.onnx` with projection, from any exporter.
 *
 * @throws DesapError `ERR_FILE` when it is no ONNX file; `ERR_GRAPH` when it holds no such tower, with what was found
 */
export function readText(source: ModelSource, name?: string): TextStructure {
  const model = readModel(source, name);
  const graph = new Graph(model);
  const linears = new Linears(graph);
  const norms = new Norms(graph);
  const fail = (looked: string, found: string) =>
    new DesapError('ERR_GRAPH', `${model.name}: looked for ${looked}; found ${found}`);
  const isText = (value: string) => graph.sourcesOf(value).integers && !graph.sourcesOf(value).floats;
  const search = findBlocks(graph, linears, norms);
  const [block] = search.blocks.filter((candidate) => isText(candidate.out.output));
  if (block === undefined)
    throw fail(
      'a self-attention layer behind a layer norm that depends on token ids',
      `${search.cores} attention cores${because(search)}, ${search.blocks.length} layers in all, and the operators ${operators(model)}`,
    );
  const found = model.outputs
    .filter((output) => isText(output.name))
    .map((output) => findReadOut(graph, linears, norms, output.name))
    .filter((one) => one !== null);
  const readOut = found.find((one): one is ReadOut => !('op' in one));
  if (readOut === undefined) {
    const more = found.find((one): one is OnnxNode => 'op' in one);
    throw fail(
      'a text projection of one row at the end of the graph',
      more === undefined ? 'none: take an export with text_embeds' : `${describeNode(more)} behind it`,
    );
  }
  if (!readOut.normFirst) throw fail('a final norm of all rows', 'one that follows the choice of the end-of-text row');
  if (!readOut.picks.some((node) => node.inputs.slice(1).some(isText)))
    throw fail(
      'the row of the end-of-text token, which the ids tell',
      'one row for every text, as towers that read a text to its end have it (SigLIP): this is no CLIP text tower',
    );
  const inputs = tokenInputs(graph, readOut.projection.output, readOut.picks);
  const apart = new Set([inputs.ids, ...inputs.types].map(({ name: input }) => input));
  const fixed = inputs.ids.dims?.[1];
  return {
    graph,
    ...inputs,
    readOut,
    embedded: block.input,
    contextLength:
      positionCount(graph, block.norm.output, block.norm.weight.dims[0], apart) ??
      (typeof fixed === 'number' ? fixed : null),
  };
}

/**
 * The text tower with one row for each token. In: the file's own inputs, one text at a time. Out: `desap.text_tokens`
 * [T, E], the final norm's rows times the text projection, and `desap.text_embedding` [1, E], the row that the file picks;
 * where positions are fed, `desap.text_embedded` [1, T, D] too, what enters the first layer. All float32.
 *
 * @param further other values of the graph to hand out, by the names that they get
 */
export function textGraph(
  { graph, readOut, positions, embedded }: TextStructure,
  further: Readonly<Record<string, string>> = {},
): EditedGraph {
  const { norm, projection } = readOut;
  // The nodes of the projection are run a second time, on all rows: this holds for quantised ones too.
  const between = ancestors(graph, projection.output).filter((node) => !node.outputs.includes(projection.input));
  const behind = new Set([projection.input]);
  const replayed = graph.order.filter((node) => {
    const isBehind = between.includes(node) && node.inputs.some((input) => behind.has(input));
    if (isBehind) for (const output of node.outputs) behind.add(output);
    return isBehind;
  });
  const rename = (value: string) => (behind.has(value) ? `desap.rows.${value}` : value);
  const builder = new Builder(graph.model.opset);
  const rows = builder.add('Flatten', [norm.output], { axis: { i: 2 } });
  builder.cast(rows, graph.elementType(projection.input), rename(projection.input));
  builder.include(replayed.map((node) => renamed(node, rename)));
  const outputs = [
    builder.float(rename(projection.output), TEXT_TOKENS),
    builder.float(projection.output, TEXT_EMBEDDING),
    ...(positions.length > 0 ? [builder.float(embedded, TEXT_EMBEDDED)] : []),
    ...Object.entries(further).map(([name, value]) => builder.float(value, name)),
  ];
  return cut(graph.model, { outputs, nodes: builder.nodes });
}

/**
 * The table that fed positions pick their rows of, [N, D] float32, to check by what they pick; null when nothing is fed, or the
 * table is quantised.
 */
export async function positionTable({ graph, positions, readOut }: TextStructure): Promise<NumberMatrix | null> {
  const names = positions.map(({ name }) => name);
  for (const node of ancestors(graph, readOut.norm.output)) {
    const tensor = names.includes(pickedBy(graph, node) ?? '') ? graph.tensor(node.inputs[0]) : null;
    if (tensor === null || !isFloat(tensor.type)) continue;
    const [rows, cols] = tensor.dims;
    return { data: await readFloats(graph.model, tensor), rows, cols };
  }
  return null;
}
