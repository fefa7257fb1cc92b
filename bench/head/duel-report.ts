/** The duel as Markdown. */
import { LLAVA, range, type Spread } from '../harness.js';
import type { Duel } from './duel.js';
import type { Arithmetic } from './peaks.js';
import { FOREIGN } from './rounds.js';

const times = ({ median, low, high }: Spread) => `${median.toFixed(2)} (${low.toFixed(2)} - ${high.toFixed(2)})`;
const share = ({ median, low, high }: Spread) => `${median.toFixed(3)} (${low.toFixed(3)} - ${high.toFixed(3)})`;
const percent = (x: number) => `${(100 * x).toFixed(1)} %`;

const PRODUCTS: Record<Arithmetic, string> = {
  float32: 'float32 multiply-adds',
  'float32 by AVX2': 'float32 multiply-adds by AVX2',
  bf16: 'bfloat16 products',
};

export function duelReport({ rows, peaks, gflop, rounds, reference, torch, notes }: Duel): string[] {
  const watched = rounds.foreign
    ? `${rounds.dropped} more were dropped because others took over ${percent(FOREIGN)} of the cores' time; in those that count they took ${percent(Math.max(0, rounds.foreign.median))} (median).`
    : 'What others did on the machine was not watched: it has no /proc/stat.';
  const counts = [...new Set(rows.map(({ threads }) => threads))];
  return [
    `LLaVA-1.5's shape: ${LLAVA.rows} rows of width ${LLAVA.width}, ${LLAVA.heads} heads, ${LLAVA.text} text tokens of width ${LLAVA.projectionDim}, ${LLAVA.keep} kept; float32 hidden states in memory to`,
    'merged tokens. All contestants kept the same patches, gave every patch to the same of them, and merged to the same tokens.',
    `Medians of ${rounds.counted} rounds (10th to 90th percentile), contestants in turn; ratios and shares from the same rounds. ${watched}`,
    'Graphs of ONNX Runtime: natural, as an exporter writes the textbook form (all keys, MatMul-Softmax-MatMul, ScatterElements); tuned for it (keys through the class',
    'token only, MultiHeadAttention, one-hot merge); folded, tuned with the read-out as one square product, from weights that our algebra made.',
    ...(torch
      ? [
          `PyTorch ${torch}, in a process of its own that runs once when told and takes the time itself: keys through the class token only, scaled_dot_product_attention,`,
          'one-hot merge; compiled is torch.compile with frozen weights. In bfloat16 it rounds the hidden states on their way to the scores, and merges them in float32.',
        ]
      : []),
    `JavaScript reference: ${reference.counted} rounds of its own (${reference.dropped} dropped).`,
    '',
    '| threads | contestant | ms | times as long as desap | share of the peak | of the peak with loads |',
    '|---|---|---|---|---|---|',
    ...counts.flatMap((count) =>
      rows
        .filter(({ threads }) => threads === count)
        .map(({ threads, contestant, ms, ratio, shares }, i) => {
          const measures = [range(ms), i === 0 ? '' : times(ratio)];
          const parts = shares ? [share(shares.registers), share(shares.loaded)] : ['', ''];
          return `| ${[threads, contestant, ...measures, ...parts].join(' | ')} |`;
        }),
    ),
    '',
    '| threads | peak, GFLOP/s | in registers | with loads |',
    '|---|---|---|---|',
    ...peaks.map(
      (around) =>
        `| ${[around.threads, PRODUCTS[around.arithmetic], range(around.registers), range(around.loaded)].join(' | ')} |`,
    ),
    '',
    `A share is ${gflop.toFixed(2)} GFLOP, the head's work after exact algebra, by the contestant's time and the peak measured right before and after it: that of`,
    'float32 multiply-adds (of AVX2 where no other was used), or of bfloat16 products for bf16, though part of its work stays in float32. The peak in registers is',
    'of products and nothing else. In the one with loads, each two products share an operand that is loaded and an integer addition: twice the instructions, as in a',
    'matrix product. Where it is lower by more than a tenth, something else ran on the same cores, and slowed every matrix product as well.',
    ...notes,
    '',
  ];
}
