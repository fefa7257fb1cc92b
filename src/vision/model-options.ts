import type { InferenceSession } from 'onnxruntime-common';
import { invalid } from '../errors.js';
import { Pruner } from '../index.js';
import { checkSession } from '../onnx/edit.js';
import { keepCount } from '../prune-request.js';
import { checkTextPlace, type TextPlaceOptions } from './text-place.js';
import type { Budget } from './vision-model.js';

/** Options that every family has. */
interface SharedOptions extends Budget, TextPlaceOptions {
  readonly pruner?: Pruner;
  readonly session?: InferenceSession.SessionOptions;
}

/**
 * Checks the values of the options that every family has; those of the device are checked where it is opened.
 * @throws DesapError `ERR_VALUE`
 */
export function checkShared({ keep, keepRatio, pruner, session, text }: SharedOptions): void {
  if (keep !== undefined || keepRatio !== undefined) keepCount({ keep, keepRatio });
  if (pruner !== undefined && !(pruner instanceof Pruner)) throw invalid('ERR_VALUE', 'pruner', pruner, 'a Pruner');
  checkSession(session);
  checkTextPlace({ text });
}
