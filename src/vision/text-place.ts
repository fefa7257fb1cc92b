/** Where questions are encoded: the option `text`. */
import { mismatch } from '../errors.js';
import type { OrtModule } from '../onnx/edit.js';
import { oneOf } from '../tensor.js';
import { threadedOrt } from './session-thread.js';

/** Where a text tower runs: in the caller's thread, or in a worker thread of its own. */
export type TextPlace = (typeof TEXT_PLACES)[number];
export const TEXT_PLACES = ['here', 'worker'] as const;

/** What is said of where a text tower runs. */
export interface TextPlaceOptions {
  /**
   * Where the text tower runs: `here` (default), or in a thread of its own (`worker`), so that a question is encoded while the vision tower
   * runs: ONNX Runtime blocks the thread that a session runs in. The thread takes the installed onnxruntime-node, whatever `ort` is.
   */
  readonly text?: TextPlace;
}

/** @throws DesapError `ERR_VALUE` */
export function checkTextPlace({ text = 'here' }: TextPlaceOptions): void {
  oneOf('text', text, TEXT_PLACES);
}

/**
 * The same for a model whose questions are looked up in a table.
 * @throws DesapError `ERR_VALUE`
 */
export function checkNoTextTower({ text = 'here' }: TextPlaceOptions): void {
  if (text === 'worker')
    throw mismatch(
      'ERR_VALUE',
      'text',
      "'worker' for a model without a text tower",
      "'here', or task: 'siglip' beside it",
    );
}

/**
 * The module that opens a text tower's sessions.
 * @throws DesapError those of {@link threadedOrt}
 */
export async function textOrt({ text }: TextPlaceOptions, ort: OrtModule): Promise<OrtModule> {
  return text === 'worker' ? threadedOrt() : ort;
}
