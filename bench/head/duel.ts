/** The head of LLaVA-1.5 against what else could compute it, on one thread and on two. */
import { Pruner } from '../../src/index.js';
import { relativeError } from '../../test/support.js';
import { head } from '../data.js';
import { LLAVA, range, ratios, type Spread, spread } from '../harness.js';
import { besidePeak, peakShares } from './beside-peak.js';
import { type Contestant, graphsFor, instructionSets, onnxRuntime, ours, question } from './contestants.js';
import { type RoundLimits, runRounds, timed } from './rounds.js';
import { headWork } from './work.js';

const THREADS = [1, 2];
/** A round in which others take more of the cores' time than this does not count. */
const FOREIGN = 0.04;
const LIMITS: RoundLimits = { rounds: 21, limit: 60, foreign: FOREIGN };
/** The JavaScript reference takes seconds. */
const REFERENCE_LIMITS: RoundLimits = { rounds: 3, limit: 9, foreign: FOREIGN };
const QUICK_LIMITS: RoundLimits = { rounds: 2, limit: 2, foreign: Number.POSITIVE_INFINITY };

export interface Row {
  readonly contestant: string;
  readonly threads: number;
  readonly ms: Spread;
  /** How many times longer than our float32 head on the same threads it took, from the same rounds. */
  readonly ratio: Spread;
  /** The head's arithmetic by time and by the peak around it; null for what was not timed beside the peak. */
  readonly peakShare: Spread | null;
}

export interface Duel {
  readonly rows: readonly Row[];
  /** GFLOP/s by number of threads. */
  readonly peaks: readonly { readonly threads: number; readonly gflops: Spread }[];
  readonly gflop: number;
  readonly rounds: { readonly counted: number; readonly dropped: number; readonly foreign: Spread | null };
  readonly reference: { readonly counted: number; readonly dropped: number };
  /** What could not be measured here, and why. */
  readonly notes: readonly string[];
}

/** Runs the duel; fails where the contestants disagree. `quick`: two rounds, whatever else the machine does. */
export async function duel(quick: boolean): Promise<Duel> {
  const weights = head();
  const asked = question();
  const isas = instructionSets();
  const notes: string[] = [];
  const hasBf16 = await offersBf16();
  if (!hasBf16) notes.push('bf16 was not measured: this processor has no bfloat16 products.');
  const narrower = isas.includes('avx512');
  if (!narrower) notes.push('The AVX2 path against the AVX-512 path was not measured: this processor has no AVX-512.');

  const graphs = graphsFor(weights, asked);
  const contestants: Contestant[] = [];
  for (const threads of THREADS) {
    const device = { device: 'cpu', threads } as const;
    contestants.push(await ours('desap, float32', weights, asked, device));
    if (hasBf16) contestants.push(await ours('desap, bf16', weights, asked, { ...device, precision: 'bf16' }));
    if (narrower) contestants.push(await ours('desap, float32 by AVX2', weights, asked, { ...device, isa: 'avx2' }));
    for (const [name, graph] of graphs)
      contestants.push(await onnxRuntime(`ONNX Runtime, ${name} graph`, graph, asked, threads));
  }
  const reference = await ours('JavaScript reference', weights, asked, { device: 'reference' });
  await requireAgreement(reference, contestants);

  /** Ours is the first of each number of threads. */
  const ownAt = (threads: number) => contestants.findIndex((contestant) => contestant.threads === threads);
  const work = headWork({ ...LLAVA, classToken: true });
  const samplers = contestants.map(
    ({ run, threads }) =>
      () =>
        besidePeak(run, isas[0], threads),
  );
  const { samples, ...rounds } = await runRounds(samplers, quick ? QUICK_LIMITS : LIMITS);
  const times = samples.map((taken) => taken.map(({ ms }) => ms));
  const rows = contestants.map(
    ({ name, threads }, c): Row => ({
      contestant: name,
      threads,
      ms: spread(times[c]),
      ratio: ratios(times[c], times[ownAt(threads)]),
      peakShare: spread(peakShares(work, samples[c])),
    }),
  );
  const peaksOn = (count: number) => contestants.flatMap(({ threads }, c) => (threads === count ? samples[c] : []));

  const beside = THREADS.map((threads) => contestants[ownAt(threads)]);
  const callers = [...beside, reference].map(
    ({ run }) =>
      () =>
        timed(run),
  );
  const slow = await runRounds(callers, quick ? QUICK_LIMITS : REFERENCE_LIMITS);
  const ms = slow.samples[beside.length];
  for (const [c, { threads }] of beside.entries()) {
    const ratio = ratios(ms, slow.samples[c]);
    rows.push({ contestant: reference.name, threads, ms: spread(ms), ratio, peakShare: null });
  }
  return {
    rows,
    peaks: THREADS.map((threads) => ({ threads, gflops: spread(peaksOn(threads).map(({ peak }) => peak)) })),
    gflop: work / 1e9,
    rounds: { counted: times[0].length, dropped: rounds.dropped, foreign: rounds.foreign && spread(rounds.foreign) },
    reference: { counted: ms.length, dropped: slow.dropped },
    notes,
  };
}

async function offersBf16(): Promise<boolean> {
  using pruner = await Pruner.load(head(), { device: 'cpu', precision: 'bf16' });
  return pruner.precision === 'bf16';
}

/** Fails unless all kept the reference's patches, gave each patch to the same of them, and merged to the same tokens. */
async function requireAgreement(reference: Contestant, contestants: readonly Contestant[]): Promise<void> {
  const want = await reference.outcome();
  for (const { name, threads, outcome } of contestants) {
    const got = await outcome();
    const wrong = (key: 'indices' | 'assignment') => want[key].filter((value, i) => got[key][i] !== value).length;
    const off = relativeError(got.tokens, want.tokens);
    if (wrong('indices') + wrong('assignment') > 0 || off > 1e-4)
      throw new Error(
        `${name}, ${threads} threads: ${wrong('indices')} indices and ${wrong('assignment')} assignments differ, tokens by ${off}`,
      );
  }
}

/** The duel as Markdown. */
export function duelReport({ rows, peaks, gflop, rounds, reference, notes }: Duel): string[] {
  const percent = (x: number) => `${(100 * x).toFixed(1)} %`;
  const watched = rounds.foreign
    ? `${rounds.dropped} more were dropped because others took over ${percent(FOREIGN)} of the cores' time; in those that count they took ${percent(Math.max(0, rounds.foreign.median))} (median).`
    : 'What others did on the machine was not watched: it has no /proc/stat.';
  return [
    `LLaVA-1.5's shape: ${LLAVA.tokens} tokens of width ${LLAVA.width}, ${LLAVA.heads} heads, ${LLAVA.text} text tokens of width ${LLAVA.embedding}, ${LLAVA.keep} kept; float32 hidden states in memory to`,
    'merged tokens. All contestants kept the same patches, gave every patch to the same of them, and merged to the same tokens.',
    `Medians of ${rounds.counted} rounds (10th to 90th percentile), contestants in turn; ratios and shares from the same rounds. ${watched}`,
    'Graphs of ONNX Runtime: natural, as an exporter writes the textbook form (all keys, MatMul-Softmax-MatMul, ScatterElements); tuned for it (keys through the class',
    'token only, MultiHeadAttention, one-hot merge); folded, tuned with the read-out as one square product, from weights that our algebra made.',
    `JavaScript reference: ${reference.counted} rounds of its own (${reference.dropped} dropped).`,
    '',
    '| threads | contestant | ms | times as long as desap | share of the peak |',
    '|---|---|---|---|---|',
    ...THREADS.flatMap((count) =>
      rows
        .filter(({ threads }) => threads === count)
        .map(({ threads, contestant, ms, ratio, peakShare }, i) => {
          const cells = [
            threads,
            contestant,
            range(ms),
            i === 0 ? '' : times(ratio),
            peakShare ? share(peakShare) : '',
          ];
          return `| ${cells.join(' | ')} |`;
        }),
    ),
    '',
    `The peak is that of float32 multiply-adds in registers: ${peaks.map(({ threads, gflops }) => `${range(gflops)} GFLOP/s on ${threads} thread${threads > 1 ? 's' : ''}`).join(', ')}. A share is`,
    `${gflop.toFixed(2)} GFLOP, the head's work after exact algebra, by the contestant's time and the peak measured right before and after it.`,
    ...notes,
    '',
  ];
}

const times = ({ median, low, high }: Spread) => `${median.toFixed(2)} (${low.toFixed(2)} - ${high.toFixed(2)})`;
const share = ({ median, low, high }: Spread) => `${median.toFixed(3)} (${low.toFixed(3)} - ${high.toFixed(3)})`;
