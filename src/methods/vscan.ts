/**
 * VScan, its first stage: patches by class attention in each window of an early block, then by that of the last but one block over the whole
 * image. The others are merged into the nearest of them, by default in the connector's space.
 */
import { finite, integer, oneOf } from '../tensor.js';
import { among, dropped, merged } from './choice.js';
import { type Grid, method } from './method.js';
import { largest, others } from './ranks.js';
import { classAttention } from './tapped.js';

const SPACES = ['projected', 'hidden', 'none'] as const;

export interface VScanOptions {
  /** Share of K that the windows choose, from 0 to 1; default 0.5. */
  readonly localShare?: number;
  /** Windows on each side; default 4. */
  readonly windows?: number;
  /** Where patches are compared and averaged: `projected` (default), behind the connector; `hidden`; `none`: they are dropped. */
  readonly mergeSpace?: (typeof SPACES)[number];
}

export const vscan = method<VScanOptions>(
  { localShare: true, windows: true, mergeSpace: true },
  ({ localShare = 0.5, windows = 4, mergeSpace = 'projected' }) => {
    finite('localShare', localShare, 0, 1);
    integer('windows', windows, 1, 2 ** 15);
    oneOf('mergeSpace', mergeSpace, SPACES);
    return {
      taps: ['local', 'penultimate'],
      isAsked: false,
      async choose(image, keep) {
        const [local, saliency] = [await classAttention(image, 'local'), await classAttention(image, 'penultimate')];
        const byWindow = ofWindows(local, image.grid, { count: Math.floor(keep * localShare), windows });
        const global = largest(saliency, keep - byWindow.length, others(saliency.length, byWindow));
        const kept = Int32Array.from([...byWindow, ...global]).sort();
        const further = { source: among(kept, byWindow), scores: { local, saliency } };
        if (mergeSpace === 'none') return dropped(kept, image.states(), further);
        if (mergeSpace === 'hidden') return merged(image, kept, image.states(), further);
        return merged(image, kept, await image.features(), { ...further, isProjected: true });
      },
    };
  },
);

/** The highest of each of s x s windows, as many of each; fewer windows than there are patches to choose. */
function ofWindows(
  scores: Float64Array,
  { rows: h, columns: w }: Grid,
  { count, windows }: { readonly count: number; readonly windows: number },
): number[] {
  const s = Math.min(windows, Math.floor(Math.sqrt(count)), h, w);
  const members: number[][] = Array.from({ length: s * s }, () => []);
  if (s === 0) return [];
  scores.forEach((_, patch) => {
    const [y, x] = [Math.floor(patch / w), patch % w];
    members[Math.floor((y * s) / h) * s + Math.floor((x * s) / w)].push(patch);
  });
  return members.flatMap((window) => [...largest(scores, Math.floor(count / (s * s)), window)]);
}
