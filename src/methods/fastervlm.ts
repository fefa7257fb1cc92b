/** FasterVLM: the K patches that the class token attends to most, in the last but one block. Its sum over heads ranks as the mean does. */
import { oneOf } from '../tensor.js';
import { MERGING, type MergingOption, mergingOf, selected } from './choice.js';
import { method } from './method.js';
import { largest } from './ranks.js';
import { classAttention } from './tapped.js';

const BLOCKS = ['penultimate', 'last'] as const;

export interface FasterVlmOptions extends MergingOption {
  /** Whose attention: default `penultimate`, as published. */
  readonly tap?: (typeof BLOCKS)[number];
}

export const fastervlm = method<FasterVlmOptions>({ ...MERGING, tap: true }, ({ tap = 'penultimate', ...given }) => {
  oneOf('tap', tap, BLOCKS);
  const merging = mergingOf(given);
  return {
    taps: [tap],
    isAsked: false,
    async choose(image, keep) {
      const saliency = await classAttention(image, tap);
      return selected(image, largest(saliency, keep), { merging, scores: { saliency } });
    },
  };
});
