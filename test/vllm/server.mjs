// Starts the server of install.sh's venv, offline and on the loopback only, and waits until it answers.
import { spawn } from 'node:child_process';
import { createWriteStream } from 'node:fs';
import { join } from 'node:path';

const ENVIRONMENT = {
  HF_HUB_OFFLINE: '1',
  TRANSFORMERS_OFFLINE: '1',
  VLLM_NO_USAGE_STATS: '1',
  DO_NOT_TRACK: '1',
  VLLM_CPU_KVCACHE_SPACE: '1', // GiB
  VLLM_HOST_IP: '127.0.0.1',
  VLLM_PLUGINS: '',
};
// `vllm serve` looks for a package of the name vllm, and this one is called vllm-cpu.
const MODULE = 'vllm.entrypoints.openai.api_server';
const MOST_MINUTES = 15;

/**
 * @param folder install.sh's
 * @param model folder of the model
 * @param env more of the environment, as VLLM_PLUGINS
 * @param flags more of vLLM's
 */
export async function startServer({ folder, model, port, dtype = 'float32', env = {}, flags = [] }) {
  const base = `http://127.0.0.1:${port}`;
  const served = ['--model', model, '--served-model-name', 'tiny', '--host', '127.0.0.1', '--port', `${port}`];
  const small = ['--dtype', dtype, '--max-model-len', '2048', '--max-num-seqs', '32', '--enforce-eager', '--seed', '0'];
  // One process fewer to import everything.
  const few = ['--distributed-executor-backend', 'uni'];
  const asked = ['--generation-config', 'vllm', '--enable-mm-embeds', '--enable-prompt-embeds', ...few, ...flags];
  const started = performance.now();
  const server = spawn(join(folder, 'venv/bin/python'), ['-m', MODULE, ...served, ...small, ...asked], {
    env: { ...process.env, ...ENVIRONMENT, PATH: `${join(folder, 'venv/bin')}:${process.env.PATH}`, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true, // the engine's processes are its group's
  });
  const log = createWriteStream(join(folder, `server-${port}.log`));
  server.stdout.pipe(log, { end: false });
  server.stderr.pipe(log, { end: false });
  const ended = new Promise((resolve) => server.once('exit', resolve));
  let isOver = false;
  ended.then(() => {
    isOver = true;
  });
  const kill = () => {
    try {
      process.kill(-server.pid, 'SIGKILL');
    } catch {} // no process of the group is left
  };
  process.once('exit', kill);
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1));
  const stop = async () => {
    kill();
    await ended;
    process.off('exit', kill);
    log.end();
  };
  const healthy = () =>
    fetch(`${base}/health`, { signal: AbortSignal.timeout(2000) }).then(
      ({ ok }) => ok,
      () => false,
    );
  while (!(await healthy())) {
    if (isOver || performance.now() - started > MOST_MINUTES * 60_000) {
      await stop();
      throw new Error(`the server of ${model} did not start; see ${log.path}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  const ready = (performance.now() - started) / 1000;
  return { base, ready, healthy, hasEnded: () => isOver, stop };
}
