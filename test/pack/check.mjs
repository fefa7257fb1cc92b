// Packs the package as it would be published, with its prebuilt addon, installs it into an empty folder without running any
// script, and uses it there as an ES module, through require, and from the command line. `-- --built` takes the addon of npm run build in
// place of one that is compiled anew.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const scratch = mkdtempSync(join(tmpdir(), 'desap-pack-'));
const source = join(scratch, 'source');
const consumer = join(scratch, 'consumer');

const run = (cwd, command, ...args) =>
  execFileSync(command, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }).trim();

function check(name, condition, detail = '') {
  if (!condition) throw new Error(`pack check failed: ${name} ${detail}`);
  console.log(`ok ${name}`);
}

/** The addon that is here, under the name that `package:native -- --host` gives it. */
function takeBuilt() {
  const folder = join(source, 'prebuilds', `${process.platform}-${process.arch}`);
  mkdirSync(folder, { recursive: true });
  const name = process.platform === 'linux' ? 'desap.glibc.node' : 'desap.node';
  cpSync(join(root, 'build', 'Release', 'desap.node'), join(folder, name));
}

/** Packing without an addon, or with one for another platform, is refused with what to do; what is left out by name is not. */
function checkPrepack(target, addon) {
  const prepack = (without) =>
    spawnSync('npm', ['pack', '--dry-run'], {
      cwd: source,
      encoding: 'utf8',
      env: { ...process.env, DESAP_PACK_WITHOUT: without },
    });
  const other = target === 'win32-x64' ? 'darwin-arm64' : 'win32-x64';
  const missing = prepack('').stderr;
  check(
    'packing without the addon of a platform is refused',
    missing.includes(`prebuilds/${other}/desap.node is not there`) &&
      missing.includes('ERR_FILE') &&
      missing.includes('Make them: npm run package:native'),
    missing,
  );
  cpSync(join(source, 'prebuilds', target, addon), join(source, 'prebuilds', other, 'desap.node'));
  check('and with that of another one', /desap\.node is .*, wanted /.test(prepack('').stderr));
  rmSync(join(source, 'prebuilds', other), { recursive: true });
  check('and with an unknown one left out', /DESAP_PACK_WITHOUT: got solaris/.test(prepack('solaris').stderr));
  check('all may be left out', prepack('all').status === 0);
  writeFileSync(join(source, 'dist', 'moved.js'), '');
  check('what has no source any more is refused', /dist\/moved.js has no source any more/.test(prepack('all').stderr));
  rmSync(join(source, 'dist', 'moved.js'));
}

const USE = `
const weights = (n, at) => Float32Array.from({ length: n }, (_, i) => Math.sin(i * 12.9898 + at));
const layer = (at) => ({ weight: weights(64, at), bias: weights(8, at) });
const head = { width: 8, heads: 2, projectionDim: 4, classToken: true, epsilon: 1e-5, ln1: { weight: weights(8, 1), bias: weights(8, 2) },
  q: layer(3), k: layer(4), v: layer(5), out: layer(6), postNorm: { weight: weights(8, 7), bias: weights(8, 8) }, visualProjection: weights(32, 9) };
const pruner = await desap.Pruner.load(head, { device: 'cpu' });
const { tokens, indices } = await pruner.prune({ data: weights(80, 10), dims: [10, 8] }, { data: weights(12, 11), dims: [3, 4] }, { keep: 3 });
if (indices.length !== 3 || tokens.dims.join() !== '3,8') throw new Error('wrong result');
const buffer = desap.HostBuffer.forTensor('float32', [10, 8]);
buffer.dispose();
pruner.dispose();
console.log(pruner.deviceDescription);
`;

try {
  mkdirSync(source);
  mkdirSync(consumer);
  for (const file of run(root, 'git', 'ls-files', '--cached', '--others', '--exclude-standard').split('\n')) {
    if (/^(models|test|bench)\//.test(file) || !existsSync(join(root, file))) continue;
    mkdirSync(dirname(join(source, file)), { recursive: true });
    cpSync(join(root, file), join(source, file));
  }
  symlinkSync(join(root, 'node_modules'), join(source, 'node_modules'));
  run(source, 'npm', 'run', '--silent', 'build:ts');
  if (process.argv.includes('--built')) takeBuilt();
  else run(source, 'npm', 'run', '--silent', 'package:native', '--', '--host');
  const [target] = readdirSync(join(source, 'prebuilds'));
  // A CUDA addon as cmake leaves it for packing. It is in the package, and nobody takes it for the CPU's.
  mkdirSync(join(source, 'prebuilds', target, 'cuda'));
  writeFileSync(join(source, 'prebuilds', target, 'cuda', 'desap_cuda.node'), 'not a library');
  const prebuilt = readdirSync(join(source, 'prebuilds', target), { recursive: true }).sort();
  const [, addon] = prebuilt.join().match(/^cuda,cuda.desap_cuda.node,(desap(?:.glibc|.musl)?.node)$/) ?? [];
  check('both addons are packed', addon !== undefined, prebuilt.join());
  checkPrepack(target, addon);
  run(source, 'npx', 'publint', '--strict');
  check('publint finds nothing', true);

  const [{ filename, files }] = JSON.parse(run(source, 'npm', 'pack', '--json', '--ignore-scripts'));
  const names = files.map(({ path }) => path);
  for (const wanted of [
    'dist/index.js',
    'dist/index.d.ts',
    'dist/cli/main.js',
    'native/kernels.h',
    'native/sources.json',
    'native/binding/device_cuda.cc',
    'native/cuda/attention.cu',
    'CMakeLists.txt',
    'tools/cuda/fetch.mjs',
    'tools/cuda/requirements.txt',
    'tools/pip.mjs',
    'LICENSE',
    'README.md',
  ])
    check(`the package holds ${wanted}`, names.includes(wanted));
  check('nothing in its root makes a client compile', !names.includes('binding.gyp'));
  check(
    'the package holds no tests, models or weights',
    !names.some((name) => /^(test|bench|models)\/|native\/test/.test(name)),
  );

  writeFileSync(join(consumer, 'package.json'), JSON.stringify({ name: 'consumer', private: true }));
  run(consumer, 'npm', 'install', '--silent', '--ignore-scripts', '--omit=peer', join(source, filename));
  check('nothing was compiled on installation', !existsSync(join(consumer, 'node_modules', 'desap', 'build')));
  const cmakeJs = join(root, 'node_modules', 'cmake-js', 'bin', 'cmake-js');
  const installed = join(consumer, 'node_modules', 'desap');
  run(installed, process.execPath, cmakeJs, 'configure', '--log-level', 'error', '--out', join(consumer, 'build'));
  check('CMake finds all that it compiles there', true);

  writeFileSync(join(consumer, 'esm.mjs'), `import * as desap from 'desap';\n${USE}`);
  writeFileSync(join(consumer, 'cjs.cjs'), `(async () => {\nconst desap = require('desap');\n${USE}\n})();`);
  check('import and prune', /avx|neon|scalar/.test(run(consumer, process.execPath, 'esm.mjs')));
  check('require and prune', /avx|neon|scalar/.test(run(consumer, process.execPath, 'cjs.cjs')));

  writeFileSync(
    join(consumer, 'types.mts'),
    `import { type PruneResult, Pruner } from 'desap';
     import { readTower } from 'desap/onnx';
     import { LlavaVision } from 'desap/onnxruntime';
     import { toImageEmbeds } from 'desap/serving';
     import { attach } from 'desap/transformers';
     export const indices = (kept: PruneResult): Int32Array => kept.indices;
     export const keep: Parameters<Pruner['prune']>[2] = { keep: 64, taskShare: 0.5 };
     export { attach, LlavaVision, readTower, toImageEmbeds };`,
  );
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  run(
    consumer,
    process.execPath,
    tsc,
    '--noEmit',
    '--strict',
    '--module',
    'nodenext',
    '--target',
    'es2022',
    '--lib',
    'es2023,esnext.disposable,dom',
    'types.mts',
  );
  check('types resolve and check, libraries included', true);

  const devices = JSON.parse(run(consumer, 'npx', 'desap', 'devices', '--json'));
  check(
    'desap devices',
    devices.some(({ device, available }) => device === 'cpu' && available) &&
      devices.some(({ device, reason }) => device === 'cuda' && /cuda.desap_cuda.node does not load/.test(reason)),
    JSON.stringify(devices),
  );

  writeFileSync(
    join(consumer, 'missing.mjs'),
    `import { LlavaVision } from 'desap/onnxruntime';
     await LlavaVision.open('vision.onnx', { clip: 'clip' }).then(() => process.exit(1), (error) => console.log(error.code, error.message));`,
  );
  const missing = run(consumer, process.execPath, 'missing.mjs');
  check(
    'a missing optional package is named with its install line',
    /ERR_MISSING_PACKAGE .*npm install onnxruntime-node/.test(missing),
    missing,
  );
  console.log('pack check passed');
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
