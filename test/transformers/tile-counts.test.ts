/** Tiles and visual tokens of real geometry: what Hugging Face's processors make of an image, by Transformers.js's own processors. */
import {
  AutoTokenizer,
  Idefics3ImageProcessor,
  Idefics3Processor,
  Lfm2VlImageProcessor,
  Lfm2VlProcessor,
  type PreTrainedTokenizer,
  RawImage,
  type Tensor,
} from '@huggingface/transformers';
import { beforeAll, describe, expect, it } from 'vitest';
import { imageSpans } from '../../src/transformers/spans.js';
import type { EncoderFacts } from '../../src/vision/block-family.js';
import { IDEFICS3 } from '../../src/vision/idefics3.js';
import { LFM2 } from '../../src/vision/lfm2.js';
import { INPUT_NAMES } from '../../src/vision/vision-model.js';
import { ROOT } from './family-cases.js';

type Processed = Record<'input_ids' | 'pixel_values' | 'pixel_attention_mask' | 'spatial_shapes', Tensor>;
type Call = (...given: unknown[]) => Promise<Processed>;

const NORMAL = {
  ...{ do_convert_rgb: true, do_rescale: true, rescale_factor: 1 / 255, do_normalize: true },
  ...{ image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5], do_pad: true },
};

const image = (height: number, width: number) => {
  const data = Uint8Array.from({ length: 3 * height * width }, (_, i) => (i * 7) % 251);
  return new RawImage(data, width, height, 3);
};
const encoder = (names: [string, number][], config = {}): EncoderFacts => ({
  config,
  inputs: names.map(([name, type]) => ({ name, type, dims: null })),
  several: async () => true,
  rowsAtOnce: 1024,
});
const tokenizerOf = (family: string): Promise<PreTrainedTokenizer> =>
  AutoTokenizer.from_pretrained(`${ROOT}/${family}`);
const pieces = ({ input_ids: { data, dims } }: Processed, token: number, marks: object) =>
  imageSpans(data as BigInt64Array, dims, BigInt(token), marks)!.map((span) => span.pieces.map((one) => one.length));

describe('Idefics3 and SmolVLM, tiles of 512 pixels, 64 tokens each', () => {
  const [IMAGE, GLOBAL] = [315, 297];
  let process: Call;
  beforeAll(async () => {
    const image_processor = new Idefics3ImageProcessor({
      ...{ ...NORMAL, do_resize: true, size: { longest_edge: 2048 }, resample: 1 },
      ...{ do_image_splitting: true, max_image_size: { longest_edge: 512 } },
    } as never);
    const components = { tokenizer: await tokenizerOf('idefics3'), image_processor };
    process = new Idefics3Processor({ image_seq_len: 64 }, components, null as never) as never;
  });

  it.each([
    [480, 640, 13, 832],
    [1080, 1920, 13, 832],
    [512, 512, 17, 1088],
    [1000, 300, 9, 576],
    [1, 1, 17, 1088],
  ])('%i x %i: %i tiles, %i tokens', async (height, width, tiles, tokens) => {
    const inputs = await process('<image>what?', image(height, width));
    expect(pieces(inputs, IMAGE, { beforeLast: BigInt(GLOBAL) })).toEqual([new Array(tiles).fill(64)]);
    const given = { pixelValues: inputs.pixel_values, pixelAttentionMask: inputs.pixel_attention_mask };
    const facts = encoder([
      ['pixel_values', 1],
      ['pixel_attention_mask', 9],
    ]);
    const [run] = IDEFICS3.read({ ...given, tileCounts: [tiles] }, INPUT_NAMES, facts);
    expect(run.feeds.pixel_values.dims).toEqual([1, tiles, 3, 512, 512]);
    // 32 x 32 patches, four by four to a token.
    const rows = run.tiles([tiles, 1024, 768], [tiles, 64, 576]);
    expect(rows.reduce((sum, tile) => sum + tile.tokens, 0)).toBe(tokens);
    expect(rows.map(({ rows, columns, patches }) => [rows, columns, patches])).toEqual(
      new Array(tiles).fill([8, 8, 1024]),
    );
  });

  it('tiles of 384 pixels have 27 x 27 patches, three by three to a token', () => {
    const pixelValues = { data: new Float32Array(3 * 384 * 384).fill(1), dims: [1, 1, 3, 384, 384] };
    const [run] = IDEFICS3.read({ pixelValues }, INPUT_NAMES, encoder([['pixel_values', 1]]));
    expect(run.tiles([1, 729, 1152], [1, 81, 2048])).toMatchObject([{ rows: 9, columns: 9, patches: 729, tokens: 81 }]);
  });
});

describe('LFM2-VL, tiles of 512 pixels, 64 to 256 tokens each', () => {
  const [IMAGE, END] = [299, 301];
  let process: Call;
  beforeAll(async () => {
    const image_processor = new Lfm2VlImageProcessor({
      ...{ ...NORMAL, do_resize: false, tile_size: 512, encoder_patch_size: 16, downsample_factor: 2 },
      ...{ min_tiles: 2, max_tiles: 10, min_image_tokens: 64, max_image_tokens: 256, use_thumbnail: true },
    });
    const components = { tokenizer: await tokenizerOf('lfm2_vl'), image_processor };
    process = new Lfm2VlProcessor({}, components, null as never) as never;
  });

  it.each([
    [480, 640, [[13, 18]]],
    [1080, 1920, [...new Array(8).fill([16, 16]), [12, 21]]],
    [512, 512, [[16, 16]]],
    [1000, 300, [[29, 8]]],
    [64, 64, [[8, 8]]],
    [1, 1, [[8, 8]]],
  ])('%i x %i: tokens %j', async (height, width, grids: number[][]) => {
    const inputs = await process(image(height, width), '<image>what?');
    const tokens = grids.map(([rows, columns]) => rows * columns);
    expect(pieces(inputs, IMAGE, { afterLast: BigInt(END) })).toEqual([tokens]);
    const given = { pixelValues: inputs.pixel_values, pixelAttentionMask: inputs.pixel_attention_mask };
    const facts = encoder([
      ['pixel_values', 1],
      ['spatial_shapes', 7],
      ['pixel_attention_mask', 7],
    ]);
    const [run] = LFM2.read({ ...given, spatialShapes: inputs.spatial_shapes }, INPUT_NAMES, facts);
    expect(run.feeds.pixel_attention_mask.data).toEqual(inputs.pixel_attention_mask.data);
    expect(run.feeds.spatial_shapes.data).toEqual(inputs.spatial_shapes.data);
    const sum = tokens.reduce((all, count) => all + count, 0);
    const tiles = run.tiles([grids.length, 1024, 768], [sum, 1024]);
    expect(tiles.map(({ rows, columns }) => [rows, columns])).toEqual(grids);
    expect(tiles.map((tile) => tile.tokens)).toEqual(tokens);
    expect(tiles.map(({ patches }) => patches)).toEqual(tokens.map((count) => 4 * count));
  });
});
