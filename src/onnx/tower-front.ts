import { cut, type EditedGraph } from './edit.js';
import { Builder } from './format/builder.js';
import { batchFirst, blockOf, enteringStates, floatPixels } from './split.js';
import { checkTower, type TowerStructure } from './tower.js';

/**
 * The part of a vision tower from the image to the hidden states that enter one of its blocks.
 * In: the file's own image input, as float32. Out: `desap.entering_block_b` [batch, N, D] float32, class token included.
 *
 * @throws DesapError `ERR_VALUE` for what is no tower, and for a block that it does not have
 */
export function towerFront(tower: TowerStructure, block: number): EditedGraph {
  const { model } = checkTower(tower).graph;
  const builder = new Builder(model.opset);
  const inputs = floatPixels(builder, tower);
  builder.float(batchFirst(builder, tower, blockOf(tower, block).input), enteringStates(block));
  return cut(model, { inputs, outputs: [enteringStates(block)], nodes: builder.nodes });
}
