// Tries the packed package in the surroundings that others run it in: test runners that give each file a realm of its own, bundlers,
// and other runtimes. Each has to give what plain Node gives.
//
//   npm run build && npm run test:consumers                   # all
//   npm run test:consumers -- --only node,jest                # some
//   npm run test:consumers -- --skip deno                     # where a tool cannot be had
//   npm run test:consumers -- --short                         # one bundle of each form, one realm of each runner
//
// Needs a package registry; what it installs goes into a temporary folder.
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Attempts } from '../pack/attempts.mjs';
import { stage } from '../pack/stage.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, '..', '..');
const { values: flags } = parseArgs({
  options: { only: { type: 'string' }, skip: { type: 'string' }, short: { type: 'boolean', default: false } },
});
const names = (list) => list?.split(',') ?? [];
const { items } = JSON.parse(readFileSync(join(root, 'models', 'expected.json'), 'utf8'));

const scratch = mkdtempSync(join(tmpdir(), 'desap-consumers-'));
const project = join(scratch, 'project');
const bin = (name) => join(project, 'node_modules', '.bin', name);

/** Runs a program in the project; its stdout and stderr together. Its home and temporary folder are empty ones. */
function run(command, args = [], { cwd = project, env = {} } = {}) {
  const places = { HOME: join(scratch, 'home'), TMPDIR: join(scratch, 'tmp') };
  // Servers of continuous integration are spared by what is looked for here.
  const { CI, GITHUB_ACTIONS, GITLAB_CI, TF_BUILD, TRAVIS, JENKINS_URL, ORT_DISABLE_TELEMETRY, ...inherited } =
    process.env;
  try {
    return execFileSync('/bin/sh', ['-c', '"$0" "$@" 2>&1', command, ...args], {
      cwd,
      encoding: 'utf8',
      timeout: 180_000,
      env: { ...inherited, ...places, DESAP_MODELS: join(root, 'models'), ...env },
    });
  } catch (error) {
    throw new Error(`${command} ${args.join(' ')}\n${error.stdout ?? error.message}`);
  }
}

/** The result that a program printed, among warnings. */
const resultIn = (output) => JSON.parse(output.split('\n').find((line) => line.startsWith('{')) ?? 'null');

function equal(what, got, want) {
  const [a, b] = [JSON.stringify(got), JSON.stringify(want)];
  if (a !== b) throw new Error(`${what}: got ${a}, wanted ${b}`);
}

function emptyFolder(folder) {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
}

function install() {
  mkdirSync(project);
  for (const folder of ['home', 'tmp']) emptyFolder(join(scratch, folder));
  for (const file of readdirSync(here)) if (file !== 'run.mjs') cpSync(join(here, file), join(project, file));
  const npm = (...args) =>
    execFileSync('npm', [...args, '--ignore-scripts', '--loglevel=error'], {
      cwd: project,
      stdio: ['ignore', 'ignore', 'inherit'],
    });
  try {
    npm(...withoutSkipped());
  } catch {
    throw new Error('npm cannot install a tool, which it names above; --skip leaves one out');
  }
  npm('install', '--no-save', stage(join(scratch, 'source')));
}

/** Takes the tools out that nothing needs which is left, and says how npm installs the others. */
function withoutSkipped() {
  const left = Object.keys(CONSUMERS).filter((name) => !names(flags.skip).includes(name));
  const file = join(project, 'package.json');
  const { devDependencies, ...rest } = JSON.parse(readFileSync(file, 'utf8'));
  const tool = (name) => name.split('-')[0];
  const tools = new Set(Object.keys(CONSUMERS).map(tool));
  const kept = Object.entries(devDependencies).filter(
    ([name]) => !tools.has(name) || left.some((one) => tool(one) === name),
  );
  if (kept.length === Object.keys(devDependencies).length) return ['ci'];
  writeFileSync(file, JSON.stringify({ ...rest, devDependencies: Object.fromEntries(kept) }));
  return ['install'];
}

/** The binary of a runtime that npm has as a package for each platform; its install script would only link it. */
function runtime(scope, file) {
  const folder = join(project, 'node_modules', scope);
  const found = existsSync(folder)
    ? readdirSync(folder)
        .map((name) => join(folder, name, file))
        .find(existsSync)
    : undefined;
  if (!found) throw new Error(`${scope}/*/${file} is not installed; --skip leaves it out`);
  return found;
}

/** Bundles of one program: as ES module and as CommonJS, where they lie, and what Node says about them. */
const bundlers = {
  async esbuild(format, outfile) {
    const { build } = load('esbuild');
    const { warnings } = await build({
      entryPoints: [join(project, 'program.mjs')],
      bundle: true,
      platform: 'node',
      format,
      outfile,
      external: ['sharp'],
      logLevel: 'silent',
    });
    return warnings;
  },
  async rollup(format, file) {
    const { rollup } = load('rollup');
    const bundle = await rollup({
      input: join(project, 'program.mjs'),
      external: ['sharp'],
      plugins: [
        load('@rollup/plugin-node-resolve').nodeResolve({ preferBuiltins: true }),
        load('@rollup/plugin-commonjs')(),
      ],
      onwarn: () => {},
    });
    await bundle.write({ file, format, inlineDynamicImports: true });
    await bundle.close();
  },
  async webpack(format, file) {
    const esm = format === 'esm';
    const stats = await new Promise((resolve, reject) => {
      const options = {
        mode: 'production',
        target: 'node20',
        context: project,
        entry: './program.mjs',
        experiments: { outputModule: esm },
        output: {
          path: dirname(file),
          filename: file.split('/').at(-1),
          library: { type: esm ? 'module' : 'commonjs2' },
        },
        externals: { sharp: `${esm ? 'import' : 'commonjs'} sharp` },
        optimization: { minimize: false, splitChunks: false },
        module: { parser: { javascript: { dynamicImportMode: 'eager' } } },
      };
      load('webpack')(options, (error, result) => (error ? reject(error) : resolve(result)));
    });
    if (stats.hasErrors()) throw new Error(stats.toString({ all: false, errors: true }));
  },
};

const load = (name) => createRequire(join(project, 'package.json'))(name);

/** A bundle works beside node_modules; moved away from them it says once what to do, and works where it is told. */
async function checkBundle(name, format, expected) {
  const file = join(project, 'bundles', `${name}.${format === 'esm' ? 'mjs' : 'cjs'}`);
  mkdirSync(dirname(file), { recursive: true });
  await bundlers[name](format, file);
  equal(`${name} ${format}`, resultIn(run(process.execPath, [file])), expected);
}

/** Away from node_modules there is no native part: importing works, says so once, and runs where the variable names the addon. */
function checkMoved(expected) {
  const alone = join(scratch, 'alone');
  mkdirSync(alone);
  for (const file of ['kernels.cjs', 'kernels.mjs']) {
    cpSync(join(project, 'bundles', file), join(alone, file));
    const lost = run(process.execPath, [file], { cwd: alone });
    equal(`${file} alone`, resultIn(lost), { device: 'reference', best: '0,2' });
    equal(`warnings of ${file}`, lost.match(/DESAP_REFERENCE/g)?.length, 1);
    if (!/mark desap as external .* DESAP_CPU_ADDON/.test(lost)) throw new Error(`no advice in: ${lost}`);
    const addon = join(
      project,
      'node_modules',
      'desap',
      'prebuilds',
      `${process.platform}-${process.arch}`,
      'desap.node',
    );
    const told = run(process.execPath, [file], { cwd: alone, env: { DESAP_CPU_ADDON: addon } });
    equal(`${file} with DESAP_CPU_ADDON`, resultIn(told), { device: expected.device, best: '0,2' });
  }
}

async function bundleKernels() {
  writeFileSync(
    join(project, 'kernels.mjs'),
    `import { openBackend } from 'desap';
     openBackend(); const backend = openBackend();
     backend.topK({ scores: Float32Array.of(3, 1, 2), k: 2 }).then((best) => console.log(JSON.stringify({ device: backend.device, best: String(best) })));`,
  );
  for (const [format, extension] of [
    ['esm', 'mjs'],
    ['cjs', 'cjs'],
  ])
    await load('esbuild').build({
      entryPoints: [join(project, 'kernels.mjs')],
      bundle: true,
      platform: 'node',
      format,
      outfile: join(project, 'bundles', `kernels.${extension}`),
      logLevel: 'silent',
    });
}

const runner = (expected) => ({ DESAP_EXPECTED: JSON.stringify(expected) });
const vitest = (pool) => (expected) =>
  run(bin('vitest'), ['run', '--globals', `--pool=${pool}`, 'use.test.mjs'], {
    // Its threads have copies of the environment: what is set in one of them does not reach ONNX Runtime.
    env: { ...runner(expected), ...(pool === 'vmThreads' && { ORT_DISABLE_TELEMETRY: '1' }) },
  });
const bundle = (name, format) => (expected) => checkBundle(name, format, expected);

/** Each is given what Node gave. `long` ones are left out of the short form: another one tries the same there. */
const CONSUMERS = {
  jest: {
    check: (expected) =>
      run(
        process.execPath,
        [
          '--experimental-vm-modules',
          '--no-warnings',
          join(project, 'node_modules/jest/bin/jest.js'),
          '--testMatch',
          '**/use.test.mjs',
        ],
        {
          env: runner(expected),
        },
      ),
  },
  'vitest-vmThreads': { check: vitest('vmThreads') },
  'vitest-vmForks': { check: vitest('vmForks'), long: true },
  'esbuild-esm': { check: bundle('esbuild', 'esm') },
  'esbuild-cjs': { check: bundle('esbuild', 'cjs') },
  'esbuild-moved': { check: (expected) => bundleKernels().then(() => checkMoved(expected)) },
  'rollup-esm': { check: bundle('rollup', 'esm'), long: true },
  'rollup-cjs': { check: bundle('rollup', 'cjs') },
  'webpack-esm': { check: bundle('webpack', 'esm') },
  'webpack-cjs': { check: bundle('webpack', 'cjs'), long: true },
  bun: {
    check: (expected) => equal('bun', resultIn(run(runtime('@oven', 'bin/bun'), ['run', 'program.mjs'])), expected),
  },
  deno: {
    check: (expected) =>
      equal('deno', resultIn(run(runtime('@deno', 'deno'), ['run', '--allow-all', 'program.mjs'])), expected),
  },
};

function checkNoUsageData() {
  const found = ['home', 'tmp'].flatMap((folder) =>
    readdirSync(join(scratch, folder), { recursive: true }).filter((file) => /onnxruntime|mat-debug|\.ses$/.test(file)),
  );
  for (const folder of ['home', 'tmp']) emptyFolder(join(scratch, folder));
  equal("files of ONNX Runtime's usage data", found, []);
}

const unknown = [...names(flags.only), ...names(flags.skip)].filter((name) => name !== 'node' && !(name in CONSUMERS));
if (unknown.length > 0)
  throw new Error(`unknown: ${unknown.join(', ')}; there are node, ${Object.keys(CONSUMERS).join(', ')}`);

const attempts = new Attempts();
try {
  const start = performance.now();
  install();
  console.log(`installed (${((performance.now() - start) / 1000).toFixed(1)} s)`);
  const expected = resultIn(run(process.execPath, ['program.mjs']));
  equal(
    'node',
    { device: expected.device, refused: expected.refused, patches: expected.patches },
    { device: 'cpu', refused: 'true ERR_NOT_FINITE', patches: `${items[0].kept}` },
  );
  console.log('ok node');
  for (const [name, { check, long }] of Object.entries(CONSUMERS)) {
    if (flags.only ? !names(flags.only).includes(name) : flags.short && long) continue;
    if (names(flags.skip).includes(name)) {
      console.log(`skipped ${name}`);
      continue;
    }
    await attempts.try(name, async () => {
      await check(expected);
      checkNoUsageData();
    });
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
attempts.end('consumers');
