import { join } from 'node:path';
import type { InferenceSession } from 'onnxruntime-common';
import type { BlockWeights, OptionalBias } from '../block-weights.js';
import { DesapError, mismatch } from '../errors.js';
import { isFile } from '../files.js';
import type { Backend } from '../index.js';
import type { OrtModule } from '../onnx/edit.js';
import { readSiglip, type SiglipVision } from '../onnx/head/siglip.js';
import { siglipFromCheckpoint } from '../onnx/head/siglip-checkpoint.js';
import { warnOnce } from '../warn.js';

/** Where a folder has a SigLIP's vision tower: an ONNX file, whose numbers can be checked, or the weights alone. */
const ONNX = ['onnx/vision_model.onnx', 'vision_model.onnx', 'onnx/model.onnx', 'model.onnx'];
const WEIGHTS = ['model.safetensors', 'model.safetensors.index.json'];

/**
 * The pooling head of a SigLIP folder, and its last blocks.
 * @throws DesapError `ERR_FILE` with all places that were looked at; those of {@link readSiglip} and {@link siglipFromCheckpoint}
 */
export async function readSiglipFolder(
  ort: OrtModule,
  folder: string,
  options: { backend: Backend; session?: InferenceSession.SessionOptions },
): Promise<SiglipVision> {
  for (const place of ONNX) if (await isFile(join(folder, place))) return readSiglip(ort, join(folder, place), options);
  for (const place of WEIGHTS) if (await isFile(join(folder, place))) return siglipFromCheckpoint(join(folder, place));
  const [first, ...others] = [...ONNX, ...WEIGHTS];
  throw new DesapError(
    'ERR_FILE',
    `${join(folder, first)}: got no such file (nor ${others.join(', ')}), wanted the vision tower of a SigLIP`,
  );
}

/** How a tower and a SigLIP's head go together. */
export interface SiglipFit {
  /** The block whose attention goes into the head. */
  readonly block: BlockWeights;
  /** Whether that block follows the last one of the tower, which ends in front of it. */
  readonly beyond: boolean;
}

/** Weights that differ by more, relative to their root mean square, were tuned: a message says so. */
const SAME = 1e-3;
/** Weights of one size that have nothing to do with each other differ by its square root of 2. */
const RELATED = 0.5;

/**
 * Finds which of a SigLIP's blocks is the last one of a tower: its last, or, where the tower leaves that out, the one in front of it.
 * Warns, once, where the tower's differs from the public one.
 *
 * @param last the tower's own last block
 * @param folder what the caller named
 * @throws DesapError `ERR_HEAD_MISMATCH` where neither is
 */
export function fitSiglip(last: BlockWeights, siglip: SiglipVision, folder: string): SiglipFit {
  const { head, blocks } = siglip;
  if (last.width !== blocks[0].width || last.heads !== siglip.heads || last.norm !== 'layer')
    throw mismatch(
      'ERR_HEAD_MISMATCH',
      'siglip',
      `a SigLIP of ${blocks[0].width} columns and ${siglip.heads} heads in ${folder}`,
      `the one that the vision encoder is: ${last.width} columns, ${last.heads} heads, a layer norm`,
    );
  const [own, before] = blocks.map((block) => distance(last, block));
  const beyond = before < own;
  const error = Math.min(own, before);
  if (!(error <= RELATED))
    throw mismatch(
      'ERR_HEAD_MISMATCH',
      'siglip',
      `${folder}, whose last blocks differ from the vision encoder's by ${error.toPrecision(2)} of their size`,
      'the SigLIP that the vision encoder was made from',
    );
  if (last.epsilon !== siglip.epsilon)
    throw mismatch(
      'ERR_HEAD_MISMATCH',
      'siglip',
      `${folder}, whose layer norms have an epsilon of ${siglip.epsilon}`,
      `${last.epsilon}, as the vision encoder's have`,
    );
  if (error > SAME)
    warnOnce(
      'DESAP_SIGLIP',
      `the vision encoder differs from ${folder} by ${error.toPrecision(2)} of the weights' size: it was tuned, or its weights are rounded, and nothing says how well the public read-out fits it`,
    );
  const block = beyond ? blocks[0] : last;
  return { block: { ...block, siglip: head }, beyond };
}

/** The root mean square of the difference of two blocks' weights, over that of the weights; each layer by itself, the largest. */
function distance(a: BlockWeights, b: BlockWeights): number {
  const layer = (one: OptionalBias, other: OptionalBias) => {
    let [difference, size] = [0, 0];
    for (let i = 0; i < other.weight.length; i++) {
      difference += (one.weight[i] - other.weight[i]) ** 2;
      size += other.weight[i] ** 2;
    }
    return Math.sqrt(difference / size);
  };
  return Math.max(layer(a.q, b.q), layer(a.k, b.k), layer(a.v, b.v), layer(a.out, b.out));
}
