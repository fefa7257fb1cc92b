// Makes the prebuilt addons that the package carries, in prebuilds.
//
//   npm run package:native                                 on Linux: every platform but macOS, with one cross compiler (zig,
//                                                          pinned, from PyPI: 100 MB into build-zig)
//   npm run package:native -- --targets linux-x64,win32-x64
//   npm run package:native -- --host                       on any machine: its own platform, with its own compiler (prebuildify)
//
// A CUDA addon that was built (npm run build:cuda) goes beside the one of this machine's platform.
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { fetchPinned, stop, UNAVAILABLE } from '../pip.mjs';
import { faultOf } from './check.mjs';
import { CROSS, TARGETS } from './targets.mjs';

const script = 'package:native';
const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const require = createRequire(import.meta.url);
const host = `${process.platform}-${process.arch}`;
const { values: flags } = parseArgs({
  options: { targets: { type: 'string' }, host: { type: 'boolean', default: false } },
});

const run = (command, args, options = {}) =>
  execFileSync(command, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'], ...options });

/** With the machine's own compiler: an addon for this machine and newer ones. */
function buildHere() {
  const libc = process.platform === 'linux' ? ['--tag-libc'] : [];
  run('npx', ['--no-install', 'prebuildify', '--napi', '--strip', '--name', 'desap', ...libc], {
    shell: process.platform === 'win32',
  });
}

/** With the cross compiler. The C++ library is linked in, so that the addon needs the C library alone. */
function cross(target, addon) {
  const triple = TARGETS[target].zig;
  const build = join(root, 'build-prebuild', target);
  mkdirSync(build, { recursive: true });
  const { cpu, binding } = JSON.parse(readFileSync(join(root, 'native/sources.json'), 'utf8'));
  const compile = ['-std=c++17', '-O3', '-ffp-contract=fast', '-fPIC', '-fvisibility=hidden', '-Wall', '-Wextra'];
  const node = ['-DNAPI_VERSION=8', '-DNODE_GYP_MODULE_NAME=desap', '-DBUILDING_NODE_EXTENSION'];
  const headers = [require('node-addon-api').include_dir, require('node-api-headers').include_dir];
  const link = triple.includes('windows')
    ? [nodeImports(build)]
    : [`-Wl,--version-script=${join(root, 'native/binding/exports.map')}`, '-lpthread'];
  zig(
    ['c++', '-target', triple, '-shared', '-s', ...compile, ...node]
      .concat(headers.map((folder) => `-I${folder.replaceAll('"', '')}`))
      .concat([...cpu, ...binding, 'native/binding/device_cpu.cc', ...link, '-o', join(build, 'desap.node')]),
  );
  copyFileSync(join(build, 'desap.node'), addon); // without the import library that Windows has beside it
}

/** On Windows a library says which program its functions come from: the import library of node.exe. */
function nodeImports(build) {
  const library = join(build, 'libnode.a');
  const { def_paths: definitions } = require('node-api-headers');
  const names = Object.values(definitions).flatMap((file) =>
    readFileSync(file, 'utf8')
      .split(/\r?\n/)
      .filter((line) => line !== '' && !/^(NAME|EXPORTS)/.test(line)),
  );
  const file = join(build, 'node.def');
  writeFileSync(file, `NAME node.exe\nEXPORTS\n${names.join('\n')}\n`);
  zig(['dlltool', '-m', 'i386:x86-64', '-D', 'node.exe', '-d', file, '-l', library]);
  return library;
}

function zig(args) {
  const cache = join(root, 'build-zig-cache');
  run(join(root, 'build-zig/ziglang/zig'), args, {
    env: { ...process.env, ZIG_GLOBAL_CACHE_DIR: cache, ZIG_LOCAL_CACHE_DIR: cache },
  });
}

/** What `npm run build:cuda` has made, stripped. */
function addCuda() {
  if (!existsSync(join(root, 'build-cuda/Release/desap_cuda.node'))) return;
  const folder = join(root, 'prebuilds', host, 'cuda');
  run('cmake', ['--install', 'build-cuda', '--component', 'cuda', '--strip', '--prefix', folder]);
  console.log(`prebuilds/${host}/cuda`);
}

if (flags.host) {
  buildHere();
} else {
  const targets = flags.targets?.split(',') ?? CROSS;
  const unknown = targets.filter((name) => !CROSS.includes(name));
  if (unknown.length > 0) stop(script, `--targets: got ${unknown.join()}, wanted some of ${CROSS.join()}, or --host`);
  if (process.platform !== 'linux')
    stop(script, `the cross compiler runs on Linux; on ${host}: npm run package:native -- --host`, UNAVAILABLE);
  fetchPinned({
    script,
    what: 'the pinned cross compiler',
    requirements: join(root, 'tools/prebuild/requirements.txt'),
    folder: join(root, 'build-zig'),
  });
  for (const target of targets) {
    const start = performance.now();
    const addon = join(root, 'prebuilds', TARGETS[target].file);
    rmSync(addon, { force: true });
    mkdirSync(dirname(addon), { recursive: true });
    cross(target, addon);
    const fault = faultOf(target, addon);
    if (fault !== null) stop(script, `${addon} ${fault}`);
    console.log(`prebuilds/${TARGETS[target].file} (${((performance.now() - start) / 1000).toFixed(0)} s)`);
  }
}
addCuda();
