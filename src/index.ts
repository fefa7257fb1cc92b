export type { AsyncKernels, Backend, Kernels, Vector } from './backend/backend.js';
export { openBackend } from './backend/backend.js';
export type { Device, DeviceOptions, DeviceReport, Isa } from './backend/devices.js';
export { devices } from './backend/devices.js';
export type { Precision } from './backend/driver.js';
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
  TextTokens,
} from './pruner.js';
export { ImageAnalysis, Pruner } from './pruner.js';
export type { TensorLike } from './tensor.js';
