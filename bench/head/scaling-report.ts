/** How the head's cost grows, as Markdown. */
import { number, range, type Spread } from '../harness.js';
import { SCALING_THREADS, type Scaling, SERIES } from './scaling.js';

const share = ({ median, low, high }: Spread) => `${median.toFixed(3)} (${low.toFixed(3)} - ${high.toFixed(3)})`;

export function scalingReport({ points, dropped, question, blocked, scratch }: Scaling): string[] {
  const rounds = [...new Set(points.map((point) => point.rounds))].sort((a, b) => b - a);
  return [
    '## As the work grows',
    '',
    `${SCALING_THREADS} threads. One image of ${points[0].shape.rows} rows unless said otherwise; as many kept as 64 of 576. Medians of ${rounds.join(' rounds, of the longest calls ')} (10th to 90th percentile; ${dropped}`,
    'dropped). Shares of both peaks as above; efficiency: share of the peak by that of one image of LLaVA-1.5 in the same rounds.',
    '',
    '| | | GFLOP | ms | ns per row | share of the peak | of the peak with loads | efficiency |',
    '|---|---|---|---|---|---|---|---|',
    ...Object.entries(SERIES).flatMap(([series, title]) =>
      points
        .filter((point) => point.series === series)
        .map(({ x, gflop, ms, nanosecondsPerRow, shares, efficiency }, i) => {
          const measures = [
            number(gflop),
            range(ms),
            number(nanosecondsPerRow),
            share(shares.registers),
            share(shares.loaded),
          ];
          return `| ${[i === 0 ? title : '', x, ...measures, efficiency ? share(efficiency) : ''].join(' | ')} |`;
        }),
    ),
    '',
    '![time, share of the peak, images, kept patches and text tokens](head-scaling.svg)',
    '',
    `**A further question** on an image that was analysed before: ${range(question.question)} ms; the analysis ${range(question.analyze)} ms, ${range(question.ratio)} times as long.`,
    '',
    '**The event loop** is blocked by an asynchronous call, milliseconds (one thread computes):',
    '',
    '| hidden states in | until it returns its promise | the turn in which that is fulfilled | both |',
    '|---|---|---|---|',
    ...blocked.map(
      ({ memory, call, completion, both }) =>
        `| ${[memory, range(call), range(completion), range(both)].join(' | ')} |`,
    ),
    '',
    ...scratch.map(
      ({ rows, width, megabytes }) =>
        `**Memory** for an image of ${rows} rows of width ${width} in flight: ${megabytes === null ? 'not measured, the system does not tell' : `${number(megabytes)} MB`}.`,
    ),
    '',
  ];
}
