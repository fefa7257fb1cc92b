/** Rows dropped inside the tower with the pruner on a GPU, or over the emulator: which rows stay, and what is kept, as on the CPU. */
import { expect, it } from 'vitest';
import { openVisionModel, type PrunedFeatures, type VisionInputs } from '../../src/vision/index.js';
import { normal, provideCuda, relativeError } from '../support.js';

const gpu = provideCuda();
const QUESTION = 'what is it ?';

const CASES: Readonly<Record<string, { model: string; options: object; inputs: VisionInputs }>> = {
  'LLaVA, by the attention of the class token': {
    model: 'models/tiny-llava',
    options: { clip: 'models/tiny-clip', tower: { at: 2, keep: 0.25, by: 'class-token' } },
    inputs: { pixelValues: { data: normal(3, 3 * 96 * 96), dims: [1, 3, 96, 96] } },
  },
  'LLaVA, by distance': {
    model: 'models/tiny-llava',
    options: { clip: 'models/tiny-clip', tower: { at: 1, keep: 40, by: 'distance' } },
    inputs: { pixelValues: { data: normal(4, 3 * 96 * 96), dims: [1, 3, 96, 96] } },
  },
  Idefics3: {
    model: 'test/fixtures/families/idefics3',
    options: { tower: { at: 1, keep: 0.5 } },
    inputs: { pixelValues: { data: normal(7, 5 * 3 * 32 * 32), dims: [1, 5, 3, 32, 32] }, tileGrids: [[2, 2]] },
  },
};

it.each(Object.entries(CASES))(
  `${gpu}: %s`,
  async (_, { model, options, inputs }) => {
    const results: PrunedFeatures[] = [];
    for (const device of ['cpu', 'cuda'] as const) {
      await using vision = await openVisionModel(model, { ...options, device });
      expect(vision.device).toBe(device === 'cpu' ? 'cpu' : 'cuda:0');
      const [image] = await vision.encode(inputs);
      results.push(await image.prune(QUESTION, { keep: 6, maps: true }));
      image.dispose();
    }
    const [cpu, cuda] = results;
    expect(cpu.dropped!.length).toBeGreaterThan(0);
    for (const name of ['dropped', 'indices', 'source', 'assignment', 'counts', 'tileCounts'] as const)
      expect(cuda[name]).toEqual(cpu[name]);
    for (const [got, want] of [
      [cuda.features.data, cpu.features.data],
      [cuda.maps!.saliency, cpu.maps!.saliency],
      [cuda.maps!.task, cpu.maps!.task],
    ] as const)
      expect(relativeError(got as Float32Array, want as Float32Array)).toBeLessThan(1e-4);
  },
  240_000,
);
