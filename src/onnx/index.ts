/**
 * ONNX files of vision-language models: their towers, parts of them as graphs of their own, and DeSAP's head.
 * Everything is found by structure, never by name, and can be confirmed by numbers. Nothing is written to disk.
 *
 * @module desap/onnx
 */
import { disableTelemetry } from '../telemetry.js';

export type { EditedGraph, OrtModule } from './edit.js';
export { openGraph } from './edit.js';
export type { OnnxValue } from './format/messages.js';
export type { ModelSource, OnnxModel } from './format/model.js';
export { readModel } from './format/model.js';
export type { ConfirmOptions, HeadConfirmation, TowerConfirmation } from './head/confirm.js';
export { confirmHead, confirmTower } from './head/confirm.js';
export type { HeadSource } from './head/extract.js';
export { extractHead } from './head/extract.js';
export { HIDDEN_STATES, IMAGE_FEATURES, PATCHES, projectorGraph, towerGraph } from './split.js';
export type { Projector, TowerStructure } from './tower.js';
export { readTower } from './tower.js';

disableTelemetry(); // before the first session: openGraph makes one
