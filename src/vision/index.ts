/**
 * Pruning inside of pipelines over plain onnxruntime-node: vision models that prune, the shortened prompt that goes with
 * their tokens, and images to `pixel_values`.
 */

export type { ClipTextOptions, EncodedText, LongText } from './clip-text.js';
export { ClipText } from './clip-text.js';
export type { CompactOptions, CompactPrompt, KeptPatches, Positions } from './compact.js';
export { compact } from './compact.js';
export type { ImageProcessorConfig, ImageSource, Pixels, RgbImage } from './image-processor.js';
export { ImageProcessor } from './image-processor.js';
export type { PrunedFeatures, PrunedVisionOptions, VisionPruneOptions, VisionTimings } from './llava.js';
export { PrunedVision, VisionAnalysis } from './llava.js';
