import { spawn } from 'node:child_process';
import { expect, it } from 'vitest';

/** Runs `test/realms` in a pool of vitest whose files have realms of their own. */
function realm(pool: string): Promise<string> {
  const config = ['--config', 'test/realms/vitest.config.ts', '--root', '.', `--pool=${pool}`];
  return new Promise((resolve) => {
    const child = spawn(process.execPath, ['node_modules/vitest/vitest.mjs', 'run', ...config, '--reporter=json']);
    let [out, err] = ['', ''];
    child.stdout.on('data', (chunk) => (out += chunk));
    child.stderr.on('data', (chunk) => (err += chunk));
    child.on('close', () => resolve(out || err));
  });
}

it.each(['vmThreads', 'vmForks'])('typed arrays, promises and errors of another realm: %s', async (pool) => {
  const output = await realm(pool);
  const { numPassedTests, numFailedTests, testResults } = JSON.parse(output.slice(output.indexOf('{')));
  expect({ numPassedTests, numFailedTests }, JSON.stringify(testResults, null, 1)).toEqual({
    numPassedTests: 5,
    numFailedTests: 0,
  });
});
