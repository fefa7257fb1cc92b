/**
 * ONNX Runtime's usage data. From version 1.29 on it collects it on Linux and macOS, unless ORT_DISABLE_TELEMETRY is 1 when the
 * first session of the process is made: it keeps a device id and a database in the user's cache folder, writes into the temporary
 * folder, and sends what it collected to its maker. Packages that run models on a user's behalf should not do that unasked.
 */
import { isMainThread } from 'node:worker_threads';
import { loadCpuAddon } from './devices/cpu.js';
import { warnOnce } from './warn.js';

const VARIABLE = 'ORT_DISABLE_TELEMETRY';

/** Switches it off for this process, unless the variable is set to whatever the user wants. Never throws. */
export function disableTelemetry(): void {
  if (process.env[VARIABLE] !== undefined) return;
  process.env[VARIABLE] = '1';
  if (reachesNativeCode()) return;
  warnOnce(
    'DESAP_TELEMETRY',
    `ONNX Runtime's usage data cannot be switched off from here: process.env of this thread is a copy. Start the process with ` +
      `${VARIABLE}=1, import desap/onnxruntime on the main thread first, or give the worker { env: SHARE_ENV }`,
  );
}

/**
 * Whether native code finds the variable set. On Node's main thread it does; workers, Jest and Bun have a `process.env` of their own,
 * and there the addon looks.
 */
function reachesNativeCode(): boolean {
  try {
    const addon = loadCpuAddon();
    // Only the main thread writes: another one would do it under the eyes of those that read.
    if (isMainThread && addon.environmentVariable(VARIABLE) === undefined) addon.setEnvironmentVariable(VARIABLE, '1');
    return addon.environmentVariable(VARIABLE) !== undefined;
  } catch {
    return isMainThread && process.versions.bun === undefined;
  }
}
