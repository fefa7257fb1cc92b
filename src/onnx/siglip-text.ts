import { DesapError } from '../errors.js';
import { cut, type EditedGraph } from './edit.js';
import { Builder } from './format/builder.js';
import { type ModelSource, readModel } from './format/model.js';
import { findBlocks } from './search/attention.js';
import { Graph } from './search/graph.js';
import { Linears } from './search/linear.js';
import { Norms } from './search/norm.js';
import { positionCount } from './search/positions.js';
import { type TokenInputs, tokenInputs } from './search/token-inputs.js';
import { operators } from './tower.js';

/** What a structural search found in the graph of a SigLIP text tower. */
export interface SiglipTextStructure extends TokenInputs {
  readonly graph: Graph;
  /** The pooled row of a text, [batch, E], an output of the file. */
  readonly pooled: string;
  /** Tokens that the position embedding has rows for; null when it was not found. */
  readonly contextLength: number | null;
}

/** Name of the value that {@link siglipTextGraph} hands out. */
export const POOLED_TEXT = 'desap.pooled_text';

/**
 * Describes the text tower of an ONNX file: a SigLIP or SigLIP2 `text_model.onnx`, from any exporter.
 *
 * @throws DesapError `ERR_FILE` when it is no ONNX file; `ERR_GRAPH` when it holds no such tower, with what was found
 */
export function readSiglipText(source: ModelSource, name?: string): SiglipTextStructure {
  const model = readModel(source, name);
  const graph = new Graph(model);
  const isText = (value: string) => graph.sourcesOf(value).integers && !graph.sourcesOf(value).floats;
  // The pooled row is made of the rows of all tokens: it stands behind them.
  const outputs = model.outputs.filter((output) => isText(output.name));
  const [pooled] = [...outputs].sort((a, b) => graph.depth(b.name) - graph.depth(a.name));
  if (pooled === undefined)
    throw new DesapError(
      'ERR_GRAPH',
      `${model.name}: looked for an output that depends on token ids; found the operators ${operators(model)}`,
    );
  const inputs = tokenInputs(graph, pooled.name, []);
  const [first] = findBlocks(graph, new Linears(graph), new Norms(graph)).blocks;
  const apart = new Set([inputs.ids, ...inputs.types].map(({ name: input }) => input));
  const fixed = inputs.ids.dims?.[1];
  const table = first && positionCount(graph, first.norm.output, first.norm.weight.dims[0], apart);
  return {
    graph,
    ...inputs,
    pooled: pooled.name,
    contextLength: typeof fixed === 'number' && fixed > 0 ? fixed : (table ?? null),
  };
}

/** The text tower with its pooled row, `desap.pooled_text` float32, alone among its outputs. */
export function siglipTextGraph({ graph, pooled }: SiglipTextStructure): EditedGraph {
  const builder = new Builder(graph.model.opset);
  return cut(graph.model, { outputs: [builder.float(pooled, POOLED_TEXT)], nodes: builder.nodes });
}
