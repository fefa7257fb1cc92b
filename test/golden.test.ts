/** Every golden case on every device and instruction set: every intermediate within 1e-4, every decision equal. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { readGoldenCase } from '../src/cli/golden-case.js';
import { Pruner } from '../src/index.js';
import { devicesUnderTest, embeddings, provideCuda, relativeError, values } from './support.js';

const FOLDER = join(import.meta.dirname, 'golden');
const CASES = readdirSync(FOLDER).sort();
const TOLERANCE = 1e-4;

it('has all fifteen cases', () => expect(CASES).toHaveLength(15));

describe.each(devicesUnderTest())('golden cases on %s', (_, options) => {
  it.each(CASES)('%s', async (file) => {
    const golden = await readGoldenCase(join(FOLDER, file));
    const { encoding, endOfText, ...choice } = golden.options;
    using pruner = await Pruner.load(golden.head, options);
    using image = await pruner.analyze(golden.hidden, { encoding, intermediates: true });
    const kept = await image.prune({ embeddings: golden.text, endOfText }, { ...choice, maps: true });
    const { context, attention } = image.intermediates()!;
    const computed = {
      context: values(context),
      attention: values(attention),
      embedding: embeddings(image),
      task: kept.maps!.task!,
      saliency: kept.maps!.saliency,
      tokens: values(kept.tokens),
    };
    for (const name of Object.keys(computed) as (keyof typeof computed)[])
      expect(relativeError(computed[name], golden.values[name]), name).toBeLessThan(TOLERANCE);
    expect([...kept.indices]).toEqual(golden.choices.kept);
    expect([...kept.source]).toEqual(golden.choices.source);
    expect([...kept.assignment]).toEqual(golden.choices.assignment);
    expect([...kept.counts]).toEqual(golden.choices.count);
  });
});

/** What a GPU computes of the same cases when its caller accepts coarser arithmetic. */
describe.each([
  ['fp16', 4e-3],
  ['bf16', 3e-2],
] as const)(`golden cases on ${provideCuda()} %s`, (precision, tolerance) => {
  it.each(CASES)('%s', async (file) => {
    const golden = await readGoldenCase(join(FOLDER, file));
    using pruner = await Pruner.load(golden.head, { device: 'cuda', precision });
    using image = await pruner.analyze(golden.hidden, { encoding: golden.options.encoding, intermediates: true });
    const { context, attention } = image.intermediates()!;
    const computed = {
      context: values(context),
      attention: values(attention),
      embedding: embeddings(image),
      saliency: image.saliency(),
    };
    for (const name of Object.keys(computed) as (keyof typeof computed)[])
      expect(relativeError(computed[name], golden.values[name]), name).toBeLessThan(tolerance);
  });
});
