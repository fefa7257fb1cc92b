/**
 * Pruning inside of pipelines over plain onnxruntime-node: vision models that prune, the shortened prompt that goes with
 * their tokens, and images to `pixel_values`.
 *
 * @module desap/onnxruntime
 */

export type { ClipTextOptions, EncodedText, LongText } from './clip-text.js';
export { ClipText } from './clip-text.js';
export type { CompactOptions, CompactPrompt, KeptPatches, Positions } from './compact.js';
export { compact } from './compact.js';
export type { VisionModelOptions } from './families.js';
export type { ConfiguredSize, ImageProcessorConfig, ImageSource, Pixels, RgbImage } from './image-processor.js';
export { ImageProcessor } from './image-processor.js';
export type { LlavaVisionOptions } from './llava.js';
export { LlavaVision } from './llava.js';
export type { Rows } from './llava-image.js';
export { LlavaImage } from './llava-image.js';
export type { Dtype, ModelConfig } from './model-folder.js';
export { openVisionModel } from './open.js';
export type { QwenVisionOptions } from './qwen.js';
export { QwenImage, QwenVision } from './qwen.js';
export type { SiglipOptions } from './siglip-options.js';
export type { SiglipRows, SiglipTextOptions } from './siglip-text.js';
export { SiglipText } from './siglip-text.js';
export type {
  Budget,
  EncodedImage,
  InputNames,
  PrunedFeatures,
  Question,
  Tile,
  VisionInputs,
  VisionModel,
  VisionPruneOptions,
  VisionTimings,
} from './vision-model.js';
