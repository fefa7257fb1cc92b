import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { readSafeTensors } from '../../src/safetensors.js';
import { ImageProcessor, type ImageProcessorConfig } from '../../src/vision/image-processor.js';

const FOLDER = 'test/fixtures/images';

/** One line of cases.jsonl; make.py says how it was made. */
interface Case {
  readonly file: string;
  readonly config: ImageProcessorConfig;
  /** Whether the expected result is the image in bytes, or the `pixel_values`. */
  readonly rgb: boolean;
  readonly expected: string;
  /** Levels of 255, where decoders round differently; default 0. */
  readonly tolerance?: number;
}

const lines = readFileSync(join(FOLDER, 'cases.jsonl'), 'utf8').trim().split('\n');
const cases: Case[] = lines.map((line) => JSON.parse(line));
const { tensors } = await readSafeTensors(join(FOLDER, 'expected.safetensors'));

describe("Hugging Face's image processors", () => {
  it.each(cases.map((entry) => [entry.file, JSON.stringify(entry.config), entry] as const))(
    '%s by %s',
    async (file, _, { config, rgb, expected, tolerance = 0 }) => {
      const processor = await ImageProcessor.open(config);
      const stored = tensors.get(expected)!;
      if (rgb) {
        const { data, width, height } = await processor.rgb(join(FOLDER, file));
        expect([height, width, 3]).toEqual(stored.shape);
        expect(largestDifference(data, stored.bytes)).toBeLessThanOrEqual(tolerance);
      } else {
        const { data, dims } = await processor.process(join(FOLDER, file));
        expect(dims).toEqual([1, ...stored.shape]);
        const wanted = new Float32Array(stored.bytes.slice().buffer);
        expect(largestDifference(data as Float32Array, wanted)).toBe(0);
      }
    },
  );
});

function largestDifference(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
  expect(got.length).toBe(wanted.length);
  let largest = 0;
  for (let i = 0; i < got.length; i++) largest = Math.max(largest, Math.abs(got[i] - wanted[i]));
  return largest;
}
