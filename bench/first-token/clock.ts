/** Clocks, in milliseconds. */
import { cpus } from 'node:os';

export type Clock = () => number;

/**
 * `wall` is what one waits. `processor` is the processor time of all threads by the number of cores: what one would wait if the cores did
 * nothing else and shared the work evenly. It is what a machine that others use can be asked.
 */
export const CLOCKS = {
  wall: () => performance.now(),
  processor: () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000 / cpus().length;
  },
} satisfies Record<string, Clock>;

export type ClockName = keyof typeof CLOCKS;
