/**
 * FlowCut score: class attention and likeness of values, each as a share, times the strength of a patch's mean value; over several blocks a
 * running mean. The published FlowCut cuts between blocks and scores what is left; a graph's outputs cannot have that.
 */
import { MERGING, type MergingOption, mergingOf, selected } from './choice.js';
import { checkTaps, type MethodImage, method, TAPS, type TapName } from './method.js';
import { largest, sum } from './ranks.js';
import { TappedBlock } from './tapped.js';

export interface FlowCutOptions extends MergingOption {
  /** Blocks whose scores are taken, in the order of the tower; default ['penultimate']. */
  readonly taps?: readonly TapName[];
}

export const flowcut = method<FlowCutOptions>({ ...MERGING, taps: true }, ({ taps = ['penultimate'], ...given }) => {
  checkTaps(taps, 1);
  const merging = mergingOf(given);
  const inOrder = TAPS.filter((tap) => taps.includes(tap));
  return {
    taps: inOrder,
    isAsked: false,
    async choose(image, keep) {
      let total: Float64Array | null = null;
      for (const tap of inOrder) {
        const score = await scoreOf(image, tap);
        total = total === null ? score : total.map((one, i) => one / 2 + score[i] / 2);
      }
      const score = total as Float64Array;
      return selected(image, largest(score, keep), { merging, scores: { score } });
    },
  };
});

/** (r / sum r + u / sum u) |mean_h V_i,h|_1, where r is the class attention and u that of its values. */
async function scoreOf(image: MethodImage, name: TapName): Promise<Float64Array> {
  const tap = await TappedBlock.of(image, name);
  const [r, u, V] = [await tap.attention(), await tap.valueAttention(), await tap.meanValues()];
  const [sumOfR, sumOfU] = [sum(r), sum(u)];
  return r.map((one, i) => {
    const strength = sum(V.data.subarray(i * V.cols, (i + 1) * V.cols).map(Math.abs));
    return (one / sumOfR + u[i] / sumOfU) * strength;
  });
}
