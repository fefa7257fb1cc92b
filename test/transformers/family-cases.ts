/** Folders of tiny models that others' exporters wrote, and what Hugging Face says of them (`expected.json`). */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Processor, RawImage, Tensor } from '@huggingface/transformers';
import type { Alignment } from '../../src/index.js';
import { int64 } from './support.js';

export const ROOT = 'test/fixtures/families';

export type Size = readonly [seed: number, width: number, height: number];
/** One prompt, or a batch of them, and what Hugging Face says of it. */
export interface Case {
  readonly name: string;
  readonly pictures: readonly (readonly Size[])[];
  /** Whether the images of a prompt are the frames of one grid. */
  readonly frames: boolean;
  readonly prompts: readonly string[];
  readonly input_ids: number[][];
  readonly attention_mask: number[][];
  readonly image_grid_thw: number[][];
  /** M-RoPE, [3][sequences][columns]. */
  readonly positions: number[][][];
  readonly unpruned: number[][];
  readonly client_unpruned: number[][];
  readonly pruned: readonly {
    /** A `keep` below 1 is a share of the tokens; a list has one for each image. */
    readonly options: { readonly keep: number | number[]; readonly taskShare?: number; readonly alignment?: Alignment };
    readonly indices: number[][];
    readonly source: number[][];
    readonly assignment: number[][];
    readonly ids: number[][];
  }[];
}
export interface Expected {
  readonly never_generated: number[];
  readonly max_new_tokens: number;
  readonly cases: readonly Case[];
}

export const QWEN_FAMILIES = ['qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'qwen3_vl_packed'] as const;

export async function expectedOf(family: string): Promise<Expected> {
  return JSON.parse(await readFile(join(ROOT, family, 'expected.json'), 'utf8'));
}

/** One prompt, or a batch of them, with videos, and what Hugging Face says of it. */
export interface VideoCase
  extends Pick<Case, 'name' | 'input_ids' | 'attention_mask' | 'image_grid_thw' | 'positions'> {
  readonly video_grid_thw: number[][];
  /** Of Qwen2.5-VL. */
  readonly second_per_grid_ts: number[] | null;
  readonly ids: number[][];
}

/** Pixels of images, or of videos, of these grids: float32 [patches, C]. */
export function wavesOf(grids: readonly (readonly number[])[]): [data: Float32Array, dims: number[]] {
  const channels = 96;
  const patches = grids.reduce((sum, [t, h, w]) => sum + t * h * w, 0);
  return [Float32Array.from({ length: patches * channels }, (_, i) => Math.sin(i * i)), [patches, channels]];
}

export async function videosOf(family: string): Promise<VideoCase[]> {
  return JSON.parse(await readFile(join(ROOT, 'videos', 'expected.json'), 'utf8')).families[family];
}

/** The image of a seed, as the formula in `expected.json` has it. */
export function image([seed, width, height]: Size): RawImage {
  const data = new Uint8Array(width * height * 3);
  const ramp = (at: number, size: number) => Math.floor((at * 255) / Math.max(1, size - 1));
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const cell = (Math.floor(x / 5) * 7 + Math.floor(y / 4) * 13 + seed * 31) % 11;
      const color = [
        ramp(x, width) + 17 * cell,
        ramp(y, height) + 29 * (cell ^ (seed % 7)),
        Math.floor((x * x + 3 * y * y + seed * 101) / 7) + 53 * cell,
      ];
      data.set(
        color.map((value) => value % 256),
        3 * (y * width + x),
      );
    }
  return new RawImage(data, width, height, 3);
}

type Pixels = { pixel_values: Tensor; image_grid_thw: Tensor };

/** The inputs of a case: its own ids, and the processor's pixels of each image (of each video) by itself. */
export async function inputsOf({ image_processor }: Processor, given: Case) {
  const prepare = image_processor as unknown as (images: RawImage[]) => Promise<Pixels>;
  const videos = given.pictures.flatMap((own) => (given.frames ? [own] : own.map((one) => [one])));
  const prepared: Pixels[] = [];
  for (const video of videos) prepared.push(await prepare(video.map(image)));
  const pixels = prepared.flatMap(({ pixel_values }) => [...(pixel_values.data as Float32Array)]);
  const [{ pixel_values: first }] = prepared;
  const dims = [given.input_ids.length, given.input_ids[0].length];
  return {
    input_ids: int64(given.input_ids.flat(), dims),
    attention_mask: int64(given.attention_mask.flat(), dims),
    pixel_values: new Tensor('float32', Float32Array.from(pixels), [pixels.length / first.dims[1], first.dims[1]]),
    image_grid_thw: int64(given.image_grid_thw.flat(), [given.image_grid_thw.length, 3]),
  };
}
