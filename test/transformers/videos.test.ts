/** Videos in attached models, which Transformers.js itself does not encode, against what Hugging Face's classes say of them. */
import { join } from 'node:path';
import { type DynamicCache, type PreTrainedModel, type Processor, Tensor } from '@huggingface/transformers';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { attach, type CallOptions, type PrunedImage } from '../../src/transformers/index.js';
import { compact, QwenVision, type VisionPruneOptions } from '../../src/vision/index.js';
import { PlainLoop } from '../vision/plain-loop.js';
import { expectedOf, QWEN_FAMILIES, ROOT, type VideoCase, videosOf, wavesOf } from './family-cases.js';
import { type Inputs, ids, int64, load, tokens } from './support.js';

const COUNT = 8;

describe.each(QWEN_FAMILIES)('%s', (family) => {
  let model: PreTrainedModel;
  let processor: Processor;
  let cases: VideoCase[];
  let never: number[];
  let config: { image_token_id: number; video_token_id: number };
  let vision: QwenVision;
  let loop: PlainLoop;
  let detach: () => Promise<void>;
  let pruned: readonly PrunedImage[] = [];

  beforeAll(async () => {
    ({ model, processor } = await load(ROOT, family));
    [cases, { never_generated: never }] = await Promise.all([videosOf(family), expectedOf(family)]);
    config = model.config as never;
    vision = await QwenVision.open(join(ROOT, family, 'onnx', 'vision_encoder.onnx'));
    loop = await PlainLoop.open(join(ROOT, family), config.image_token_id, config.video_token_id);
    const onPruned = (images: readonly PrunedImage[]) => {
      pruned = images;
    };
    detach = await attach(model, { model: join(ROOT, family), keep: 'all', onPruned });
  });
  afterAll(async () => {
    await detach();
    await Promise.all([model.dispose(), vision.dispose(), loop.release()]);
  });

  const isVisual = (id: number) => id === config.image_token_id || id === config.video_token_id;
  const visuals = (pixels: string, grid: string, grids: number[][]) => {
    const [data, dims] = wavesOf(grids);
    return {
      [pixels]: { data, dims },
      [grid]: { data: BigInt64Array.from(grids.flat(), BigInt), dims: [grids.length, 3] },
    };
  };

  function inputsOf(given: VideoCase): Inputs {
    const dims = [given.input_ids.length, given.input_ids[0].length];
    const { image_grid_thw: images, video_grid_thw: videos, second_per_grid_ts: seconds } = given;
    const pixels = (grids: number[][]) => new Tensor('float32', ...wavesOf(grids));
    return {
      input_ids: int64(given.input_ids.flat(), dims),
      attention_mask: int64(given.attention_mask.flat(), dims),
      pixel_values_videos: pixels(videos),
      video_grid_thw: int64(videos.flat(), [videos.length, 3]),
      ...(images.length > 0 && {
        pixel_values: pixels(images),
        image_grid_thw: int64(images.flat(), [images.length, 3]),
      }),
      ...(seconds && { second_per_grid_ts: new Tensor('float32', Float32Array.from(seconds), [seconds.length]) }),
    };
  }

  const generate = async (inputs: Inputs, desap: CallOptions, others = {}) => {
    const how = { max_new_tokens: COUNT, eos_token_id: null as unknown as number, suppress_tokens: never };
    const bad = { bad_words_ids: never.map((id) => [id]) };
    const output = model.generate({ ...inputs, desap, ...how, ...bad, ...others } as Parameters<
      PreTrainedModel['generate']
    >[0]);
    return (await ids(output)).map((row) => row.slice(inputs.input_ids.dims[1]));
  };

  it('gives Hugging Face’s ids for all tokens', async () => {
    for (const given of cases) {
      const inputs = inputsOf(given);
      expect(await generate(inputs, { keep: 'all' }), given.name).toEqual(given.ids);
      expect(await generate(inputs, { keepRatio: 1, taskShare: 0 }), given.name).toEqual(given.ids);
      const grids = [...given.image_grid_thw, ...given.video_grid_thw];
      expect(pruned.map(({ assignment }) => assignment.length)).toEqual(grids.map(([t, h, w]) => (t * h * w) / 4));
    }
  });

  it('gives what hand compaction gives for fewer, kept tokens at their places', async () => {
    for (const given of cases) {
      const inputs = inputsOf(given);
      for (const options of [{ keepRatio: 0.4 }, { keep: 3, taskShare: 0 }, { keep: 4, taskShare: 1 }]) {
        const got = await generate(inputs, { ...options, question: 'what moves?' });
        const wanted = await byHand(given, 'what moves?', options);
        expect(got, `${given.name}, ${JSON.stringify(options)}`).toEqual(wanted);
      }
    }
  });

  it('shares a budget over the images and videos of a prompt: all frames of a video together need one token', async () => {
    for (const given of cases) {
      const inputs = inputsOf(given);
      const prune = (desap: CallOptions) => generate(inputs, { taskShare: 0, ...desap }, { max_new_tokens: 1 });
      await prune({ keepRatio: 1 });
      const least = given.input_ids.map((_, row) => pruned.filter(({ sequence }) => sequence === row).length);
      await prune({ keep: least, allocation: 'prompt' });
      expect(pruned.map(({ indices }) => indices.length)).toEqual(pruned.map(() => 1));
      await prune({ keep: least.map((count) => count + 2), allocation: 'prompt' });
      const kept = pruned.reduce((sum, { indices }) => sum + indices.length, 0);
      expect(kept).toBe(pruned.length + 2 * least.length);
    }
  });

  it('reads the question from a prompt with videos, without the times of their frames', async () => {
    const inputs = inputsOf(cases[0]);
    await generate(inputs, { keep: 9, taskShare: 1 });
    const read = pruned.map(({ indices }) => indices);
    await generate(inputs, { keep: 9, taskShare: 1, question: 'what moves?' });
    expect(read).toEqual(pruned.map(({ indices }) => indices));
  });

  it('continues a pruned cache as if it had not stopped', async () => {
    const desap = { keep: 5, taskShare: 0 };
    const { input_ids, attention_mask: _, pixel_values_videos, ...grids } = inputsOf(cases[1]);
    const how = { max_new_tokens: 3, eos_token_id: null as unknown as number, desap };
    const run = async (inputs: object) =>
      (await model.generate({ ...inputs, ...how, return_dict_in_generate: true } as never)) as unknown as {
        sequences: Tensor;
        past_key_values: DynamicCache;
      };
    const masked = (all: bigint[]) => {
      const dims = [1, all.length];
      return { input_ids: int64(all, dims), attention_mask: int64(new Array(all.length).fill(1), dims) };
    };
    const first = await run({ ...masked([...(input_ids.data as BigInt64Array)]), pixel_values_videos, ...grids });
    const turn = tokens(processor, '<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n');
    const all = masked([...(first.sequences.data as BigInt64Array), ...(turn.data as BigInt64Array)]);
    const whole = await run({ ...all, pixel_values_videos, ...grids });
    const got = await run({ ...all, ...grids, past_key_values: first.past_key_values });
    expect(got.sequences.tolist()).toEqual(whole.sequences.tolist());
  });

  /** The ids of each sequence alone, over plain onnxruntime: what stays has the positions that Hugging Face gives it. */
  async function byHand(given: VideoCase, question: string, options: VisionPruneOptions): Promise<number[][]> {
    const images = await vision.encode({
      ...(given.image_grid_thw.length > 0 && visuals('pixelValues', 'imageGridThw', given.image_grid_thw)),
      ...visuals('pixelValuesVideos', 'videoGridThw', given.video_grid_thw),
    });
    const kept = await Promise.all(
      images.map((image) => image.prune(options.taskShare === 0 ? null : question, options)),
    );
    for (const image of images) image.dispose();
    expect(kept.map(({ indices }) => indices)).toEqual(pruned.map(({ indices }) => indices));
    const next = { image: 0, video: given.image_grid_thw.length };
    return Promise.all(
      given.input_ids.map((row, sequence) => {
        const isThere = given.attention_mask[sequence].map((bit) => bit === 1);
        const own = <T>(all: readonly T[]) => all.filter((_, column) => isThere[column]);
        const order: number[] = [];
        let left = 0;
        for (const id of own(row))
          if (isVisual(id) && left-- === 0) {
            order.push(id === config.image_token_id ? next.image++ : next.video++);
            left = kept[order.at(-1)!].assignment.length - 1;
          } else if (!isVisual(id)) left = Math.max(0, left);
        const inputIds = own(row);
        const positions = BigInt64Array.from(
          given.positions.flatMap((axis) => own(axis[sequence])),
          BigInt,
        );
        const positionIds = new ort.Tensor('int64', positions, [3, 1, inputIds.length]);
        const chosen = order.map((i) => kept[i]);
        const imageTokenId = [config.image_token_id, config.video_token_id];
        const prompt = compact({ inputIds, positionIds, imageTokenId, kept: chosen });
        return loop.generate({ ...prompt, features: chosen.map(({ features }) => features) }, COUNT, never);
      }),
    );
  }
});
