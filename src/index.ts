export type { Precision } from './devices/driver.js';
export type { AsyncKernels, Backend, Kernels, Vector } from './devices/kernel-api.js';
export { openBackend } from './devices/kernel-api.js';
export type { Device, DeviceOptions, DeviceReport, Isa } from './devices/open.js';
export { devices } from './devices/open.js';
export type { DesapErrorCode } from './errors.js';
export { DesapError } from './errors.js';
export type { HeadWeights, LinearWeights } from './head.js';
export { formatHead, loadHead, saveHead } from './head.js';
export type { HostBufferOptions, HostType } from './host-buffer.js';
export { HostBuffer } from './host-buffer.js';
export type { Alignment, Encoding } from './kernels/kernels.js';
export type {
  AnalyzeOptions,
  AnalyzeTimings,
  BatchOptions,
  PruneOptions,
  PruneResult,
  PruneTimings,
  TextEmbeddings,
} from './pruner.js';
export { ImageAnalysis, Pruner } from './pruner.js';
export type { TensorLike } from './tensor.js';
