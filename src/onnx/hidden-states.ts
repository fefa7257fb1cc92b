import { cut, type EditedGraph } from './edit.js';
import { Builder } from './format/builder.js';
import { type ModelSource, readModel } from './format/model.js';
import { Graph } from './search/graph.js';
import { findLastBlock } from './search/last-block.js';
import { HIDDEN_STATES } from './split.js';

/** The output of {@link withHiddenStates} that is the file's own. */
export const FILE_FEATURES = 'desap.file_features';

/**
 * A whole vision encoder that also hands out the rows that its last block ends with.
 * In: the file's own inputs. Out: `desap.file_features`, the file's first output, and `desap.hidden_states`, as the file has them; float32.
 *
 * @throws DesapError `ERR_FILE`; `ERR_GRAPH` where no last block is found
 */
export function withHiddenStates(source: ModelSource): EditedGraph {
  const model = readModel(source);
  const [{ name }] = model.outputs;
  const { end, graph } = findLastBlock(new Graph(model), name);
  const builder = new Builder(graph.model.opset);
  const outputs = [
    builder.float(name, FILE_FEATURES),
    builder.float(end.value ?? builder.sum(...(end.summands as [string, string])), HIDDEN_STATES),
  ];
  return cut(graph.model, { outputs, nodes: builder.nodes });
}
