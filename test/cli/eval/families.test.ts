/** `desap eval` with a folder of each kind of family: its answers are those of `desap answer`. */
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { answerCommand } from '../../../src/cli/answer.js';
import { evalCommand } from '../../../src/cli/eval/command.js';
import { ROOT } from '../../transformers/family-cases.js';
import { familyFolder, json, pngOf } from '../family-folders.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-eval-families-'));
});
afterAll(() => rm(folder, { recursive: true }));

const QUESTION = 'what is the color?';

/** A model, and an image file or a folder of frames for it. */
async function familyOf(family: string): Promise<{ model: string; image: string }> {
  if (family === 'phi3_v_whole') return { model: join(ROOT, family), image: await pngOf(folder, [1, 90, 60]) };
  const { model, expected } = await familyFolder(folder, family);
  // Where LLaVA-NeXT's newline vector lies.
  if (family === 'llava_next') await cp(join(model, 'expected.safetensors'), join(model, 'model.safetensors'));
  const [{ frames, picture, pictures }] = expected.cases;
  if (!Array.isArray(frames)) return { model, image: await pngOf(folder, picture ?? pictures[0][0]) };
  const film = join(folder, `${family}-frames`);
  await mkdir(film);
  for (const [i, frame] of frames.entries()) await pngOf(folder, frame, join(film, `${i}.png`));
  return { model, image: film };
}

describe.each([
  { family: 'llava_next', clip: true, positions: [undefined] },
  { family: 'video_llava', clip: true, positions: [undefined] },
  { family: 'phi3_v_whole', clip: true, positions: [undefined] },
  { family: 'idefics3', clip: false, positions: ['compact', 'original'] },
  { family: 'paligemma', clip: false, positions: ['compact'] },
  { family: 'llava_onevision', clip: false, positions: [undefined] },
  { family: 'lfm2_vl', clip: false, positions: [undefined] },
  { family: 'qwen2_vl', clip: false, positions: [undefined] },
  { family: 'qwen3_vl', clip: false, positions: [undefined] },
])('$family', ({ family, clip, positions }) => {
  it('answers as desap answer, with the image encoded once', async () => {
    const { model, image } = await familyOf(family);
    const own = ['--clip', join(model, 'clip')].filter(() => clip);
    const ask = (...more: string[]) => json(answerCommand(), image, QUESTION, '--model', model, ...own, ...more);
    const all = await ask();
    const file = join(folder, `${family}.jsonl`);
    const questions = [
      { image, question: QUESTION, answer: all.text },
      { image, question: 'how many?', answer: 'none of these' },
    ];
    await writeFile(file, questions.map((one) => `${JSON.stringify(one)}\n`).join(''));
    const out = join(folder, `${family}-out`);
    const forms = positions.filter((form) => form !== undefined);
    const how = [model, ...own, '--questions', file, '--keep', '2,50%', '--out', out, '--max-new-tokens', '4'];
    const args = [...how, '--methods', 'desap,desap:taskShare=1,merge=false'];
    const report = await json(evalCommand(), ...args, ...(forms.length > 0 ? ['--positions', forms.join()] : []));
    expect(report.answered).toBe(2);
    expect(report.rows[0]).toMatchObject({ method: 'all', tokens: all.tokens });

    const [, first, second] = (await readFile(join(out, 'answers.jsonl'), 'utf8'))
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    for (const form of positions)
      for (const [keep, flag] of [
        ['2', ['--keep', '2']],
        ['50%', ['--keep-ratio', '0.5']],
      ] as const)
        for (const [method, flags] of [
          ['desap', []],
          ['desap:taskShare=1,merge=false', ['--task-share', '1', '--no-merge']],
        ] as const) {
          const { answers, tokens } = first.results[`${method} ${keep} ${form ?? 'default'}`];
          const want = await ask(...flag, ...flags, ...(form ? ['--positions', form] : []), '--max-new-tokens', '4');
          expect({ answers, tokens }).toEqual({ answers: [want.text], tokens: want.tokens });
        }
    for (const { results } of [first, second]) {
      const times = Object.values<{ ms: { vision: number } }>(results).map(({ ms }) => ms.vision);
      expect(times[0]).toBeGreaterThan(0);
      expect(new Set(times)).toEqual(new Set([times[0]]));
    }
  });
});
