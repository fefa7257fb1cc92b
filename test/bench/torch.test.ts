import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { TorchProcess } from '../../bench/head/torch.js';
import { normalTensor, randomHead } from '../support.js';

const HEAD = randomHead(4, { width: 8, heads: 2, projectionDim: 6 });
const QUESTION = { hidden: normalTensor(1, 10, 8), text: normalTensor(2, 3, 6), keep: 4 };

/** Speaks as bench/peers/torch_cpu.py does: what it was started with becomes its version, and time is what it was asked. */
const PEER = `
const [script, folder, threads, ...types] = process.argv.slice(2);
const answer = (fields) => console.log(JSON.stringify(fields));
const { readFileSync } = require('node:fs');
const question = readFileSync(folder + '/question.safetensors');
const header = JSON.parse(question.subarray(8, 8 + Number(question.readBigUInt64LE(0))));
readFileSync(folder + '/head.safetensors');
console.error('warned');
const about = [require('node:path').basename(script), threads, header.hidden.shape, header.text.shape, header.__metadata__.keep];
answer({ version: about.join(' '), contestants: types.map((type) => 'eager, ' + type), cpu_ms: 100 });
let asked = 0;
require('node:readline').createInterface({ input: process.stdin }).on('line', (line) => {
  const { contestant, order } = JSON.parse(line);
  asked++;
  if (asked > 2) { console.error('out of memory'); process.exit(3); }
  if (order === 'time') answer({ ms: contestant.length, cpu_ms: 100 + asked });
  else answer({ indices: [1, 2], assignment: [0, 1, 1], tokens: [0.5, 1.5], cpu_ms: 100 + asked });
});
`;

let folder: string;
let python: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-test-'));
  python = join(folder, 'python');
  await writeFile(join(folder, 'peer.cjs'), PEER);
  await writeFile(python, `#!/bin/sh\nexec "${process.execPath}" "${join(folder, 'peer.cjs')}" "$@"\n`);
  await chmod(python, 0o755);
});

afterAll(() => rm(folder, { recursive: true }));

test('a process runs the contestants that it names when it is told to, and its own time is known', async () => {
  using torch = await TorchProcess.start(python, HEAD, QUESTION, 2, true);
  expect(torch.version).toBe('torch_cpu.py 2 10,8 3,6 4');
  expect(torch.processorTime).toBe(100);
  const [float32, bf16] = torch.contestants();
  expect(float32).toMatchObject({ name: 'PyTorch, eager, float32', threads: 2, arithmetic: 'float32' });
  expect(bf16).toMatchObject({ name: 'PyTorch, eager, bfloat16', threads: 2, arithmetic: 'bf16' });
  expect(await bf16.time()).toBe('eager, bfloat16'.length);
  expect(torch.processorTime).toBe(101);
  const tokens = Float32Array.of(0.5, 1.5);
  expect(await float32.outcome()).toEqual({ indices: [1, 2], assignment: [0, 1, 1], tokens });
  await expect(float32.time()).rejects.toThrow(/ended \(3\): warned\nout of memory/);
});

test('a program that ends at once, or is not there, is an error that says so', async () => {
  const start = (program: string) => TorchProcess.start(program, HEAD, QUESTION, 1, false);
  const broken = join(folder, 'broken');
  await writeFile(broken, '#!/bin/sh\necho "No module named torch" >&2\nexit 1\n');
  await chmod(broken, 0o755);
  await expect(start(broken)).rejects.toThrow(`${broken}, which --python names, ended (1): No module named torch`);
  await expect(start(join(folder, 'missing'))).rejects.toThrow('ENOENT');
});
