/**
 * Pruning of visual tokens by DeSAP's head, on any device, and its kernels one by one.
 *
 * @module desap
 */

export type { Abortable } from './abort.js';
export type { BlockInput, BlockOptions, SiglipReadOut } from './block-head.js';
export { BlockAnalysis, BlockHead } from './block-head.js';
export type { BlockWeights, OptionalBias, SiglipHead } from './block-weights.js';
export { formatBlock, loadBlock, saveBlock } from './block-weights.js';
export type { CudaDevice } from './devices/addon.js';
export type { AnalyzeTimings, Precision, PruneTimings } from './devices/driver.js';
export type { AsyncKernels, Backend, Kernels, MatrixTensors, Vector } from './devices/kernel-api.js';
export { openBackend } from './devices/kernel-api.js';
export type { Device, DeviceOptions, DeviceReport, Isa } from './devices/open.js';
export { devices } from './devices/open.js';
export type { DesapErrorCode } from './errors.js';
export { DesapError } from './errors.js';
export type { HeadWeights, LinearWeights } from './head.js';
export { formatHead, loadHead, saveHead } from './head.js';
export type { HostBufferOptions, HostType } from './host-buffer.js';
export { HostBuffer } from './host-buffer.js';
export type { AnalysisParts } from './image-analysis.js';
export { ImageAnalysis } from './image-analysis.js';
export type { Alignment, Complement, Encoding } from './kernels/kernels.js';
export type { Limits } from './limits.js';
export { limits } from './limits.js';
export type { GivenTaps, MethodOptions, TapInput, TapInputWeights } from './method-input.js';
export type { MethodName, RivalName } from './methods/index.js';
export { tapsOf } from './methods/index.js';
export type { Grid, MethodChoice, TapName } from './methods/method.js';
export type { Layout } from './methods/rival.js';
export type { PruneOptions, Text, TextEmbeddings } from './prune-request.js';
export type { PruneResult } from './prune-result.js';
export type { AnalyzeOptions, BatchOptions, HeadSource, OneGoOptions } from './pruner.js';
export { Pruner } from './pruner.js';
export type { TensorLike } from './tensor.js';
export type { CallEvent } from './trace.js';
export type { Units } from './units.js';
