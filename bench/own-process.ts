/** A contender in a process of its own, so that its memory is nobody else's; memory as Linux counts it, in /proc. */
import { type ForkOptions, fork } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/**
 * What a script sends of itself, run anew with these arguments; waits until that process has ended.
 *
 * @param script `import.meta.url` of the script
 * @param what names the process in messages
 */
export async function inProcess<T>(
  script: string,
  args: readonly string[],
  what: string,
  options: ForkOptions = {},
): Promise<T> {
  const child = fork(fileURLToPath(script), args, options);
  const exit = once(child, 'exit');
  const [result] = await Promise.race([once(child, 'message'), once(child, 'disconnect')]);
  const [code] = await exit;
  if (result === undefined) throw new Error(`${what}: the process ended without a result (exit code ${code})`);
  return result as T;
}

/** For {@link inProcess}: large blocks are mapped and unmapped one by one, so that none that is left behind hides what a call needs. */
export const MAPPED: ForkOptions = { env: { ...process.env, MALLOC_MMAP_THRESHOLD_: '65536' } };

/** Resident memory now, or at its largest, in MB. */
export function resident(field: 'VmRSS' | 'VmHWM'): number {
  return Number(new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) / 1024;
}

/** The largest so far begins anew. */
export function beginAnew(): void {
  writeFileSync('/proc/self/clear_refs', '5');
}
