import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { desap, ONE_LINE } from './run.js';

const IMAGE = 'models/eval/demo/02.png';
const QUESTION = 'what color is the star ?';

/** Runs `desap` with an output on a full disk. */
function onFullDisk(stream: 'stdout' | 'stderr', ...args: string[]): Promise<{ code: number | null; err: string }> {
  const full = openSync('/dev/full', 'w');
  const stdio = stream === 'stdout' ? (['ignore', full, 'pipe'] as const) : (['ignore', 'pipe', full] as const);
  const child = spawn(process.execPath, ['--import', 'tsx', 'src/cli/main.ts', ...args], { stdio: [...stdio] });
  let err = '';
  child.stderr?.on('data', (chunk) => {
    err += chunk;
  });
  return new Promise((resolve) =>
    child.on('close', (code) => {
      closeSync(full);
      resolve({ code, err });
    }),
  );
}

describe('the command line', () => {
  it('says in one line that its output cannot be written', async () => {
    const { code, err } = await onFullDisk('stdout', 'devices');
    expect(code).toBe(1);
    expect(err).toMatch(ONE_LINE);
    expect(err).toContain('ENOSPC');
  });

  it('keeps its exit code when nobody can be told why', async () => {
    expect((await onFullDisk('stderr', 'prone')).code).toBe(2);
  });

  it('explains itself', async () => {
    const { code, out } = await desap('--help');
    expect(code).toBe(0);
    for (const command of ['answer', 'prune', 'demo', 'eval', 'extract', 'verify', 'flops', 'devices'])
      expect(out).toContain(command);
    expect(out).toContain('Examples:');
    expect((await desap('--version')).out).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  it.concurrent.each(['answer', 'prune', 'demo', 'eval', 'extract', 'verify', 'flops', 'devices'])(
    'has an example for %s',
    async (command) => {
      const { code, out } = await desap(command, '--help');
      expect(code).toBe(0);
      expect(out).toMatch(/Examples?:\n {2}\$ desap/);
    },
  );

  it.concurrent.each([
    ['an unknown option', ['devices', '--colour']],
    ['an unknown command', ['prone']],
    ['a missing argument', ['answer', IMAGE]],
    ['keep 0', ['prune', IMAGE, QUESTION, '--keep', '0']],
    ['keep 1.5', ['prune', IMAGE, QUESTION, '--keep', '1.5']],
    ['no keep', ['prune', IMAGE, QUESTION]],
    ['a ratio above 1', ['prune', IMAGE, QUESTION, '--keep-ratio', '1.5']],
    ['keep and its ratio', ['prune', IMAGE, QUESTION, '--keep', '4', '--keep-ratio', '0.1']],
    ['no question', ['prune', IMAGE, '--keep', '4']],
    ['an unknown device', ['devices', '--device', 'abacus']],
    ['an unknown precision', ['verify', 'case', '--precision', 'int4']],
    ['an unknown instruction set', ['verify', 'x', '--isa', 'mmx']],
    ['a share above 1', ['prune', IMAGE, QUESTION, '--keep', '4', '--task-share', '2']],
    ['an unknown model shape', ['flops', '--model', 'abacus']],
    ['no file of questions', ['eval', '--keep', '4']],
    ['no amount to keep', ['eval', '--questions', 'q.jsonl']],
    ['an unknown scoring', ['eval', '--questions', 'q.jsonl', '--keep', '4', '--scoring', 'bleu']],
    ['an unknown benchmark', ['eval', 'convert', 'abacus', 'file', '-o', 'out']],
    ['no file to write', ['eval', 'convert', 'pope', 'file']],
  ])('exits with 2 for %s', async (_, args) => {
    const { code, out, err } = await desap(...args);
    expect(code).toBe(2);
    expect(out).toBe('');
    expect(err).toMatch(ONE_LINE);
    expect(err).toContain('--help');
  });

  it.concurrent.each([
    ['a ratio as --keep', ['prune', IMAGE, QUESTION, '--keep', '0.1'], /--keep-ratio/],
    ['the precision strict', ['verify', 'x', '--precision', 'strict'], /fp32, its name now/],
    ['the precision fast', ['verify', 'x', '--precision', 'fast'], /fp16, its name now/],
  ])('names the new name for %s', async (_, args, message) => {
    const { code, err } = await desap(...args);
    expect(code).toBe(2);
    expect(err).toMatch(ONE_LINE);
    expect(err).toMatch(message);
  });

  it.concurrent.each([
    ['an image that is not there', ['prune', 'no/such.png', QUESTION, '--keep', '4'], /no\/such\.png/],
    ['a file that is no image', ['prune', 'package.json', QUESTION, '--keep', '4'], /not an image/],
    ['a model folder that is not there', ['answer', IMAGE, QUESTION, '--model', 'no/such'], /no such folder/],
    ['a CLIP folder that is not there', ['prune', IMAGE, QUESTION, '--keep', '4', '--clip', 'no/such'], /no\/such/],
    ['more tokens than patches', ['prune', IMAGE, QUESTION, '--keep', '200'], /keep: got 200, wanted .*144/],
    ['an empty question', ['prune', IMAGE, '', '--keep', '4'], /question: got '', wanted a question/],
    ['an empty question to the language model', ['answer', IMAGE, ' '], /question/],
    ['an image token in the question', ['answer', IMAGE, 'is <image> there ?'], /<image>/],
  ])('exits with 1 and one line for %s', async (_, args, message) => {
    const { code, out, err } = await desap(...args);
    expect(err).toMatch(message);
    expect(err).toMatch(ONE_LINE);
    expect(code).toBe(1);
    expect(out).toBe('');
  });

  it('shows the stack with --verbose', async () => {
    expect((await desap('--verbose', 'prune', 'no/such.png', QUESTION, '--keep', '4')).err).toMatch(/\n\s+at /);
  });
});
