/**
 * Pruning inside of a loaded Transformers.js model: `attach(model, ...)`, and the user's own code stays as it is.
 * Neither Transformers.js nor ONNX Runtime is imported here: both are those of the model that is handed over.
 *
 * @module desap/transformers
 */
import { disableTelemetry } from '../telemetry.js';

export type { Positions } from '../vision/compact.js';
export type { Detach } from './attach.js';
export { attach } from './attach.js';
export type { LoadedModel } from './model.js';
export type { AttachOptions, CallOptions, Keep, PrunedImage, Question } from './options.js';

disableTelemetry(); // in time, where this module is loaded before the model is
