import { DesapError } from '../errors.js';
import { findBlocks } from './attention.js';
import { cut, type EditedGraph } from './edit.js';
import { ancestors, Graph } from './graph.js';
import { Linears } from './linear.js';
import type { OnnxNode, OnnxValue } from './messages.js';
import { type ModelSource, readModel } from './model.js';
import { Norms } from './norm.js';
import { positionCount } from './positions.js';
import { DataType } from './proto.js';
import { findReadOut, type ReadOut } from './read-out.js';
import { toFloat } from './split.js';
import { operators } from './tower.js';
import { newNode, renamed } from './write.js';

/** What a structural search found in the graph of a CLIP text tower. No name in the file had a part in it. */
export interface TextStructure {
  readonly graph: Graph;
  /** The graph input that takes token ids: [batch, T]. */
  readonly ids: OnnxValue;
  /** Further integer inputs (attention mask), the same shape. */
  readonly masks: readonly OnnxValue[];
  /** Final norm, text projection, and what picks the end-of-text row between them. */
  readonly readOut: ReadOut;
  /** Tokens that the position embedding has rows for; null when it was not found. */
  readonly contextLength: number | null;
}

/** Names of the values that {@link textGraph} hands out. */
export const TEXT_TOKENS = 'desap.text_tokens';
export const TEXT_EMBEDDING = 'desap.text_embedding';

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
      `${search.cores} attention cores, ${search.blocks.length} layers in all, and the operators ${operators(model)}`,
    );
  const readOut = model.outputs
    .filter((output) => isText(output.name))
    .map((output) => findReadOut(graph, linears, norms, output.name))
    .find((found) => found !== null);
  if (!readOut)
    throw fail('a text projection of one row at the end of the graph', 'none: take an export with text_embeds');
  if (!readOut.normFirst) throw fail('a final norm of all rows', 'one that follows the choice of the end-of-text row');
  const needed = ancestors(graph, readOut.projection.output);
  const isPick = ({ op }: OnnxNode) => op === 'Gather' || op === 'GatherBlockQuantized';
  const embeddings = needed.filter((node) => isPick(node) && graph.tensor(node.inputs[0])?.dims.length === 2);
  const used = new Set(needed.flatMap((node) => node.inputs));
  const inputs = model.inputs.filter((input) => used.has(input.name));
  const ids = inputs.find((input) => embeddings.some((node) => graph.origin(node.inputs[1]) === input.name));
  if (ids === undefined)
    throw fail(
      'a token embedding that an input picks rows of',
      `the inputs ${inputs.map((input) => input.name).join(', ') || 'none'}`,
    );
  const masks = inputs.filter((input) => input !== ids);
  return {
    graph,
    ids,
    masks,
    readOut,
    contextLength: positionCount(graph, block.norm.output, block.norm.weight.dims[0]),
  };
}

/**
 * The text tower with one row for each token. In: the file's own inputs, one text at a time. Out: `desap.text_tokens`
 * [T, E], the final norm's rows times the text projection, and `desap.text_embedding` [1, E], the row that the file picks;
 * both float32.
 */
export function textGraph({ graph, readOut }: TextStructure): EditedGraph {
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
  return cut(graph.model, {
    outputs: [TEXT_TOKENS, TEXT_EMBEDDING],
    nodes: [
      newNode({ op: 'Flatten', inputs: [norm.output], outputs: ['desap.rows'], attributes: { axis: { i: 2 } } }),
      newNode({
        op: 'Cast',
        inputs: ['desap.rows'],
        outputs: [rename(projection.input)],
        attributes: { to: { i: graph.elementType(projection.input) } },
      }),
      ...replayed.map((node) => renamed(node, rename)),
      toFloat(rename(projection.output), TEXT_TOKENS),
      toFloat(projection.output, TEXT_EMBEDDING),
    ],
  });
}

/** Whether token ids are given as 64-bit numbers. */
export const isInt64 = (value: OnnxValue): boolean => value.type === DataType.int64;
