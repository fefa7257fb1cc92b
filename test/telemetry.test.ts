import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';

const scratch = mkdtempSync(join(tmpdir(), 'desap-telemetry-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

interface Traces {
  /** Files in the home and the temporary folder, which were empty. */
  readonly files: string[];
  /** System calls that connect to something; null where there is no strace. */
  readonly connections: string[] | null;
  readonly out: string;
  readonly err: string;
}

const found = (command: string) =>
  (process.env.PATH ?? '').split(':').some((folder) => {
    try {
      return readdirSync(folder).includes(command);
    } catch {
      return false;
    }
  });
const STRACE = process.platform === 'linux' && found('strace');

let runs = 0;

/** Runs Node with an empty home and temporary folder, and none of the variables that ONNX Runtime knows test servers by. */
function traced(args: readonly string[], env: Record<string, string> = {}): Promise<Traces> {
  const folder = join(scratch, `${runs++}`);
  const [home, temporary, log] = ['home', 'tmp', 'strace.log'].map((name) => join(folder, name));
  for (const path of [home, temporary]) mkdirSync(path, { recursive: true });
  const { PATH = '' } = process.env;
  const node = [process.execPath, ...args];
  const [command, ...rest] = STRACE ? ['strace', '-f', '-e', 'trace=connect,sendto', '-o', log, ...node] : node;
  return new Promise((resolve, reject) => {
    execFile(command, rest, { env: { PATH, HOME: home, TMPDIR: temporary, ...env } }, (error, out, err) => {
      if (error) return reject(error);
      const list = (path: string) => readdirSync(path, { recursive: true, withFileTypes: true });
      const files = [...list(home), ...list(temporary)].filter((entry) => entry.isFile()).map(({ name }) => name);
      const connections = STRACE
        ? readFileSync(log, 'utf8')
            .split('\n')
            .filter((line) => /AF_(INET|UNIX)/.test(line))
        : null;
      resolve({ files, connections, out, err });
    });
  });
}

const answer = [
  'dist/cli/main.js',
  'answer',
  'models/eval/images/000.png',
  'what is the large thing ?',
  '--keep',
  '16',
];
const quiet = { files: [], connections: STRACE ? [] : null };

describe("ONNX Runtime's usage data", () => {
  it('is neither kept nor sent by the command line', async () => {
    const traces = await traced(answer);
    expect(traces.out).toContain('cloud');
    expect(traces).toMatchObject(quiet);
  });

  it.runIf(process.platform !== 'win32')(
    'is kept where the user wants it, so that these tests can see it',
    async () => {
      const { files } = await traced(answer, { ORT_DISABLE_TELEMETRY: '0' });
      expect(files).toContain('onnxruntime.db');
    },
  );

  it.each([
    ['desap/onnxruntime', 'vision/index.js'],
    ['desap/transformers', 'transformers/index.js'],
    ['desap/onnx', 'onnx/index.js'],
  ])('is off for sessions of the user, once %s is imported', async (_, file) => {
    const program = `
      import { InferenceSession } from 'onnxruntime-node';
      import './dist/${file}';
      await InferenceSession.create('models/tiny-clip/onnx/text_model.onnx');`;
    expect(await traced(['--input-type=module', '--eval', program])).toMatchObject({ ...quiet, err: '' });
  });
});

describe('in a worker', () => {
  const worker = (options: string, before = '') => `
    import { SHARE_ENV, Worker } from 'node:worker_threads';
    ${before}
    new Worker(\`
      import('${process.cwd()}/dist/vision/index.js').then(({ ClipText }) =>
        ClipText.open({ model: 'models/tiny-clip/onnx/text_model.onnx', tokenizer: 'models/tiny-clip' }));
    \`, { eval: true, ${options} });`;
  const run = (program: string, env?: Record<string, string>) =>
    traced(['--input-type=module', '--eval', program], env);

  it('whose environment is a copy, it says once that it cannot', async () => {
    const { err } = await run(worker(''));
    expect(err.match(/DESAP_TELEMETRY/g)).toHaveLength(1);
    expect(err).toMatch(/ORT_DISABLE_TELEMETRY=1.*main thread.*SHARE_ENV/);
  });

  it.each<[string, string, Record<string, string>]>([
    ['that shares the environment', worker('env: SHARE_ENV'), {}],
    ['of a process that was started with the variable', worker(''), { ORT_DISABLE_TELEMETRY: '1' }],
    ['of a main thread that has imported the package', worker('', "import './dist/vision/index.js';"), {}],
  ])('%s nothing is kept', async (_, program, env) => {
    expect(await run(program, env)).toMatchObject({ ...quiet, err: '' });
  });
});
