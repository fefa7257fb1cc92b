// Installs the packed package with each client, as its users do: their scripts may run, and there is no compiler. The only programs
// on PATH are Node, a shell and traps that note who calls a compiler, make or Python.
//
//   npm run build && npm run test:clients                   # all
//   npm run test:clients -- --short                         # those two that compile where they can
//   npm run test:clients -- --only npm,bun                  # some
//
// Needs a package registry; what it installs goes into a temporary folder.
import { execFileSync, spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Attempts } from '../pack/attempts.mjs';
import { stage } from '../pack/stage.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const { values: flags } = parseArgs({ options: { only: { type: 'string' }, short: { type: 'boolean' } } });
const only = flags.short ? ['yarn-1', 'pnpm-9'] : flags.only?.split(',');
const scratch = mkdtempSync(join(tmpdir(), 'desap-clients-'));
const programs = join(scratch, 'bin');
const called = join(scratch, 'called');
const TRAPS = ['cc', 'c++', 'gcc', 'g++', 'clang', 'clang++', 'make', 'cmake', 'python', 'python3', 'node-gyp'];

const npm = (cwd, ...args) =>
  execFileSync('npm', [...args, '--loglevel=error', '--no-audit', '--no-fund'], {
    cwd,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });

const registry = npm(here, 'config', 'get', 'registry').trim();

function preparePrograms() {
  mkdirSync(programs);
  symlinkSync(process.execPath, join(programs, 'node'));
  symlinkSync('/bin/sh', join(programs, 'sh'));
  for (const name of TRAPS) {
    writeFileSync(join(programs, name), `#!/bin/sh\necho "${name} $*" >> ${called}\nexit 1\n`);
    chmodSync(join(programs, name), 0o755);
  }
}

/** What npm tells the scripts that it runs is for them alone. */
const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('npm_')));

/** Runs a client in a project; stdout and stderr together. Its home is an empty one. */
function run(cwd, command, args) {
  const result = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    timeout: 300_000,
    env: {
      ...inherited,
      PATH: programs,
      HOME: join(scratch, 'home'),
      TMPDIR: join(scratch, 'tmp'),
      npm_config_registry: registry,
      YARN_NPM_REGISTRY_SERVER: registry,
    },
  });
  const output = `${result.stdout}${result.stderr}`;
  if (result.status !== 0)
    throw new Error(`${command} ${args.join(' ')}: ${result.error?.message ?? result.status}\n${output}`);
  return output;
}

const tool = (file) => join(scratch, 'tools', 'node_modules', file);
const node = (file, ...args) => [process.execPath, [tool(file), ...args]];
/** A program that npm has as a package for each platform, whose install script would only link it. */
const native = (scope, file) =>
  readdirSync(tool(scope))
    .map((name) => join(tool(scope), name, file))
    .find(existsSync);

/** A folder with package.json, for one client. */
function project(name, manifest = {}, files = {}) {
  const folder = join(scratch, name);
  mkdirSync(folder);
  writeFileSync(join(folder, 'package.json'), JSON.stringify({ name, private: true, ...manifest }));
  for (const [file, text] of Object.entries(files)) writeFileSync(join(folder, file), text);
  cpSync(join(here, 'use.mjs'), join(folder, 'use.mjs'));
  return folder;
}

/** What every installation has to be: no compiler called, nothing compiled, and the native addon at work. */
function check(folder, [command, args] = [process.execPath, []]) {
  if (existsSync(called)) throw new Error(`a compiler was called: ${readFileSync(called, 'utf8')}`);
  const output = run(folder, command, [...args, 'use.mjs']);
  const got = output.split('\n').find((line) => line.startsWith('{'));
  const want = JSON.stringify({ available: true, device: 'cpu', best: '0,2' });
  if (got !== want) throw new Error(`got ${output}, wanted ${want}`);
}

/** `command` is asked for when the tools are there. */
const add = (name, command) => (tarball) => {
  const folder = project(name);
  const [program, args] = command();
  run(folder, program, [...args, tarball]);
  check(folder);
};

const berry = (linker) => (tarball) => {
  const settings = `nodeLinker: ${linker}\nenableTelemetry: false\nenableGlobalCache: false\n`;
  const folder = project(`yarn-4-${linker}`, {}, { '.yarnrc.yml': settings, 'yarn.lock': '' });
  run(folder, ...node('@yarnpkg/cli-dist/bin/yarn.js', 'add', `desap@file:${tarball}`));
  check(folder, node('@yarnpkg/cli-dist/bin/yarn.js', 'node'));
};

/** The package beside optional peers of one version, which no project can be made to change. */
const peers = (version, warnings) => (tarball) => {
  const { peerDependencies } = JSON.parse(readFileSync(join(here, '..', '..', 'package.json'), 'utf8'));
  const dependencies = {};
  for (const name of Object.keys(peerDependencies)) {
    const folder = join(scratch, `peers-${version}`, name);
    mkdirSync(folder, { recursive: true });
    const session = 'class InferenceSession {} class Tensor {} module.exports = { InferenceSession, Tensor };';
    writeFileSync(join(folder, 'package.json'), JSON.stringify({ name, version, main: 'index.js' }));
    writeFileSync(join(folder, 'index.js'), session);
    const [{ filename }] = JSON.parse(npm(folder, 'pack', '--json'));
    dependencies[name] = `file:${join(folder, filename)}`;
  }
  const folder = project(`npm-peers-${version}`, { dependencies });
  run(folder, ...node('npm/bin/npm-cli.js', 'install', `file:${tarball}`));
  check(folder);
  writeFileSync(
    join(folder, 'old.mjs'),
    `import { LlavaVision } from 'desap/onnxruntime';
     for (let i = 0; i < 2; i++) await LlavaVision.open('vision.onnx', { clip: 'clip' }).catch(() => {});`,
  );
  const told = run(folder, process.execPath, ['old.mjs']).match(/DESAP_OLD_PACKAGE/g)?.length ?? 0;
  if (told !== warnings) throw new Error(`DESAP_OLD_PACKAGE: got ${told} warnings, wanted ${warnings}`);
};

const CLIENTS = {
  npm: add('npm', () => node('npm/bin/npm-cli.js', 'install')),
  'yarn-1': add('yarn-1', () => node('yarn/bin/yarn.js', 'add')),
  'pnpm-9': add('pnpm-9', () => node('pnpm-9/bin/pnpm.cjs', 'add')),
  'pnpm-10': add('pnpm-10', () => node('pnpm-10/bin/pnpm.cjs', 'add')),
  'pnpm-12': add('pnpm-12', () => [native('@pnpm', 'pnpm'), ['add']]),
  'yarn-4-node-modules': berry('node-modules'),
  'yarn-4-pnp': berry('pnp'),
  bun: add('bun', () => [native('@oven', 'bin/bun'), ['add']]),
  'older peers': peers('0.0.1', 1),
  'newer peers': peers('99.0.0', 0),
};

const attempts = new Attempts();
try {
  for (const folder of ['home', 'tmp', 'tools']) mkdirSync(join(scratch, folder));
  preparePrograms();
  cpSync(join(here, 'package.json'), join(scratch, 'tools', 'package.json'));
  npm(join(scratch, 'tools'), 'install', '--ignore-scripts');
  const tarball = stage(join(scratch, 'source'));
  for (const [name, install] of Object.entries(CLIENTS)) {
    if (only && !only.includes(name)) continue;
    rmSync(called, { force: true });
    await attempts.try(name, () => install(tarball));
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
attempts.end('clients');
