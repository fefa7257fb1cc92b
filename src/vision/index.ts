/**
 * Pruning inside of pipelines over plain onnxruntime-node: vision models that prune, the shortened prompt that goes with
 * their tokens, and images to `pixel_values`.
 *
 * @module desap/onnxruntime
 */

export type { MethodName, RivalName } from '../methods/index.js';
export { tapsOf } from '../methods/index.js';
export type { TapName } from '../methods/method.js';
export type { Anyres, ImageSize, Newline, TileRule } from './anyres.js';
export type { AnyresImageProcessorConfig, AnyresImages } from './anyres-images.js';
export { AnyresImageProcessor } from './anyres-images.js';
export { BlockImage } from './block-image.js';
export { BlockTilesImage } from './block-tiles-image.js';
export type { BlockVisionOptions } from './block-vision.js';
export { BlockVision } from './block-vision.js';
export type { ClipEncoderOptions } from './clip-encoder.js';
export type { ClipTextOptions, EncodedText } from './clip-text.js';
export { ClipText } from './clip-text.js';
export type { Rows } from './clip-tower.js';
export type { CompactOptions, CompactPrompt, KeptPatches, Positions } from './compact.js';
export { compact } from './compact.js';
export type { VisionModelOptions } from './families.js';
export type { VideoFramesOptions } from './frames.js';
export { videoFrames } from './frames.js';
export type { ConfiguredSize, ImageProcessorConfig, ImageSource, Pixels, RgbImage } from './image-processor.js';
export { ImageProcessor } from './image-processor.js';
export type { LlavaVisionOptions } from './llava.js';
export { LlavaVision } from './llava.js';
export { LlavaImage } from './llava-image.js';
export type { LlavaNextVisionOptions } from './llava-next.js';
export { LlavaNextVision } from './llava-next.js';
export type { LongText, LongTextOptions, TextFilter, TextImportance } from './long-text.js';
export type { Dtype, ModelConfig } from './model-folder.js';
export { openVisionModel } from './open.js';
export type { Phi3VisionOptions } from './phi3.js';
export { Phi3Vision } from './phi3.js';
export type { QuestionTokens } from './question-filter.js';
export type { QwenVisionOptions } from './qwen.js';
export { QwenImage, QwenVision } from './qwen.js';
export type { SiglipOptions } from './siglip-options.js';
export type { SiglipEncodedText, SiglipRows, SiglipTextOptions } from './siglip-text.js';
export { SiglipText } from './siglip-text.js';
export type { FilteredText } from './text-filter.js';
export type { TextPlace, TextPlaceOptions } from './text-place.js';
export type { LookRule, TileOptions } from './tile-options.js';
export { TilesImage } from './tiles-image.js';
export type { RowRule, TowerOptions } from './tower-options.js';
export type { ClassRows, VideoLlavaKind, VideoLlavaVisionOptions } from './video-llava.js';
export { VideoLlavaVision } from './video-llava.js';
export type {
  Allocation,
  Budget,
  Distances,
  EncodedImage,
  ImageMarks,
  InputNames,
  Looked,
  Preset,
  PrunedFeatures,
  Question,
  TaskForm,
  Tile,
  TokenMaps,
  VisionInputs,
  VisionModel,
  VisionPruneOptions,
  VisionTimings,
} from './vision-model.js';
export type { Word } from './words.js';
