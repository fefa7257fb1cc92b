/**
 * The short form of `npm run fuzz`: every file of the corpus and a fixed list of changed files, each target in a process of its own; and
 * that a fuzzer finds what it is made for.
 */
import { describe, expect, it } from 'vitest';
import { DesapError } from '../../src/errors.js';
import { runFuzzer } from './fuzzer.js';
import { type Finding, fuzz } from './loop.js';
import { Disagreement, TARGETS, type Target } from './targets.js';
import { json } from './tree.js';

/** Changed files: what a quiet machine reads in a few seconds. */
const RUNS: Record<keyof typeof TARGETS, number> = {
  safetensors: 300,
  onnx: 60,
  external: 50,
  tokenizer: 150,
  picture: 120,
};

it.each(Object.keys(TARGETS))('%s', { timeout: 400_000 }, async (name) => {
  const { summary, findings } = await runFuzzer(name, { seed: 1, seconds: 60, runs: RUNS[name] });
  expect(findings.map(({ kind, message }) => `${kind}: ${message}`)).toEqual([]);
  expect(summary!.read).toBeGreaterThan(0);
  expect(summary!.read).toBeLessThan(summary!.runs);
});

describe('a fuzzer finds', { timeout: 300_000 }, () => {
  const bytes = new TextEncoder().encode('{"a":{"b":[1,2,3]},"c":"text"}');
  const found = async (read: (value: never, text: string) => void, limits: Partial<Target> = {}) => {
    const target: Target = {
      seeds: () => [{ name: 'seed', bytes }],
      format: () => json,
      seconds: 5,
      memory: 2 ** 28,
      ...limits,
      read: async (given) => {
        const text = new TextDecoder().decode(given);
        let value: never;
        try {
          value = JSON.parse(text) as never;
        } catch (cause) {
          throw new DesapError('ERR_FILE', 'no JSON', { cause });
        }
        read(value, text);
      },
    };
    const findings: Finding[] = [];
    const watcher = { begins: () => {}, found: (one: Finding) => findings.push(one) };
    await fuzz(target, 1, (runs) => runs >= 60, watcher, { blocks: 0, grown: () => false });
    return findings;
  };

  it('nothing in a reader without faults', async () => {
    expect(await found(() => {})).toEqual([]);
  });

  it('an error that is no refusal, and a small file that shows it', async () => {
    const findings = await found((value: { a: { b: number[] } }) => value.a.b.length);
    expect(findings[0]).toMatchObject({ kind: 'thrown', message: expect.stringContaining('TypeError') });
    expect(findings[0].bytes.length).toBeLessThan(2 * bytes.length);
  });

  it('a refusal of another code', async () => {
    const findings = await found((value: { c?: string }) => {
      if (value.c !== 'text') throw new DesapError('ERR_INTERNAL', 'broken');
    });
    expect(findings[0]).toMatchObject({ kind: 'thrown', message: expect.stringContaining('broken') });
  });

  it('two ways that do not agree', async () => {
    const findings = await found((_, text) => {
      if (!text.includes('text')) throw new Disagreement('memory and file');
    });
    expect(findings[0].kind).toBe('disagreement');
  });

  it('what takes too long', async () => {
    const findings = await found(
      (value: { c?: string }) => {
        for (const start = process.cpuUsage(); value.c !== 'text' && process.cpuUsage(start).user < 100_000; );
      },
      { seconds: 0.08 },
    );
    expect(findings[0].kind).toBe('slow');
  });

  it('what takes too much memory', async () => {
    const held: Uint8Array[] = [];
    const findings = await found(
      (value: { c?: string }) => {
        if (value.c !== 'text' && held.length === 0) held.push(new Uint8Array(2 ** 29).fill(1));
      },
      { memory: 2 ** 25 },
    );
    expect(findings.map(({ kind }) => kind)).toEqual(['memory']);
  });
});
