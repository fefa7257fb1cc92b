import type { InferenceSession } from 'onnxruntime-common';
import { DesapError } from '../errors.js';
import { type HeadWeights, loadHead } from '../index.js';
import { confirmBoth } from '../onnx/head/confirm.js';
import type { OpenTower } from '../onnx/head/trial.js';
import { extractHead, type OrtModule, readModel, type TowerStructure } from '../onnx/index.js';
import { object } from '../tensor.js';
import { warnOnce } from '../warn.js';
import { clipFile } from './clip-folder.js';

/** Where the head of a tower comes from. */
export interface HeadOrigin {
  readonly clip: string;
  readonly head?: string | HeadWeights;
  readonly session?: InferenceSession.SessionOptions;
  /** Whether models of the family have towers that were trained further; such a one is warned of, once. */
  readonly tuned?: boolean;
}

/**
 * How far the hidden states of a tower that was trained further may lie from CLIP's, relative to the largest. Those of another tower lie
 * about as far as they are large.
 */
const TUNED = 0.25;

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
  { clip, head: given, session, tuned }: HeadOrigin,
): Promise<HeadWeights> {
  if (given !== undefined) {
    const head = await givenHead(given);
    requireFit(head, tower.structure, visionEncoder);
    return head;
  }
  const model = readModel(await visionFile(clip));
  const head = await extractHead({ visionModel: model });
  const { error, tolerance } = await confirmBoth(ort, tower, model, head, { session, tuned: tuned ? TUNED : 0 });
  if (error > tolerance) warnOfTuning(error, { visionEncoder, clip });
  return head;
}

/**
 * The same head again, which was confirmed before.
 * @throws DesapError `ERR_FILE`, `ERR_GRAPH`
 */
export async function headAgain({ clip, head }: Pick<HeadOrigin, 'clip' | 'head'>): Promise<HeadWeights> {
  return head === undefined ? extractHead({ visionModel: await visionFile(clip) }) : givenHead(head);
}

async function givenHead(given: string | HeadWeights): Promise<HeadWeights> {
  return typeof given === 'string' ? loadHead(given) : object('head', given, 'a head: its path or weights');
}

function visionFile(clip: string): Promise<string> {
  return clipFile(clip, 'vision', ', or the option head (made by: desap extract)');
}

/** Hidden states of one tower in two forms differ by less. */
const SAME = 1e-3;

/**
 * Warns once of a tower that was trained further than that of its CLIP folder.
 *
 * @param error between hidden states of both, relative to the largest
 * @throws DesapError `ERR_HEAD_MISMATCH` for another tower
 */
export function warnOfTuning(
  error: number,
  { visionEncoder, clip }: { readonly visionEncoder: string; readonly clip: string },
): void {
  const differ = `hidden states differ by ${error.toExponential(1)} relative to the largest`;
  if (!(error <= TUNED))
    throw new DesapError(
      'ERR_HEAD_MISMATCH',
      `${visionEncoder} and ${clip}: ${differ}, wanted at most ${TUNED}: the towers are not the same`,
    );
  if (error > SAME)
    warnOnce(
      'DESAP_TUNED_TOWER',
      `${visionEncoder}: its tower was trained further than that of ${clip} (${differ}): the read-out and the text tower are those of the CLIP that it comes from`,
    );
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
