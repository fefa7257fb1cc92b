/**
 * TRIM: the patches whose plain read-out goes with the question, and one token for the mean of all others. Its softmax does not change the
 * ranks, and is only needed where outliers say how many patches are kept.
 */
import { softmax } from '../kernels/numeric.js';
import { boolean, oneOf } from '../tensor.js';
import { hasAggregate, withAggregate, withoutAggregate } from './aggregate.js';
import { rowsOf } from './matrix.js';
import { method } from './method.js';
import { largest, outlierBound } from './ranks.js';
import { productRelevance, RELEVANCES, type Relevance } from './relevance.js';

export interface TrimOptions {
  /** Default `negative`, as published; see docs/methods.md. */
  readonly relevance?: Relevance;
  /** true (default): one of the K tokens is the mean of all dropped patches. */
  readonly aggregate?: boolean;
  /** true: outliers are kept, and the aggregate, and `keep` has no say; default false. */
  readonly adaptive?: boolean;
}

export const trim = method<TrimOptions>(
  { relevance: true, aggregate: true, adaptive: true },
  ({ relevance = 'negative', aggregate = true, adaptive = false }) => {
    oneOf('relevance', relevance, RELEVANCES);
    boolean('aggregate', aggregate);
    boolean('adaptive', adaptive);
    return {
      taps: [],
      isAsked: true,
      isAdaptive: adaptive,
      async choose(image, keep) {
        const X = image.states();
        const scores = await productRelevance(image, relevance);
        const isOne = hasAggregate(aggregate, keep, X.rows);
        const patches = [...largest(scores, adaptive ? countOfOutliers(scores) : keep - Number(isOne))];
        const isGathered = adaptive ? aggregate && patches.length < X.rows : isOne;
        const chosen = { patches, source: () => 0 };
        const tokens = rowsOf(X, patches);
        return isGathered
          ? withAggregate(tokens, X, chosen, (_, dropped) => 1 / dropped, { relevance: scores })
          : withoutAggregate(tokens, X, chosen, { relevance: scores });
      },
    };
  },
);

function countOfOutliers(scores: Float64Array): number {
  const shares = scores.slice();
  softmax(shares);
  const bound = outlierBound(shares);
  return Math.max(1, shares.filter((share) => share > bound).length);
}
