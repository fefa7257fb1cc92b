import { Command } from 'commander';
import { DesapError } from '../errors.js';
import { type DeviceOptions, Pruner } from '../index.js';
import { type GoldenCase, readGoldenCase } from './golden-case.js';
import { print, printJson, withDevice } from './options.js';
import { progress } from './progress.js';
import { table } from './table.js';

/** Largest difference, divided by the largest magnitude of the expected tensor, that counts as equal. */
const TOLERANCE = 1e-4;

interface Verdict {
  file: string;
  ok: boolean;
  /** Largest relative error per tensor. */
  errors?: Record<string, number>;
  /** Whether each decision is the expected one. */
  choices?: Record<string, boolean>;
  /** Why the case could not be run. */
  failure?: string;
}

export function verifyCommand(): Command {
  return withDevice(new Command('verify'))
    .description('Run golden cases on a device and compare every intermediate with its expected value.')
    .argument('<case...>', 'golden .safetensors files')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      `
A case agrees when context, attention, embedding, both maps and the tokens are within ${TOLERANCE} of the expected tensor's largest
magnitude, and kept set, source, assignment and counts are identical. Exits with 1 when one case does not.

Example:
  $ desap verify test/golden/*.safetensors --device cpu --isa avx2`,
    )
    .action(async (files: string[], { json, ...device }: DeviceOptions & { json?: boolean }) => {
      const verdicts: Verdict[] = [];
      let description = '';
      const bar = progress('verify', files.length);
      try {
        for (const file of files) {
          const { verdict, used } = await verify(file, device);
          verdicts.push(verdict);
          description ||= used;
          bar.step();
        }
      } finally {
        bar.stop();
      }
      const failed = verdicts.filter(({ ok }) => !ok).length;
      if (json) printJson({ device: description, tolerance: TOLERANCE, failed, cases: verdicts });
      else report(verdicts, description, failed);
      if (failed > 0) process.exitCode = 1;
    });
}

async function verify(file: string, device: DeviceOptions): Promise<{ verdict: Verdict; used: string }> {
  try {
    const golden = await readGoldenCase(file);
    using pruner = await Pruner.load(golden.head, device);
    return { verdict: { file, ...(await compare(pruner, golden)) }, used: pruner.device };
  } catch (error) {
    // A device that is not there would fail every case for the same reason.
    if (!(error instanceof DesapError) || error.code === 'ERR_DEVICE_UNAVAILABLE') throw error;
    return { verdict: { file, ok: false, failure: error.message }, used: '' };
  }
}

async function compare(pruner: Pruner, golden: GoldenCase): Promise<Omit<Verdict, 'file'>> {
  const { encoding, keep, endOfText, alignment, taskShare } = golden.options;
  using image = await pruner.analyze(golden.hidden, { encoding, intermediates: true });
  const kept = await image.prune({ tokens: golden.text, endOfText }, { keep, alignment, taskShare, maps: true });
  const { context, attention } = image.intermediates() ?? {};
  const computed = {
    context: context?.data,
    attention: attention?.data,
    embedding: image.embedding().data,
    task: kept.maps?.task,
    saliency: kept.maps?.saliency,
    tokens: kept.tokens.data,
  };
  const chosen = { kept: kept.indices, source: kept.source, assignment: kept.assignment, count: kept.counts };
  const errors = mapValues(golden.values, (expected, name) => relativeError(computed[name] as Float32Array, expected));
  const choices = mapValues(golden.choices, (expected, name) => expected.join() === chosen[name].join());
  const ok = Object.values(errors).every((error) => error <= TOLERANCE) && Object.values(choices).every(Boolean);
  return { ok, errors, choices };
}

/** NaN, and therefore not within any tolerance, when the lengths differ. */
function relativeError(computed: Float32Array, expected: Float64Array): number {
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

function report(verdicts: readonly Verdict[], description: string, failed: number): void {
  const names = ['context', 'attention', 'embedding', 'task', 'saliency', 'tokens'];
  const decisions = ['kept', 'source', 'assignment', 'count'];
  const rows = verdicts
    .filter(({ failure }) => failure === undefined)
    .map(({ file, ok, errors, choices }) => [
      file,
      ...names.map((name) => errors?.[name].toExponential(1) ?? ''),
      ...decisions.map((name) => (choices?.[name] ? 'same' : 'DIFFERS')),
      ok ? 'ok' : 'FAILED',
    ]);
  if (rows.length > 0) print(table(['case', ...names, ...decisions, ''], rows, [1, 2, 3, 4, 5, 6]));
  for (const { file, failure } of verdicts) if (failure !== undefined) print(`${file}: FAILED: ${failure}`);
  print();
  print(`${verdicts.length - failed} of ${verdicts.length} cases agree${description && ` on: ${description}`}`);
}
