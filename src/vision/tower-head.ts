import type { InferenceSession } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import { type HeadWeights, loadHead } from '../index.js';
import { confirmBoth } from '../onnx/head/confirm.js';
import type { OpenTower } from '../onnx/head/trial.js';
import { extractHead, type OrtModule, readModel, type TowerStructure } from '../onnx/index.js';
import { object } from '../tensor.js';
import { clipFile } from './clip-folder.js';

/** Where the head of a tower comes from. */
export interface HeadOrigin {
  readonly clip: string;
  readonly head?: string | HeadWeights;
  readonly session?: InferenceSession.SessionOptions;
}

/**
 * The head for a LLaVA vision tower: the given one, or that of the CLIP folder's vision tower. The CLIP file is run
 * once, against the head and against the tower. A given head can only be checked by its shape.
 *
 * @throws DesapError `ERR_HEAD_MISMATCH`, `ERR_FILE`, `ERR_GRAPH`
 */
export async function towerHead(
  ort: OrtModule,
  visionEncoder: string,
  tower: OpenTower,
  { clip, head: given, session }: HeadOrigin,
): Promise<HeadWeights> {
  if (given !== undefined) {
    const head =
      typeof given === 'string' ? await loadHead(given) : object('head', given, 'a head: its path or weights');
    requireFit(head, tower.structure, visionEncoder);
    return head;
  }
  const visionModel = await clipFile(clip, 'vision', ', or the option head (made by: desap extract)');
  const model = readModel(visionModel);
  const head = await extractHead({ visionModel: model });
  await confirmBoth(ort, tower, model, head, { session });
  return head;
}

/**
 * Checks the shape of a head against that of a tower.
 * @throws DesapError `ERR_HEAD_MISMATCH`
 */
export function requireFit(
  head: Pick<HeadWeights, 'width' | 'classToken'>,
  { width, classToken }: TowerStructure,
  name: string,
): void {
  if (head.width === width && head.classToken === classToken) return;
  const describe = (d: number, cls: boolean) => `width ${d} ${cls ? 'with' : 'without'} class token`;
  throw new DesapError(
    'ERR_HEAD_MISMATCH',
    `head: got ${describe(head.width, head.classToken)}, wanted ${describe(width, classToken)} as in ${name}`,
  );
}
