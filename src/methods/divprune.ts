/** DivPrune: the patches that lie farthest from each other, by 1 - cosine of the connector's features. */
import { MERGING, type MergingOption, mergingOf, selected } from './choice.js';
import { tensor } from './matrix.js';
import { method } from './method.js';

export interface DivPruneOptions extends MergingOption {}

export const divprune = method<DivPruneOptions>(MERGING, (given) => {
  const merging = mergingOf(given);
  return {
    taps: [],
    isAsked: false,
    async choose(image, keep) {
      const x = tensor(await image.features());
      const picked = await image.backend.farthestPoints({ x, seeds: null, count: keep });
      return selected(image, picked, { merging, picked });
    },
  };
});
