import { Command } from 'commander';
import { DesapError } from '../errors.js';
import { BlockHead, type DeviceOptions, type HeadWeights, type ImageAnalysis, openBackend, Pruner } from '../index.js';
import { readSafeTensors } from '../safetensors.js';
import type { Tensor } from '../tensor.js';
import { decide } from './decisions.js';
import { BLOCK_VALUES, computeBlock, type GoldenBlock, goldenBlock } from './golden-block.js';
import { type GoldenCase, goldenCase } from './golden-case.js';
import { isBlockCase, isMethodCase } from './golden-file.js';
import { type GoldenMethod, goldenMethod, METHOD_CHOICES, METHOD_VALUES } from './golden-method.js';
import { print, printJson, withDevice } from './options.js';
import { progress } from './progress.js';
import { table } from './table.js';

/** Largest difference, divided by the largest magnitude of the expected tensor, that counts as equal, by what a device computes in. */
const TOLERANCES: Record<Pruner['precision'], number> = { fp32: 1e-4, fp16: 4e-3, bf16: 3e-2 };
/** Merging is float32 in every precision. */
const TOKENS = TOLERANCES.fp32;

interface Verdict {
  file: string;
  ok: boolean;
  /** What the case is of; absent where it could not be run. */
  kind?: Kind;
  /** Largest relative error per tensor. */
  errors?: Record<string, number>;
  /** Whether each decision is the expected one. */
  choices?: Record<string, boolean>;
  /** In coarser arithmetic, where decisions are not the expected ones: whether they follow from the computed maps. */
  follows?: boolean;
  /** Why the case could not be run. */
  failure?: string;
}

/** Results of each kind of case: numbers, whose errors are shown, and decisions. */
const KINDS = {
  head: {
    values: ['context', 'attention', 'embedding', 'task', 'saliency', 'tokens'],
    decisions: ['kept', 'source', 'assignment', 'count'],
  },
  block: { values: BLOCK_VALUES, decisions: [] },
  method: { values: METHOD_VALUES, decisions: METHOD_CHOICES },
} satisfies Record<string, { values: readonly string[]; decisions: readonly string[] }>;
type Kind = keyof typeof KINDS;

/** What the cases ran on. */
type Used = Pick<Pruner, 'device' | 'deviceDescription' | 'precision'>;

export function verifyCommand(): Command {
  return withDevice(new Command('verify'))
    .description('Run golden cases on a device and compare every intermediate with its expected value.')
    .argument('<case...>', 'golden .safetensors files')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      `
A case is of a head, of the last block of an encoder (config.kind "block"), or of a method that DeSAP is compared with (config.method), of
which every output that the file has is compared. Methods compute in fp32, whatever the precision.
A case agrees when context, attention, embedding and both maps are within the tolerance of the precision that the device computes
in (fp32 ${TOLERANCES.fp32}, fp16 ${TOLERANCES.fp16}, bf16 ${TOLERANCES.bf16}) of the expected tensor's largest magnitude, the tokens within ${TOKENS}, and kept set, source,
assignment and counts are identical. In fp16 and bf16, scores that are almost equal may change places: there, other decisions agree
too when they follow from the computed maps. Exits with 1 when one case does not agree.

Examples:
  $ desap verify test/golden/*.safetensors --device cpu --isa avx2
  $ desap verify test/golden/*.safetensors --precision bf16`,
    )
    .action(async (files: string[], { json, ...device }: DeviceOptions & { json?: boolean }) => {
      const verdicts: Verdict[] = [];
      let ran: Used | undefined;
      const bar = progress('verify', files.length);
      try {
        for (const file of files) {
          const { verdict, used } = await verify(file, device);
          verdicts.push(verdict);
          if (used && !(ran && TOLERANCES[ran.precision] >= TOLERANCES[used.precision])) ran = used;
          bar.step();
        }
      } finally {
        bar.stop();
      }
      const failed = verdicts.filter(({ ok }) => !ok).length;
      if (json) printJson({ ...ran, tolerance: ran && TOLERANCES[ran.precision], failed, cases: verdicts });
      else report(verdicts, failed, ran);
      if (failed > 0) process.exitCode = 1;
    });
}

async function verify(file: string, device: DeviceOptions): Promise<{ verdict: Verdict; used?: Used }> {
  try {
    const content = await readSafeTensors(file);
    if (isBlockCase(content)) {
      const golden = goldenBlock(content, file);
      using head = await BlockHead.load(golden.block, device);
      return { verdict: { file, kind: 'block', ...(await compareBlock(head, golden)) }, used: usedOf(head) };
    }
    if (isMethodCase(content)) {
      const golden = goldenMethod(content, file);
      using backend = openBackend({ ...device, precision: 'fp32' });
      const compared = compareMethod(await golden.compute(backend), golden);
      return { verdict: { file, kind: 'method', ...compared }, used: usedOf(backend) };
    }
    const golden = goldenCase(content, file);
    using pruner = await Pruner.load(golden.head, device);
    return { verdict: { file, kind: 'head', ...(await compare(pruner, golden)) }, used: usedOf(pruner) };
  } catch (error) {
    // A device that is not there would fail every case for the same reason.
    if (!(error instanceof DesapError) || error.code === 'ERR_DEVICE_UNAVAILABLE') throw error;
    return { verdict: { file, ok: false, failure: error.message } };
  }
}

const usedOf = ({ device, deviceDescription, precision }: Used): Used => ({ device, deviceDescription, precision });

async function compareBlock(head: BlockHead, golden: GoldenBlock): Promise<Omit<Verdict, 'file'>> {
  const computed = await computeBlock(head, golden);
  const errors = mapValues(golden.values as Record<string, Float64Array>, (values, name) =>
    relativeError(computed[name as keyof typeof computed] ?? [], values),
  );
  return { ok: Object.values(errors).every((error) => error <= TOLERANCES[head.precision]), errors };
}

function compareMethod(
  computed: Awaited<ReturnType<GoldenMethod['compute']>>,
  golden: GoldenMethod,
): Omit<Verdict, 'file'> {
  const errors = mapValues(golden.values, (values, name) => relativeError(computed[name] ?? [], values));
  const choices = mapValues(
    golden.choices,
    (expected, name) => expected.join() === Array.from(computed[name] ?? []).join(),
  );
  const ok = Object.values(errors).every((error) => error <= TOLERANCES.fp32) && Object.values(choices).every(Boolean);
  return { ok, errors, choices };
}

async function compare(pruner: Pruner, golden: GoldenCase): Promise<Omit<Verdict, 'file'>> {
  const { encoding, endOfText, ...choice } = golden.options;
  using image = await pruner.analyze(golden.hidden, { encoding, intermediates: true });
  const kept = await image.prune({ embeddings: golden.text, endOfText }, { ...choice, maps: true });
  const { context, attention } = image.intermediates() as { context: Tensor; attention: Tensor };
  const maps = kept.maps as { task: Float32Array; saliency: Float32Array };
  const decisions = { kept: kept.indices, source: kept.source, assignment: kept.assignment, count: kept.counts };
  const compared = (wanted: GoldenCase['choices']) =>
    mapValues(wanted, (expected, name) => expected.join() === decisions[name].join());
  const all = (equal: Record<string, boolean>) => Object.values(equal).every(Boolean);

  const tolerance = TOLERANCES[pruner.precision];
  const choices = compared(golden.choices);
  const own = tolerance > TOLERANCES.fp32 && !all(choices) ? decide(golden, maps) : undefined;
  const follows = own && all(compared(own.choices));
  const computed: Record<keyof GoldenCase['values'], ArrayLike<number>> = {
    context: floats(context),
    attention: floats(attention),
    embedding: embeddingsOf(image, golden.head),
    ...maps,
    tokens: floats(kept.tokens),
  };
  const expected = { ...golden.values, tokens: own?.tokens ?? golden.values.tokens };
  const errors = mapValues(expected, (values, name) => relativeError(computed[name], values));
  const within = Object.entries(errors).every(([name, error]) => error <= (name === 'tokens' ? TOKENS : tolerance));
  return { ok: within && (follows ?? all(choices)), errors, choices, follows };
}

/** A_d, [N, E]. */
const embeddingsOf = (image: ImageAnalysis, { classToken }: HeadWeights) => [
  ...(classToken ? image.global() : []),
  ...floats(image.patchEmbeddings()),
];

const floats = (tensor: Tensor) => tensor.data as Float32Array;

/** NaN, and therefore not within any tolerance, when the lengths differ. */
function relativeError(computed: ArrayLike<number>, expected: Float64Array): number {
  if (computed.length !== expected.length) return Number.NaN;
  let [difference, magnitude] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    const distance = Math.abs(computed[i] - expected[i]);
    if (!(distance <= difference)) difference = distance;
    magnitude = Math.max(magnitude, Math.abs(expected[i]));
  }
  return magnitude === 0 ? difference : difference / magnitude;
}

function mapValues<K extends string, V, R>(record: Record<K, V>, map: (value: V, key: K) => R): Record<K, R> {
  return Object.fromEntries(Object.entries<V>(record).map(([key, value]) => [key, map(value, key as K)])) as Record<
    K,
    R
  >;
}

function report(verdicts: readonly Verdict[], failed: number, used: Used | undefined): void {
  for (const kind of Object.keys(KINDS) as Kind[])
    reportTable(
      verdicts.filter((verdict) => verdict.kind === kind),
      KINDS[kind],
    );
  for (const { file, failure } of verdicts) if (failure !== undefined) print(`${file}: FAILED: ${failure}`);
  print();
  const where = used && ` within ${TOLERANCES[used.precision]} (${used.precision}) on: ${used.deviceDescription}`;
  print(`${verdicts.length - failed} of ${verdicts.length} cases agree${where ?? ''}`);
}

/** Results that no case of the table has are left out. */
function reportTable(verdicts: readonly Verdict[], kind: (typeof KINDS)[Kind]): void {
  if (verdicts.length === 0) return;
  const names = kind.values.filter((name) => verdicts.some(({ errors }) => errors?.[name] !== undefined));
  const decisions = kind.decisions.filter((name) => verdicts.some(({ choices }) => choices?.[name] !== undefined));
  const rows = verdicts.map(({ file, ok, errors, choices, follows }) => [
    file,
    ...names.map((name) => errors?.[name]?.toExponential(1) ?? ''),
    ...decisions.map((name) => (choices?.[name] === undefined ? '' : decided(choices[name], follows))),
    ok ? 'ok' : 'FAILED',
  ]);
  const numbers = names.map((_, column) => column + 1);
  print(table(['case', ...names, ...decisions, ''], rows, numbers));
}

function decided(isSame: boolean, follows = false): string {
  return isSame ? 'same' : follows ? 'follows' : 'DIFFERS';
}
