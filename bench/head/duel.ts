/** The head of LLaVA-1.5 against what else could compute it, on one thread and on two. */
import type { HeadWeights } from '../../src/index.js';
import { head } from '../data.js';
import { readLoad } from '../foreign-load.js';
import { LLAVA, ratios, type Spread, spread } from '../harness.js';
import { requireAgreement } from './agreement.js';
import { besidePeak, peakShares } from './beside-peak.js';
import { bf16Isa, type Contestant, graphsFor, instructionSets, onnxRuntime, ours, question } from './contestants.js';
import { type Arithmetic, type Peaks, peaksOf } from './peaks.js';
import { FOREIGN, type RoundLimits, runRounds } from './rounds.js';
import { TorchProcess } from './torch.js';
import { headWork } from './work.js';

const THREADS = [1, 2];
const LIMITS: RoundLimits = { rounds: 21, limit: 60, foreign: FOREIGN };
/** The JavaScript reference takes seconds. */
const REFERENCE_LIMITS: RoundLimits = { rounds: 3, limit: 9, foreign: FOREIGN };
const QUICK_LIMITS: RoundLimits = { rounds: 2, limit: 2, foreign: Number.POSITIVE_INFINITY };

export interface DuelOptions {
  /** Two rounds, whatever else the machine does. */
  readonly quick: boolean;
  /** A program of Python that has PyTorch; without one PyTorch does not compete. */
  readonly python?: string;
}

export interface Row {
  readonly contestant: string;
  readonly threads: number;
  readonly arithmetic: Arithmetic;
  readonly ms: Spread;
  /** How many times longer than our float32 head on the same threads it took, from the same rounds. */
  readonly ratio: Spread;
  /** The head's work by time and by the peaks of the row's arithmetic around it; null for what was not timed beside them. */
  readonly shares: Record<keyof Peaks, Spread> | null;
}

/** GFLOP/s around the contestants with these threads and this arithmetic. */
export interface PeaksAround extends Record<keyof Peaks, Spread> {
  readonly threads: number;
  readonly arithmetic: Arithmetic;
}

export interface Duel {
  readonly rows: readonly Row[];
  readonly peaks: readonly PeaksAround[];
  readonly gflop: number;
  readonly rounds: { readonly counted: number; readonly dropped: number; readonly foreign: Spread | null };
  readonly reference: { readonly counted: number; readonly dropped: number };
  /** PyTorch's version, where it competed. */
  readonly torch: string | null;
  /** What could not be measured here, and why. */
  readonly notes: readonly string[];
}

/** Runs the duel; fails where the contestants disagree. */
export async function duel({ quick, python }: DuelOptions): Promise<Duel> {
  const weights = head();
  const hasBf16 = bf16Isa() !== undefined;
  const torch: TorchProcess[] = [];
  try {
    for (const threads of python ? THREADS : [])
      torch.push(await TorchProcess.start(python!, weights, question(), threads, hasBf16));
    return await duelAmong(weights, hasBf16, torch, quick);
  } finally {
    for (const process of torch) process[Symbol.dispose]();
  }
}

async function duelAmong(
  weights: HeadWeights,
  hasBf16: boolean,
  torch: readonly TorchProcess[],
  quick: boolean,
): Promise<Duel> {
  const [isa] = instructionSets();
  const contestants = await enter(weights, hasBf16, torch);
  const reference = await ours('JavaScript reference', weights, question(), { device: 'reference' });
  const want = await reference.outcome();
  for (const { name, threads, outcome } of contestants)
    requireAgreement(`${name}, ${threads} threads`, await outcome(), want);

  /** What PyTorch's processes took is not foreign. */
  const load = () => {
    const reading = readLoad();
    return reading && { ...reading, own: torch.reduce((own, { processorTime }) => own + processorTime, reading.own) };
  };
  const samplers = contestants.map(
    ({ time, threads, arithmetic }) =>
      () =>
        besidePeak(time, () => peaksOf(arithmetic, isa, threads)),
  );
  const { samples, dropped, foreign } = await runRounds(samplers, quick ? QUICK_LIMITS : LIMITS, load);

  /** Ours is the first of each number of threads. */
  const ownAt = (threads: number) => contestants.findIndex((contestant) => contestant.threads === threads);
  const work = headWork({ ...LLAVA, classToken: true });
  const times = samples.map((taken) => taken.map(({ ms }) => ms));
  const rows = contestants.map(({ name, threads, arithmetic }, c): Row => {
    const share = (of: keyof Peaks) => spread(peakShares(work, samples[c], of));
    return {
      contestant: name,
      threads,
      arithmetic,
      ms: spread(times[c]),
      ratio: ratios(times[c], times[ownAt(threads)]),
      shares: { registers: share('registers'), loaded: share('loaded') },
    };
  });
  const arithmetics = [...new Set(contestants.map(({ arithmetic }) => arithmetic))];
  const peaks = THREADS.flatMap((threads) =>
    arithmetics.map((arithmetic): PeaksAround => {
      const around = contestants.flatMap((one, c) =>
        one.threads === threads && one.arithmetic === arithmetic ? samples[c] : [],
      );
      const peak = (of: keyof Peaks) => spread(around.map((sample) => sample[of]));
      return { threads, arithmetic, registers: peak('registers'), loaded: peak('loaded') };
    }),
  );

  const beside = THREADS.map((threads) => contestants[ownAt(threads)]);
  const callers = [...beside, reference].map(({ time }) => time);
  const slow = await runRounds(callers, quick ? QUICK_LIMITS : REFERENCE_LIMITS);
  const ms = slow.samples[beside.length];
  for (const [c, { threads }] of beside.entries()) {
    const ratio = ratios(ms, slow.samples[c]);
    rows.push({ contestant: reference.name, threads, arithmetic: 'float32', ms: spread(ms), ratio, shares: null });
  }
  return {
    rows,
    peaks,
    gflop: work / 1e9,
    rounds: { counted: times[0].length, dropped, foreign: foreign && spread(foreign) },
    reference: { counted: ms.length, dropped: slow.dropped },
    torch: torch.length > 0 ? torch[0].version : null,
    notes: missing(hasBf16, torch),
  };
}

/** All that are timed beside the peaks; of each number of threads our float32 head is the first. */
async function enter(weights: HeadWeights, hasBf16: boolean, torch: readonly TorchProcess[]): Promise<Contestant[]> {
  const asked = question();
  const graphs = graphsFor(weights, asked);
  const contestants: Contestant[] = [];
  for (const [t, threads] of THREADS.entries()) {
    const device = { device: 'cpu', threads } as const;
    contestants.push(await ours('desap, float32', weights, asked, device));
    if (hasBf16) {
      const bf16 = { ...device, precision: 'bf16', isa: bf16Isa() } as const;
      contestants.push(await ours('desap, bf16', weights, asked, bf16));
    }
    if (hasAvx512()) contestants.push(await ours('desap, float32 by AVX2', weights, asked, { ...device, isa: 'avx2' }));
    for (const [name, graph] of graphs)
      contestants.push(await onnxRuntime(`ONNX Runtime, ${name} graph`, graph, asked, threads));
    contestants.push(...(torch[t]?.contestants() ?? []));
  }
  return contestants;
}

const hasAvx512 = () => instructionSets().includes('avx512');

function missing(hasBf16: boolean, torch: readonly TorchProcess[]): string[] {
  const notes: string[] = [];
  if (!hasBf16) notes.push('bf16 was not measured: this processor has no bfloat16 products.');
  else if (!instructionSets()[0].endsWith('bf16'))
    notes.push(
      "bf16 was asked for by `isa`: this processor's bfloat16 products are not faster than float32's, and `precision: 'bf16'` computes in float32 here.",
    );
  if (!hasAvx512())
    notes.push('The AVX2 path against the AVX-512 path was not measured: this processor has no AVX-512.');
  if (torch.length === 0) notes.push('PyTorch was not measured: no Python that has it was named (`--python`).');
  return notes;
}
