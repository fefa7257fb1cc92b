/**
 * ONNX files of vision-language models: their structure, parts of them as graphs of their own, and DeSAP's head.
 * Everything is found by structure, never by name, and can be confirmed by numbers. Nothing is written to disk.
 */
import { disableTelemetry } from '../telemetry.js';

export type { Block, Projection } from './attention.js';
export type { ConfirmOptions, HeadConfirmation, TowerConfirmation } from './confirm.js';
export { confirmHead, confirmTower } from './confirm.js';
export type { Cut, EditedGraph, OrtModule } from './edit.js';
export { cut, expose, openGraph } from './edit.js';
export type { HeadSource } from './extract.js';
export { extractHead } from './extract.js';
export { Graph } from './graph.js';
export type { Linear, Matrix, Part, Vector } from './linear.js';
export type { Attribute, OnnxNode, OnnxValue } from './messages.js';
export type { ModelFile, ModelSource, OnnxModel } from './model.js';
export { readModel } from './model.js';
export type { Norm } from './norm.js';
export type { ReadOut } from './read-out.js';
export { HIDDEN_STATES, IMAGE_FEATURES, PATCHES, projectorGraph, towerGraph } from './split.js';
export type { StoredTensor, TensorData } from './stored-tensor.js';
export type { TextStructure } from './text.js';
export { readText, TEXT_EMBEDDING, TEXT_TOKENS, textGraph } from './text.js';
export type { Projector, TowerStructure } from './tower.js';
export { readTower } from './tower.js';
export type { GraphNode, NewNode } from './write.js';
export { newNode } from './write.js';

disableTelemetry(); // before the first session: openGraph makes one
