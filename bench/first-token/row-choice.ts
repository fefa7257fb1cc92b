/** What the choice of rows that stay in a tower takes, beside a block that the tower then runs on fewer of them. */
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { openBackend } from '../../src/index.js';
import { DataType } from '../../src/onnx/format/proto.js';
import { atRest } from '../../src/vision/session.js';
import { normal, tensor } from '../data.js';
import { EncoderBlocks } from '../encoder-blocks.js';
import { ratios, type Spread, spread } from '../harness.js';
import { RandomModel, temporaryFolder } from '../onnx-models.js';
import type { Clock } from './clock.js';

export interface RowChoice {
  readonly rows: number;
  readonly width: number;
  readonly picks: number;
  /** Milliseconds. */
  readonly choice: Spread;
  readonly block: Spread;
  readonly ofBlock: Spread;
}

const ROUNDS = 15;
const [INPUT, OUTPUT] = ['rows', 'ends'];

/** SigLIP base on a tile of 512 pixels: a quarter of its rows by farthest points, and one block on all of them, in turn. */
export async function timeRowChoice(isSmall: boolean, now: Clock): Promise<RowChoice> {
  const [rows, width, heads] = isSmall ? [64, 64, 4] : [1024, 768, 12];
  const picks = rows / 4;
  const graph = new RandomModel();
  graph.inputs = [{ name: INPUT, type: DataType.float, dims: [1, rows, width] }];
  const build = new EncoderBlocks(graph, { kind: 'siglip', width, heads, intermediate: 4 * width }, { batched: true });
  graph.outputs = [build.block(INPUT, null, { rows: OUTPUT })];
  const path = join(temporaryFolder(), 'block.onnx');
  await graph.writeWhole(path);
  const session = await ort.InferenceSession.create(path, atRest());
  const feeds = { [INPUT]: new ort.Tensor('float32', normal(3, rows * width), [1, rows, width]) };
  const backend = openBackend({ device: 'cpu' });
  const x = tensor(3, rows, width);
  const timed = async (run: () => Promise<unknown>) => {
    const start = now();
    await run();
    return now() - start;
  };
  const [choices, blocks]: number[][] = [[], []];
  for (let round = 0; round <= ROUNDS; round++) {
    const [choice, block] = [
      await timed(() => backend.farthestPoints({ x, count: picks })),
      await timed(() => session.run(feeds)),
    ];
    if (round === 0) continue;
    choices.push(choice);
    blocks.push(block);
  }
  backend.dispose();
  await session.release();
  const ofBlock = ratios(choices, blocks);
  return { rows, width, picks, choice: spread(choices), block: spread(blocks), ofBlock };
}
