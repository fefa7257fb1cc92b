import { execFile } from 'node:child_process';
import { access, readFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, it } from 'vitest';

const run = promisify(execFile);
const { items } = JSON.parse(await readFile('models/expected.json', 'utf8'));
const [{ kept, pruned, full, question }] = items;

/** The lines that an example writes. */
async function example(name: string, ...args: string[]): Promise<string[]> {
  const { stdout } = await run(process.execPath, [`examples/${name}.mjs`, ...args]);
  return stdout.trim().split('\n');
}

describe('the examples', () => {
  beforeAll(() => access('dist/transformers/index.js'));

  it('answer from raw ONNX files', async () => {
    expect(await example('onnxruntime')).toEqual([
      `${question} ${pruned}`,
      `16 of 144 visual tokens: patches ${kept.join(' ')}`,
    ]);
  });

  it('answer through Transformers.js', async () => {
    const [first, eight, all] = await example('transformers');
    expect(first).toBe(`${question} ${pruned}`);
    expect(eight).toMatch(/^with 8 visual tokens: \w+/);
    expect(all).toBe(`with all of them: ${full}`);
  });

  it('take an image, a question and K', async () => {
    const [line, tokens] = await example('onnxruntime', 'models/eval/images/001.png', items[1].question, '48');
    expect(line.startsWith(items[1].question)).toBe(true);
    expect(tokens).toMatch(/^48 of 144/);
  });

  it('answer about an image in tiles', async () => {
    const [{ question, paper }] = JSON.parse(await readFile('models/expected-next.json', 'utf8'));
    const [answer, tokens] = await example('llava-next');
    expect(answer).toBe(`${question} ${paper}`);
    expect(tokens).toMatch(/^\d+ of 744 visual tokens; of each tile: 16 16 16 16 16$/);
  });

  it('prune the frames of a video', async () => {
    const [answer, tokens] = await example('video');
    expect(answer).toMatch(/^what happens\? token \d+$/);
    expect(tokens).toBe('40 of 136 visual tokens; of each frame: 4 4 4 4 4 4 4 4');
  });

  it('are short', async () => {
    for (const name of ['onnxruntime', 'llava-next', 'video']) {
      const lines = (await readFile(`examples/${name}.mjs`, 'utf8')).trim().split('\n');
      expect(lines.length).toBeLessThan(80);
    }
  });
});
