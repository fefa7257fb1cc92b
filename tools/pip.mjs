// Pinned tools that PyPI has as packages, each in a folder of its own. Needs python3 and pip; no root.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** How a program ends whose packages cannot be had: no network, or not for this platform. */
export const UNAVAILABLE = 69;

/** Ends the program with a message. */
export function stop(script, message, code = 1) {
  console.error(`${script}: ${message}`);
  process.exit(code);
}

/**
 * Installs the packages that a file of requirements pins into a folder. A folder that was made from the same file is kept.
 *
 * @param script who asks, for messages
 * @param what the name of what the packages hold, for messages
 * @param requirements the file, with hashes
 * @param folder where they go
 * @param options more options of pip
 * @param finish is called with the folder before it gets its name
 */
export function fetchPinned({ script, what, requirements, folder, options = [], finish = () => {} }) {
  const pins = readFileSync(requirements, 'utf8');
  const stamp = join(folder, 'requirements.txt'); // what the folder was made from; written last
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === pins) {
    console.log(`${what} is in ${folder} already`);
    return;
  }
  const part = `${folder}-part`;
  rmSync(part, { recursive: true, force: true });
  install(script, what, requirements, part, options);
  finish(part);
  rmSync(folder, { recursive: true, force: true });
  renameSync(part, folder);
  writeFileSync(stamp, pins);
  console.log(`${what} is in ${folder}`);
}

function install(script, what, requirements, target, options) {
  const pip = spawnSync(
    'python3',
    ['-m', 'pip', 'install', '--quiet', '--no-deps', '--no-compile', '--disable-pip-version-check']
      .concat(['--only-binary', ':all:', '--retries', '1', ...options])
      .concat(['--target', target, '--requirement', requirements]),
    { encoding: 'utf8', stdio: ['ignore', 'inherit', 'pipe'] },
  );
  if (pip.error) stop(script, `python3 does not start (${pip.error.message}); it is needed with pip`);
  if (pip.status === 0) return;
  process.stderr.write(pip.stderr);
  rmSync(target, { recursive: true, force: true });
  if (/No module named pip/.test(pip.stderr)) stop(script, 'python3 has no pip; install it (python3-pip)');
  if (/Retrying \(|Could not fetch URL|No matching distribution found/.test(pip.stderr))
    stop(script, `${what} cannot be had from PyPI here (pip says why, above)`, UNAVAILABLE);
  stop(script, 'pip failed');
}
