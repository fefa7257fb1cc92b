/** Runs a target in a process of its own. */
import { fork } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Finding, Summary } from './loop.js';

export interface FuzzOptions {
  readonly seed: number;
  /** Seconds after which it ends. */
  readonly seconds: number;
  /** Files after which it ends. */
  readonly runs: number;
}

export interface FuzzReport {
  /** Null where the process did not get to the end. */
  readonly summary: Summary | null;
  readonly findings: readonly Finding[];
}

/** Seconds without a word after which the process is taken for hung. They are counted one by one: this process may be stopped too. */
const PATIENCE = 120;

type Word =
  | { readonly alive: true }
  | { readonly summary: Summary }
  | { readonly finding: Omit<Finding, 'bytes'> & { readonly base64: string } };

export function runFuzzer(target: string, { seed, seconds, runs }: FuzzOptions): Promise<FuzzReport> {
  const folder = mkdtempSync(join(tmpdir(), 'desap-fuzz-current-'));
  const current = join(folder, target);
  const script = join(import.meta.dirname, 'child.ts');
  const child = fork(script, [target, seed, seconds, runs, current].map(String), {
    execArgv: ['--import', 'tsx'],
    stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
  });
  let said = '';
  child.stderr?.on('data', (text) => {
    said = `${said}${text}`.slice(-1000);
  });
  const findings: Finding[] = [];
  let summary: Summary | null = null;
  let silent = 0;
  const clock = setInterval(() => {
    if (++silent < PATIENCE) return;
    child.kill('SIGKILL');
  }, 1000);
  child.on('message', (word: Word) => {
    silent = 0;
    if ('summary' in word) summary = word.summary;
    if ('finding' in word) {
      const { base64, ...finding } = word.finding;
      findings.push({ ...finding, bytes: new Uint8Array(Buffer.from(base64, 'base64')) });
    }
  });
  return new Promise((resolve, reject) => {
    child.once('close', (code, signal) => {
      clearInterval(clock);
      if (!existsSync(current)) return reject(new Error(`${target}: its process did not begin: exit code ${code}`));
      if (summary === null) {
        const kind = silent >= PATIENCE ? 'hung' : 'crashed';
        findings.push({
          kind,
          message: `exit code ${code}, signal ${signal}: ${said}`,
          bytes: new Uint8Array(readFileSync(current)),
        });
      }
      rmSync(folder, { recursive: true, force: true });
      resolve({ summary, findings });
    });
  });
}
