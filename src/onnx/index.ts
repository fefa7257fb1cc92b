/**
 * ONNX files of vision-language models: their structure, parts of them as graphs of their own, and DeSAP's head.
 * Everything is found by structure, never by name, and can be confirmed by numbers. Nothing is written to disk.
 */
import { disableTelemetry } from '../telemetry.js';

export type { Cut, EditedGraph, OrtModule } from './edit.js';
export { cut, expose, openGraph } from './edit.js';
export type { Attribute, OnnxNode, OnnxValue } from './format/messages.js';
export type { ModelFile, ModelSource, OnnxModel } from './format/model.js';
export { readModel } from './format/model.js';
export type { StoredTensor, TensorData } from './format/stored-tensor.js';
export type { GraphNode, NewNode } from './format/write.js';
export { newNode } from './format/write.js';
export type { ConfirmOptions, HeadConfirmation, TowerConfirmation } from './head/confirm.js';
export { confirmHead, confirmTower } from './head/confirm.js';
export type { HeadSource } from './head/extract.js';
export { extractHead } from './head/extract.js';
export type { Block, Projection } from './search/attention.js';
export { Graph } from './search/graph.js';
export type { Linear, Matrix, Part, Vector } from './search/linear.js';
export type { Norm } from './search/norm.js';
export type { ReadOut } from './search/read-out.js';
export { HIDDEN_STATES, IMAGE_FEATURES, PATCHES, projectorGraph, towerGraph } from './split.js';
export type { TextStructure } from './text.js';
export { readText, TEXT_EMBEDDING, TEXT_TOKENS, textGraph } from './text.js';
export type { Projector, TowerStructure } from './tower.js';
export { readTower } from './tower.js';

disableTelemetry(); // before the first session: openGraph makes one
