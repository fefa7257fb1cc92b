// Fetches the pinned CUDA compiler from PyPI (100 MB) into build-cuda-toolkit (270 MB), where CMakeLists.txt finds it. A
// toolkit that is there already is kept. Needs Linux, python3 and pip; no root, no driver and no GPU.
//
//   node tools/cuda/fetch.mjs          exits with 69 where the packages cannot be had: no network, or not for this platform
import { symlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fetchPinned, stop, UNAVAILABLE } from '../pip.mjs';

const script = 'fetch:cuda';
const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

if (process.platform !== 'linux')
  stop(script, `got ${process.platform}, wanted Linux: there are no packages`, UNAVAILABLE);
fetchPinned({
  script,
  what: 'the pinned CUDA compiler',
  requirements: join(root, 'tools/cuda/requirements.txt'),
  folder: join(root, 'build-cuda-toolkit'),
  finish(folder) {
    // nvcc links in lib64, and CMake wants a libcudart.so although the addon links the static one.
    const toolkit = join(folder, 'nvidia', 'cu13');
    symlinkSync('lib', join(toolkit, 'lib64'));
    symlinkSync('libcudart.so.13', join(toolkit, 'lib', 'libcudart.so'));
  },
});
