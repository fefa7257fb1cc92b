import { cp, mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Pruner } from '../../src/index.js';
import { desap } from './run.js';

const IMAGE = 'models/eval/demo/02.png';
const QUESTION = 'what color is the star ?';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-cli-'));
});
afterAll(() => rm(folder, { recursive: true }));

describe('desap answer', () => {
  it('answers on stdout and reports on stderr', async () => {
    const { code, out, err } = await desap('answer', IMAGE, QUESTION);
    expect([code, out]).toEqual([0, 'purple\n']);
    expect(err).toContain('144 visual tokens of 152 in the prompt');
  });

  it('prunes, and prints JSON', async () => {
    const { code, out } = await desap('answer', IMAGE, QUESTION, '--keep', '16', '--positions', 'original', '--json');
    const answer = JSON.parse(out);
    expect(code).toBe(0);
    expect(answer).toMatchObject({ tokens: 16, promptTokens: 24 });
    expect(answer.indices).toHaveLength(16);
    expect(answer.timings.prune).toBeGreaterThan(0);
  });
});

describe('--tower', () => {
  const tower = ['--tower', 'at=1,keep=0.25,by=class-token'];
  it('shows what was dropped, and draws it', async () => {
    const output = join(folder, 'tower.png');
    const asked = [IMAGE, QUESTION, '--keep', '8', ...tower];
    const { code, out } = await desap('prune', ...asked, '--json');
    const { dropped, indices } = JSON.parse(out);
    expect([code, dropped.length, indices.length]).toEqual([0, 108, 8]);
    const told = await desap('prune', ...asked, '-o', output);
    expect(told.out).toContain('dropped:     108 inside the tower');
    const { data, info } = await sharp(output).removeAlpha().raw().toBuffer({ resolveWithObject: true });
    // Greys that are neither: the lightest of a dropped patch is darker than the darkest of one that was not chosen.
    const [side, left, top] = [480 / 12, 24, 74];
    const grey = (patch: number) => {
      const x = left + ((patch % 12) + 0.5) * side;
      const y = top + (Math.floor(patch / 12) + 0.5) * side;
      return [0, 1, 2].map((c) => data[3 * (Math.floor(y) * info.width + Math.floor(x)) + c]);
    };
    const others = Array.from({ length: 144 }, (_, i) => i).filter((i) => !indices.includes(i) && !dropped.includes(i));
    for (const [r, g, b] of dropped.map(grey)) expect([r === g && g === b, r < 145]).toEqual([true, true]);
    for (const [r] of others.map(grey)) expect(r).toBeGreaterThanOrEqual(150);
  });

  it('answers with the tokens that stayed', async () => {
    const { code, out } = await desap('answer', IMAGE, QUESTION, '--keep-ratio', '1', ...tower, '--json');
    const { tokens, dropped } = JSON.parse(out);
    expect([code, tokens, dropped.length]).toEqual([0, 36, 108]);
  });

  it.each([
    ['words', 2, 'first', /Wanted name=value/],
    ['a block that there is not', 1, 'at=3,keep=4', /tower.at: got 3, wanted an integer from 1 to 2/],
    ['a rule that there is not', 1, 'at=1,keep=4,by=kk', /tower.by: got 'kk'/],
  ])('refuses %s', async (_, wanted, list, message) => {
    const { code, err } = await desap('prune', IMAGE, QUESTION, '--keep', '4', '--tower', list);
    expect([code, err]).toEqual([wanted, expect.stringMatching(message)]);
  });
});

describe('--method', () => {
  it('answers with the tokens of another method, whose taps it opens the model with', async () => {
    const by = ['--method', 'vscan', '--method-options', 'mergeSpace=hidden,windows=3'];
    const { code, out } = await desap('answer', IMAGE, QUESTION, '--keep', '16', ...by, '--json');
    const { tokens, indices, task } = JSON.parse(out);
    expect([code, tokens, indices.length, task]).toEqual([0, 16, 16, null]);
  });

  it('dart has text pivots of the prompt', async () => {
    const { code, out } = await desap('answer', IMAGE, QUESTION, '--keep', '32', '--method', 'dart', '--json');
    const without = await desap('prune', IMAGE, '--keep', '32', '--method', 'dart', '--json');
    expect([code, without.code]).toEqual([0, 0]);
    expect(JSON.parse(out).indices).not.toEqual(JSON.parse(without.out).indices);
  });

  it('shows what a method kept, without a question where it reads none', async () => {
    const { code, out } = await desap('prune', IMAGE, '--keep', '4', '--method', 'uniform');
    expect([code, out]).toEqual([
      0,
      expect.stringMatching(/^kept 4 of 144 patches on: .*\nby uniform: 39 45 111 117\nms: /),
    ]);
  });

  it('takes lists, and a method that says how many it keeps', async () => {
    const flowcut = ['--method', 'flowcut', '--method-options', 'taps=first+penultimate,merging=true'];
    const merged = await desap('prune', IMAGE, '--keep', '4', ...flowcut, '--json');
    expect(JSON.parse(merged.out).counts.reduce((sum: number, count: number) => sum + count)).toBe(144);
    const trim = ['--method', 'trim', '--method-options', 'adaptive=true', '--json'];
    const { code, out } = await desap('answer', IMAGE, QUESTION, ...trim);
    expect(code).toBe(0);
    expect(JSON.parse(out).tokens).toBeLessThan(144);
  });

  it.each([
    ['an unknown one', 2, ['--method', 'fastv'], /Allowed choices are desap, random/],
    ['options that are none', 2, ['--method', 'vscan', '--method-options', 'windows'], /Wanted name=value/],
    ['an option of another', 1, ['--method', 'vscan', '--method-options', 'runs=3'], /got the unknown option 'runs'/],
    [
      'what it has no part in',
      1,
      ['--method', 'vscan', '--task-share', '1'],
      /taskShare: got 1 beside method: 'vscan'/,
    ],
    ['a drawing of maps', 2, ['--method', 'vscan', '-o', 'kept.png'], /--output draws the maps/],
  ])('refuses %s', async (_, wanted, flags, message) => {
    const { code, err } = await desap('prune', IMAGE, QUESTION, '--keep', '4', ...flags);
    expect(code).toBe(wanted);
    expect(err).toMatch(message);
  });
});

describe('desap prune', () => {
  it('draws what it kept', async () => {
    const output = join(folder, 'kept.png');
    const { code, out } = await desap('prune', IMAGE, QUESTION, '--keep', '16', '-o', output);
    expect(code).toBe(0);
    expect(out).toContain('kept 16 of 144 patches');
    const { width, height, format } = await sharp(output).metadata();
    expect(format).toBe('png');
    expect(width).toBeGreaterThan(3 * 480);
    expect(height).toBeGreaterThan(480);
  });

  it('prints everything for programs', async () => {
    const { code, out } = await desap('prune', IMAGE, QUESTION, '--keep-ratio', '0.1', '--json');
    const kept = JSON.parse(out);
    expect(code).toBe(0);
    expect(kept.indices).toHaveLength(14);
    expect(kept.source.filter((source: number) => source === 0)).toHaveLength(7);
    expect(kept.assignment).toHaveLength(144);
    expect(kept.counts.reduce((sum: number, count: number) => sum + count)).toBe(144);
    expect(kept.maps.task).toHaveLength(144);
    expect(kept.maps.saliency).toHaveLength(144);
    expect(kept.timings.vision).toBeGreaterThan(0);
  });

  it('prunes by saliency alone, without a question and without a text tower', async () => {
    const clip = join(folder, 'vision-only');
    await mkdir(join(clip, 'onnx'), { recursive: true });
    await cp('models/tiny-clip/onnx/vision_model.onnx', join(clip, 'onnx/vision_model.onnx'));
    const output = join(folder, 'salient.png');
    const salient = ['--task-share', '0', '--clip', clip, '--keep', '16'];
    const { code, out } = await desap('prune', IMAGE, ...salient, '--json', '-o', output);
    const kept = JSON.parse(out);
    expect(code).toBe(0);
    expect(kept.source).toEqual(new Array(16).fill(1));
    expect(kept.maps.task).toBeNull();
    expect((await sharp(output).metadata()).width).toBeLessThan(3 * 480);
    const answer = await desap('answer', IMAGE, QUESTION, ...salient, '--json');
    expect(JSON.parse(answer.out).indices).toEqual(kept.indices);
  });

  it('leaves nothing where it cannot write', async () => {
    const { code, err } = await desap('prune', IMAGE, QUESTION, '--keep', '16', '-o', join(folder, 'no/such/kept.png'));
    expect(code).toBe(1);
    expect(err).toContain('cannot be written');
  });
});

describe('desap prune, --preset best', () => {
  it('keeps a half by task and a half that differs', async () => {
    const text = ['prune', IMAGE, QUESTION, '--keep', '16'];
    const { code, out } = await desap(...text, '--preset', 'best');
    expect([code, out]).toEqual([0, expect.stringMatching(/^by task: .*\nby diversity: /m)]);
    const same = ['--alignment', 'mean', '--complement', 'diversity', '--distances', 'projected', '--json'];
    const [a, b] = [await desap(...text, '--preset', 'best', '--json'), await desap(...text, ...same)];
    expect(JSON.parse(a.out).indices).toEqual(JSON.parse(b.out).indices);
    const hidden = await desap(...text, '--preset', 'best', '--distances', 'hidden', '--json');
    expect(JSON.parse(hidden.out).indices).not.toEqual(JSON.parse(b.out).indices);
  });
});

describe('desap demo', () => {
  it('shows answers side by side and an image', async () => {
    const { code, out } = await desap('demo', '--output', folder);
    expect(code).toBe(0);
    expect(out).toMatch(
      /correct: 33 of 36 with 144 visual tokens, 25 with 16 as in the paper, 29 with 16 by the preset best/,
    );
    expect(out).toContain(`drawing: ${join(folder, 'kept.png')}`);
  });
});

describe('desap extract', () => {
  it.each([
    ['an export', ['models/tiny-clip/onnx/vision_model.onnx']],
    ['a folder', ['models/tiny-clip']],
    ['weights', ['models/tiny-clip/model.safetensors']],
  ])('makes a head from %s', async (_, args) => {
    const output = join(folder, 'head.safetensors');
    const { code, out } = await desap('extract', ...args, '-o', output);
    expect(code).toBe(0);
    expect(out).toContain('width 128, 4 heads');
    using pruner = await Pruner.load(output, { device: 'reference' });
    expect(pruner.head).toEqual({ width: 128, heads: 4, projectionDim: 96, classToken: true });
  });

  it.each([
    ['no model', 'package.json'],
    ['a file without the last layer', 'models/tiny-llava/onnx/vision_encoder.onnx'],
    ['a missing file', 'no/such.onnx'],
  ])('leaves no file for %s', async (_, source) => {
    const empty = await mkdtemp(join(folder, 'none-'));
    const { code, err } = await desap('extract', source, '-o', join(empty, 'head.safetensors'));
    expect(code).toBe(1);
    expect(err).toMatch(/^desap: /);
    expect(await readdir(empty)).toEqual([]);
  });
});

describe('desap devices', () => {
  it('lists them', async () => {
    const { code, out } = await desap('devices', '--json');
    expect(code).toBe(0);
    const names = JSON.parse(out).map(({ device }: { device: string }) => device);
    expect(names).toEqual(expect.arrayContaining(['cpu', expect.stringMatching(/^cuda/), 'reference']));
    expect((await desap('devices')).out).toContain('reference');
  });
});

describe('desap flops', () => {
  it('gives the numbers of the paper', async () => {
    const { code, out } = await desap('flops');
    expect(code).toBe(0);
    expect(out).toContain('576 visual tokens cost 3.82 T');
    expect(out).toMatch(/64 +0\.42 T +9\.2x/);
  });

  it('prints JSON for other shapes', async () => {
    const { out } = await desap(
      'flops',
      '--width',
      '8',
      '--intermediate',
      '16',
      '--layers',
      '2',
      '--visual',
      '10',
      '--keep',
      '5',
      '--json',
    );
    const { full, kept } = JSON.parse(out);
    expect(full).toBe(2 * (4 * 10 * 64 + 2 * 100 * 8 + 3 * 10 * 8 * 16));
    expect(kept).toHaveLength(1);
  });

  it('refuses to keep more than there is', async () => {
    expect((await desap('flops', '--visual', '10')).code).toBe(1);
  });
});
