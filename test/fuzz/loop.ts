/** The loop of a fuzzer: changes files of a pool, reads them, and keeps those that reach code which none reached before. */
import fc from 'fast-check';
import type { Coverage } from './coverage.js';
import { type Case, cases, mutated } from './mutate.js';
import { Disagreement, isRefusal, type Target } from './targets.js';

/** What should not have happened. */
export interface Finding {
  readonly kind: 'thrown' | 'slow' | 'memory' | 'disagreement' | 'crashed' | 'hung';
  readonly message: string;
  /** The file that it happened with. */
  readonly bytes: Uint8Array;
}

export interface Summary {
  /** Files that were read. */
  readonly runs: number;
  /** Of these, those that were not refused. */
  readonly read: number;
  /** Files that were found worth changing further. */
  readonly kept: number;
  /** Blocks of code that ran. */
  readonly blocks: number;
}

export interface Watcher {
  /** Before a file is read. */
  readonly begins: (bytes: Uint8Array) => void;
  readonly found: (finding: Finding) => void;
}

/** Says which files are worth changing further. */
export type Guide = Pick<Coverage, 'blocks' | 'grown'>;

/** Cases that are drawn at once. */
const BATCH = 64;

/**
 * Reads the seeds, and then changed files until `done` says so. The same seed gives the same files.
 * @param done by the number of files that were read
 */
export async function fuzz(
  target: Target,
  seed: number,
  done: (runs: number) => boolean,
  watcher: Watcher,
  coverage: Guide,
): Promise<Summary> {
  const seeds = target.seeds();
  const pool = seeds.map(({ bytes }) => bytes);
  const known = new Set<string>();
  let runs = 0;
  let read = 0;
  const tried = async (bytes: Uint8Array) => {
    watcher.begins(bytes);
    runs++;
    const outcome = await readOnce(target, bytes);
    if (outcome === 'read') read++;
    return outcome instanceof Object ? outcome : null;
  };
  for (const bytes of seeds.map((one) => one.bytes)) {
    const finding = await tried(bytes);
    if (finding && !known.has(signature(finding))) watcher.found(finding);
    if (finding) known.add(signature(finding));
    coverage.grown();
  }
  for (let batch = 0; !done(runs); batch++)
    for (const one of fc.sample(cases, { seed: seed * 1_000_003 + batch, numRuns: BATCH })) {
      if (done(runs)) break;
      const made = (given: Case) => {
        const base = pool[given.base % pool.length];
        return mutated(base, pool[given.donor % pool.length], target.format(base), given);
      };
      const bytes = made(one);
      const finding = await tried(bytes);
      if (finding && !known.has(signature(finding))) {
        known.add(signature(finding));
        watcher.found(await smallest(target, finding, one, made, watcher));
      } else if (coverage.grown()) pool.push(bytes);
    }
  return { runs, read, kept: pool.length - seeds.length, blocks: coverage.blocks };
}

/** Findings of one cause look alike: their kind, and where it was thrown. */
function signature({ kind, message }: Finding): string {
  const [, place = message.split('\n')[0].replace(/\d+/g, '#').slice(0, 80)] = /\n\s+at ([^\n]*)/.exec(message) ?? [];
  return `${kind} ${place}`;
}

/** Reads a file, and says what is wrong with how that went. */
export async function readOnce(target: Target, bytes: Uint8Array): Promise<Finding | 'read' | 'refused'> {
  const start = process.cpuUsage();
  const before = process.resourceUsage().maxRSS;
  let result: 'read' | 'refused' = 'read';
  try {
    await target.read(bytes);
  } catch (error) {
    const message = (error as Error)?.stack ?? String(error);
    if (error instanceof Disagreement) return { kind: 'disagreement', message, bytes };
    if (!isRefusal(error)) return { kind: 'thrown', message, bytes };
    result = 'refused';
  }
  const { user, system } = process.cpuUsage(start);
  const seconds = (user + system) / 1e6;
  const grown = (process.resourceUsage().maxRSS - before) * 1024;
  if (seconds > target.seconds)
    return { kind: 'slow', message: `${seconds.toFixed(1)} s of a processor, at most ${target.seconds} s`, bytes };
  if (grown > target.memory)
    return { kind: 'memory', message: `${grown} bytes more memory, at most ${target.memory}`, bytes };
  return result;
}

/** The finding with as few changes as show it. */
async function smallest(
  target: Target,
  finding: Finding,
  given: Case,
  made: (one: Case) => Uint8Array,
  { begins }: Pick<Watcher, 'begins'>,
): Promise<Finding> {
  let best = finding;
  let { mutations } = given;
  for (let i = mutations.length - 1; i >= 0 && mutations.length > 1; i--) {
    const fewer = mutations.filter((_, at) => at !== i);
    const bytes = made({ ...given, mutations: fewer });
    begins(bytes);
    const again = await readOnce(target, bytes);
    if (!(again instanceof Object) || signature(again) !== signature(finding)) continue;
    best = again;
    mutations = fewer;
  }
  return best;
}
