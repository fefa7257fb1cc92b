/**
 * Pruning inside of pipelines over plain onnxruntime-node: a pruning vision encoder, the shortened prompt that goes with it,
 * pictures to `pixel_values`, and a small whole LLaVA pipeline.
 */

export type { ClipTextOptions, EncodedText, LongText } from '../text/clip-text.js';
export { ClipText } from '../text/clip-text.js';
export type { Answer, AnswerOptions, AnswerTimings, LlavaOptions, VisualTokens } from './answer.js';
export type { CompactOptions, CompactPrompt, KeptPatches, Positions } from './compact.js';
export { compact } from './compact.js';
export type { ImageProcessorConfig, ImageSource, Picture, Pixels } from './image.js';
export { ImageProcessor } from './image.js';
export { Llava, LlavaImage } from './llava.js';
export type { PromptForm } from './prompt.js';
export type { PrunedFeatures, PrunedVisionOptions, VisionPruneOptions, VisionTimings } from './pruned-vision.js';
export { PrunedVision, VisionAnalysis } from './pruned-vision.js';
