/**
 * CDPruner: the most probable set of a determinantal point process over the patches, L_ij = g_i cos_ij g_j, chosen greedily. g is how
 * relevant a patch is to the question, from 0 to 1; cos that of the connector's features.
 */

import { mismatch } from '../errors.js';
import { finite, oneOf } from '../tensor.js';
import { MERGING, type MergingOption, mergingOf, selected } from './choice.js';
import { rowsOf, tensor } from './matrix.js';
import { type MethodImage, method } from './method.js';
import { cosineRelevance, RELEVANCES, type Relevance } from './relevance.js';

export interface CdPrunerOptions extends MergingOption {
  /** Default `negative`, as published for CLIP; see docs/methods.md. */
  readonly relevance?: Relevance;
  /** g = exp(theta / (2 (1 - theta)) g), above 0 and below 1, as OpenVINO's prototype had it; unset: g as it is. */
  readonly theta?: number;
  /** w from 0 to 1: L = (1 - w) S + w g S g, as OpenVINO GenAI has it; unset: g S g. */
  readonly blend?: number;
  /** 2: the upper and the lower half of the raster are chosen from apart, floor(K / 2) of the upper; default 1. */
  readonly split?: 1 | 2;
}

/** Keeps g off zero. */
const SMALL = 1e-6;

export const cdpruner = method<CdPrunerOptions>(
  { ...MERGING, relevance: true, theta: true, blend: true, split: true },
  ({ relevance = 'negative', theta, blend, split = 1, ...given }) => {
    oneOf('relevance', relevance, RELEVANCES);
    if (theta !== undefined) finite('theta', theta, 0, 1 - 2 ** -20);
    if (blend !== undefined) finite('blend', blend, 0, 1);
    if (theta !== undefined && blend !== undefined)
      throw mismatch('ERR_VALUE', 'theta', 'blend beside it', 'one of the two');
    if (split !== 1 && split !== 2) throw mismatch('ERR_VALUE', 'split', String(split), '1 or 2');
    const merging = mergingOf(given);
    return {
      taps: [],
      isAsked: true,
      async choose(image, keep) {
        const scores = await cosineRelevance(image, relevance);
        const P = scores.length;
        const halves =
          split === 1
            ? [[0, P, keep]]
            : [
                [0, Math.floor(P / 2), Math.floor(keep / 2)],
                [Math.floor(P / 2), P, Math.ceil(keep / 2)],
              ];
        const picked: number[] = [];
        for (const [from, to, count] of halves)
          if (count > 0) picked.push(...(await greedily(image, scores, { from, to, count })));
        return selected(image, picked, { merging, picked: Int32Array.from(picked), scores: { relevance: scores } });
      },
    };

    /** The patches chosen of [from, to). */
    async function greedily(
      image: MethodImage,
      scores: Float64Array,
      { from, to, count }: { readonly from: number; readonly to: number; readonly count: number },
    ): Promise<number[]> {
      const features = rowsOf(
        await image.features(),
        Array.from({ length: to - from }, (_, i) => from + i),
      );
      const g = Float32Array.from(gains(scores.subarray(from, to)));
      const chosen = await image.backend.dpp({
        x: tensor(features),
        relevance: g,
        count,
        ...(blend !== undefined && { blend }),
      });
      return Array.from(chosen, (i) => from + i);
    }

    /** Relevance from 0 to 1. */
    function gains(rel: Float64Array): Float64Array {
      const [min, max] = [Math.min(...rel), Math.max(...rel)];
      if (blend !== undefined) return rel.map((one) => (one - min) / (max - min + SMALL));
      const g = max === min ? rel.map(() => 1) : rel.map((one) => (one - min + SMALL) / (max - min));
      if (theta === undefined) return g;
      const most = Math.max(...g); // a factor of all of L, which changes no choice and stays within float32
      return g.map((one) => Math.exp((theta / (2 * (1 - theta))) * (one - most)));
    }
  },
);
