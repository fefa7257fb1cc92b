/** Questions that are encoded while an image is. */
import { isRival, rivalOf } from '../methods/rival.js';
import { visionPruneOptions } from './image-base.js';
import { asQuestion, rethrow } from './prune-together.js';
import type { EncodedImage, PrunedFeatures, Question, VisionModel, VisionPruneOptions } from './vision-model.js';

/**
 * Begins to encode the question of an image that is yet to be encoded, where the model does so in another thread.
 *
 * @param options with which it will be pruned: not every method asks
 * @returns prunes the image, as `EncodedImage.prune`; `timings.text` is how long it waited for the question
 * @throws DesapError `ERR_VALUE` for the options
 */
export function askAhead(
  vision: Pick<VisionModel, 'questionsBeside' | 'encodeQuestion'>,
  question: Question,
  options: VisionPruneOptions | undefined,
): (image: EncodedImage, options: VisionPruneOptions | undefined) => Promise<PrunedFeatures> {
  if (!vision.questionsBeside || typeof question !== 'string' || !asks(visionPruneOptions('options', options)))
    return (image, how) => image.prune(question, how);
  const asked = vision.encodeQuestion(question);
  asked.catch(() => {}); // It is told where it is waited for.
  return async (image, how) => {
    const start = performance.now();
    const text = await asked.catch(rethrow(asQuestion));
    const waited = performance.now() - start;
    const pruned = await image.prune(text, how);
    return { ...pruned, timings: { ...pruned.timings, text: waited } };
  };
}

function asks(options: VisionPruneOptions): boolean {
  return !isRival(options) || rivalOf(options).isAsked;
}
