import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { addonFile } from './fixtures/native.mjs';
import { ROOT } from './support.js';

const TUPLE = `${process.platform}-${process.arch}`;

/** A project that has the package installed, beside what the package needs: where it is, no build is found by accident. */
let project: string;
const installed = (...path: string[]) => join(project, 'node_modules', ...path);

beforeAll(() => {
  project = mkdtempSync(join(tmpdir(), 'desap-installed-'));
  const filter = (file: string) => !/\.(d\.ts|map)$/.test(file);
  cpSync(join(ROOT, 'dist'), installed('desap', 'dist'), { recursive: true, filter });
  cpSync(join(ROOT, 'package.json'), installed('desap', 'package.json'));
  const { dependencies } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
  for (const name of Object.keys(dependencies)) {
    mkdirSync(dirname(installed(name)), { recursive: true });
    symlinkSync(join(ROOT, 'node_modules', name), installed(name), 'junction');
  }
});

afterAll(() => rmSync(project, { recursive: true }));

/** What a program of the project writes, and the warnings with this code. */
function run(program: string, code: string, env: Record<string, string> = {}) {
  const { DESAP_CPU_ADDON, LIBC, ...rest } = process.env;
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '--eval', program], {
    ...{ cwd: project, encoding: 'utf8', env: { ...rest, ...env } },
  });
  const warnings = stderr.split('\n').filter((line) => line.includes(`[${code}]`));
  return { output: stdout.trim(), warnings, stderr };
}

describe('the addon of an installed package', () => {
  const program = `
    import { devices, openBackend } from 'desap';
    openBackend();
    openBackend();
    const [cpu] = devices();
    console.log(cpu.available ? 'available' : cpu.reason);`;
  const open = (env?: Record<string, string>) => run(program, 'DESAP_REFERENCE', env);

  /** `null`: the addon that was built here; a text: what the file holds. */
  function carries(files: Record<string, string | null>) {
    mkdirSync(installed('desap', 'prebuilds', TUPLE), { recursive: true });
    for (const [name, text] of Object.entries(files)) {
      const file = installed('desap', 'prebuilds', TUPLE, name);
      if (text === null) cpSync(addonFile, file);
      else writeFileSync(file, text);
    }
  }

  afterEach(() => rmSync(installed('desap', 'prebuilds'), { recursive: true, force: true }));

  it('that is missing: auto warns once, and says how to compile one', () => {
    const { output, warnings } = open();
    const advice = /npm install node-addon-api && npm explore desap -- npx cmake-js compile --target desap /;
    expect(output).toMatch(/no native addon in .*desap.*: No native build was found for .*\(prebuilt ones: none\)/);
    expect(output).toMatch(advice);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toMatch(advice);
  });

  it('is the one of the C library that is there', () => {
    carries({ 'desap.glibc.node': null, 'desap.musl.node': 'for musl' });
    expect(open({ LIBC: 'glibc' })).toMatchObject({ output: 'available', warnings: [] });
    expect(open({ LIBC: 'musl' }).output).toMatch(/desap\.musl\.node does not load/);
    carries({ 'desap.glibc.node': 'for glibc', 'desap.musl.node': null });
    expect(open({ LIBC: 'musl' })).toMatchObject({ output: 'available', warnings: [] });
    expect(open({ LIBC: 'glibc' }).output).toMatch(/desap\.glibc\.node does not load/);
  });

  it('is none where there is only that of another C library', () => {
    carries({ 'desap.glibc.node': null });
    expect(open({ LIBC: 'musl' }).output).toMatch(
      /No native build was found for .*libc=musl.* \(prebuilt ones: .*desap\.glibc\.node\)/,
    );
  });
});

describe('an optional package of the project', () => {
  /** A package of this version, in place of the one that is there. */
  function installs(name: string, version: string, source: string) {
    mkdirSync(installed(name), { recursive: true });
    writeFileSync(installed(name, 'package.json'), JSON.stringify({ name, version, main: 'index.js' }));
    writeFileSync(installed(name, 'index.js'), source);
  }

  const RUNTIME = 'module.exports = { InferenceSession: class {}, Tensor: class {} };';
  const openTwice = `
    import { LlavaVision } from 'desap/onnxruntime';
    for (let i = 0; i < 2; i++) await LlavaVision.open('vision.onnx', { clip: 'clip' }).catch(({ code }) => console.log(code));`;

  it('that is older than those tested is told once', () => {
    installs('onnxruntime-node', '1.20.1', RUNTIME);
    const { warnings, stderr } = run(openTwice, 'DESAP_OLD_PACKAGE');
    expect(warnings, stderr).toHaveLength(1);
    expect(warnings[0]).toMatch(/onnxruntime-node 1\.20\.1 is older than .*: 1\.21\.0 and later/);
  });

  it.each(['1.21.0', '1.21.0-dev.20250101', '1.100.0', '99.0.0'])('of version %s is not', (version) => {
    installs('onnxruntime-node', version, RUNTIME);
    const { output, warnings } = run(openTwice, 'DESAP_OLD_PACKAGE');
    expect(output).not.toBe('');
    expect(output).not.toMatch(/MISSING_PACKAGE/);
    expect(warnings).toEqual([]);
  });

  it('is told each by its name: the one that a pool of workers needs too', () => {
    installs('onnxruntime-node', '1.20.1', RUNTIME);
    installs('piscina', '4.9.2', 'module.exports = { Piscina: class { constructor() { throw new Error("old"); } } };');
    const { warnings, stderr } = run(
      `import { VisionPool } from 'desap/server';
       for (let i = 0; i < 2; i++) await VisionPool.open('.', { workers: 1 }).catch(({ message }) => console.log(message));
       ${openTwice}`,
      'DESAP_OLD_PACKAGE',
    );
    expect(warnings.map((line) => line.match(/(\S+) \S+ is older/)?.[1]).sort(), stderr).toEqual([
      'onnxruntime-node',
      'piscina',
    ]);
  });
});
