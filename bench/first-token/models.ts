/** The models of the bench: their true shapes, and what an image of each is. */
import { type Encoder, patchesOf } from './encoders.js';

/** A language model: what one layer of each kind, and the last product, depend on. */
export interface Decoder {
  readonly name: string;
  readonly width: number;
  readonly heads: number;
  readonly keyHeads: number;
  readonly headExtent: number;
  readonly intermediate: number;
  readonly vocabulary: number;
  readonly layers: { readonly attention: number; readonly convolution: number };
}

export interface Model {
  readonly name: string;
  readonly modelType: string;
  readonly encoder: Encoder;
  /** Blocks of the model's own tower; the file has fewer where they are scaled up. */
  readonly blocks: number;
  readonly tiles: number;
  /** Whether one of the tiles is the whole image, squeezed. */
  readonly hasWhole: boolean;
  /** Text tokens of the prompt: markers of each tile, and the rest. */
  readonly text: { readonly tile: number; readonly rest: number };
  /** Language models that there are with this encoder. */
  readonly decoders: readonly Decoder[];
}

/** A template, a question, and what stands around the image. */
const REST = 40;

const SIGLIP_BASE = { kind: 'siglip', width: 768, heads: 12, intermediate: 3072, patch: 16, image: 512 } as const;
const CLIP_LARGE = { kind: 'clip', width: 1024, heads: 16, intermediate: 4096, patch: 14, image: 336 } as const;
const QWEN = { family: 'qwen', width: 1280, heads: 16, patch: 14, image: 896, side: 2, connectorWidth: 5120 } as const;

/** Of Qwen's 32 blocks the file has so many: a time a block is worked out of it. */
const QWEN_BLOCKS = 3;

const LLAVA_7B = {
  encoder: { ...CLIP_LARGE, family: 'llava', blocks: 23, side: 1, connectorWidth: 4096, languageWidth: 4096 },
  blocks: 23,
  text: { tile: 0, rest: REST },
} as const;

const LLAMA_7B = {
  ...{ width: 4096, heads: 32, keyHeads: 32, headExtent: 128, intermediate: 11008, vocabulary: 32064 },
  layers: { attention: 32, convolution: 0 },
} as const;

export const MODELS: readonly Model[] = [
  {
    name: 'SmolVLM',
    modelType: 'idefics3',
    encoder: { ...SIGLIP_BASE, family: 'idefics3', blocks: 12, side: 4, languageWidth: 960 },
    blocks: 12,
    tiles: 17,
    hasWhole: true,
    text: { tile: 2, rest: REST },
    // Both have this tower; the smaller one's connector is 576 wide, which is no time that one could see.
    decoders: [
      {
        ...{ name: 'SmolVLM-256M', width: 576, heads: 9, keyHeads: 3, headExtent: 64, intermediate: 1536 },
        ...{ vocabulary: 49280, layers: { attention: 30, convolution: 0 } },
      },
      {
        ...{ name: 'SmolVLM-500M', width: 960, heads: 15, keyHeads: 5, headExtent: 64, intermediate: 2560 },
        ...{ vocabulary: 49280, layers: { attention: 32, convolution: 0 } },
      },
    ],
  },
  {
    name: 'LFM2-VL-450M',
    modelType: 'lfm2_vl',
    encoder: { ...SIGLIP_BASE, family: 'lfm2_vl', blocks: 12, side: 2, connectorWidth: 2560, languageWidth: 1024 },
    blocks: 12,
    tiles: 5,
    hasWhole: true,
    text: { tile: 1, rest: REST },
    decoders: [
      {
        ...{ name: 'LFM2-VL-450M', width: 1024, heads: 16, keyHeads: 8, headExtent: 64, intermediate: 4608 },
        ...{ vocabulary: 65536, layers: { attention: 6, convolution: 10 } },
      },
    ],
  },
  {
    name: 'Qwen2-VL-2B',
    modelType: 'qwen2_vl',
    encoder: { ...QWEN, kind: 'qwen2', intermediate: 5120, blocks: QWEN_BLOCKS, languageWidth: 1536 },
    blocks: 32,
    tiles: 1,
    hasWhole: false,
    text: { tile: 0, rest: REST },
    decoders: [
      {
        ...{ name: 'Qwen2-VL-2B', width: 1536, heads: 12, keyHeads: 2, headExtent: 128, intermediate: 8960 },
        ...{ vocabulary: 151936, layers: { attention: 28, convolution: 0 } },
      },
    ],
  },
  {
    name: 'Qwen2.5-VL-3B',
    modelType: 'qwen2_5_vl',
    encoder: { ...QWEN, kind: 'qwen', intermediate: 3420, blocks: QWEN_BLOCKS, languageWidth: 2048 },
    blocks: 32,
    tiles: 1,
    hasWhole: false,
    text: { tile: 0, rest: REST },
    decoders: [
      {
        ...{ name: 'Qwen2.5-VL-3B', width: 2048, heads: 16, keyHeads: 2, headExtent: 128, intermediate: 11008 },
        ...{ vocabulary: 151936, layers: { attention: 36, convolution: 0 } },
      },
    ],
  },
  {
    ...LLAVA_7B,
    name: 'LLaVA-1.5-7B',
    modelType: 'llava',
    tiles: 1,
    hasWhole: false,
    decoders: [{ ...LLAMA_7B, name: 'LLaVA-1.5-7B' }],
  },
  {
    ...LLAVA_7B,
    name: 'LLaVA-NeXT-7B',
    modelType: 'llava_next',
    tiles: 5,
    hasWhole: true,
    decoders: [{ ...LLAMA_7B, name: 'LLaVA-NeXT-7B' }],
  },
];

const NARROW = { width: 64, heads: 4, keyHeads: 2, headExtent: 16, intermediate: 96, vocabulary: 512 };

/** The same with narrow layers and small tiles. */
export function small(model: Model): Model {
  const { encoder, decoders } = model;
  const narrow = { width: 64, heads: 4, intermediate: 96, image: 16 * encoder.patch, languageWidth: 64 };
  return {
    ...model,
    encoder: { ...encoder, ...narrow, ...(encoder.connectorWidth && { connectorWidth: 64 }) },
    decoders: decoders.map((one) => ({ ...one, ...NARROW })),
  };
}

/** Behind which block rows are dropped: a sixth of them. */
export const cutOf = (blocks: number): number => Math.max(1, Math.round(blocks / 6));

/** Visual tokens of an image, unpruned; of LLaVA-NeXT with the newlines of a square. */
export function tokensOf({ encoder, modelType, tiles }: Model): number {
  const own = tiles * (patchesOf(encoder) / encoder.side ** 2);
  if (modelType !== 'llava_next') return own;
  return own + Math.sqrt(tiles - 1) * Math.sqrt(patchesOf(encoder));
}
