/** What others did on the machine while something was timed: all processor time less this process' own. Linux only. */
import { existsSync, readFileSync } from 'node:fs';
import { cpus } from 'node:os';

const STAT = '/proc/stat';
/** The unit of /proc/stat, USER_HZ. */
const TICK_MS = 10;

/** Milliseconds since the start, of the machine and of this process. */
export interface LoadReading {
  readonly wall: number;
  /** Processor time of everything, also what a hypervisor gave to other machines. */
  readonly busy: number;
  /** Processor time of this process. */
  readonly own: number;
}

/** Processor time that was not idle, in milliseconds, from the text of /proc/stat. */
export function busyMilliseconds(stat: string): number {
  // cpu user nice system idle iowait irq softirq steal guest guest_nice; guests are counted under user and nice too.
  const [user, nice, system, , , irq, softirq, steal] = stat.split('\n', 1)[0].trim().split(/\s+/).slice(1).map(Number);
  return TICK_MS * (user + nice + system + irq + softirq + steal);
}

/** Reads the load now; null where the system does not tell. */
export function readLoad(): LoadReading | null {
  if (!existsSync(STAT)) return null;
  const { user, system } = process.cpuUsage();
  return { wall: performance.now(), busy: busyMilliseconds(readFileSync(STAT, 'latin1')), own: (user + system) / 1000 };
}

/** Share of all cores' time between two readings that others took. Ticks are coarse: over short times it may be negative. */
export function foreignShare(before: LoadReading, after: LoadReading, cores = cpus().length): number {
  const busy = after.busy - before.busy - (after.own - before.own);
  return busy / (cores * (after.wall - before.wall));
}
