// Fetches the pinned CUDA compiler from PyPI (100 MB) into build-cuda-toolkit (270 MB), where CMakeLists.txt finds it. A
// toolkit that is there already is kept. Needs Linux, python3 and pip; no root, no driver and no GPU.
//
//   node tools/cuda/fetch.mjs          exits with 69 where the packages cannot be had: no network, or not for this platform
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const UNAVAILABLE = 69;
const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const pins = readFileSync(join(root, 'tools/cuda/requirements.txt'), 'utf8');
const folder = join(root, 'build-cuda-toolkit');
const stamp = join(folder, 'requirements.txt'); // what the folder was made from; written last

function stop(message, code = 1) {
  console.error(`fetch:cuda: ${message}`);
  process.exit(code);
}

function fetch(target) {
  const pip = spawnSync(
    'python3',
    ['-m', 'pip', 'install', '--quiet', '--no-deps', '--no-compile', '--disable-pip-version-check']
      .concat(['--only-binary', ':all:', '--retries', '1'])
      .concat(['--target', target, '--requirement', join(root, 'tools/cuda/requirements.txt')]),
    { encoding: 'utf8', stdio: ['ignore', 'inherit', 'pipe'] },
  );
  if (pip.error) stop(`python3 does not start (${pip.error.message}); it is needed with pip`);
  if (pip.status === 0) return;
  process.stderr.write(pip.stderr);
  rmSync(target, { recursive: true, force: true });
  if (/No module named pip/.test(pip.stderr)) stop('python3 has no pip; install it (python3-pip)');
  if (/Retrying \(|Could not fetch URL|No matching distribution found/.test(pip.stderr))
    stop('the CUDA compiler cannot be had from PyPI here (pip says why, above)', UNAVAILABLE);
  stop('pip failed');
}

if (process.platform !== 'linux') stop(`got ${process.platform}, wanted Linux: there are no packages`, UNAVAILABLE);
if (existsSync(stamp) && readFileSync(stamp, 'utf8') === pins) {
  console.log('the pinned CUDA compiler is in build-cuda-toolkit already');
} else {
  const part = `${folder}-part`;
  rmSync(part, { recursive: true, force: true });
  fetch(part);
  // nvcc links in lib64, and CMake wants a libcudart.so although the addon links the static one.
  const toolkit = join(part, 'nvidia', 'cu13');
  symlinkSync('lib', join(toolkit, 'lib64'));
  symlinkSync('libcudart.so.13', join(toolkit, 'lib', 'libcudart.so'));
  rmSync(folder, { recursive: true, force: true });
  renameSync(part, folder);
  writeFileSync(stamp, pins);
  console.log('the pinned CUDA compiler is in build-cuda-toolkit');
}
