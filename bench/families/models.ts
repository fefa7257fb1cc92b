/** Models whose images are tiles, or frames: their true shapes, and smaller ones to try the bench out. */
import { join } from 'node:path';
import { type EncoderShape, encoder, QWEN } from '../block/models.js';
import { type DecoderShape, llamaDecoder, type RandomModel, type VisionShape, visionEncoder } from '../onnx-models.js';

/** What both kinds tell. */
interface Tiles {
  readonly name: string;
  /** Tiles of one image, or frames of one video: each is one sequence of the encoder. */
  readonly tiles: number;
  /** Visual tokens kept of each. */
  readonly keep: number;
}

/** A CLIP tower that ends in front of CLIP's last layer: `Pruner` reads the last layer out. */
export interface ClipModel extends Tiles {
  readonly kind: 'clip';
  readonly vision: VisionShape;
  readonly projectionDim: number;
  /** Visual tokens that the language model gets unpruned: patches, and class rows or newlines. */
  readonly tokens: number;
  readonly decoder: DecoderShape;
}

/** An encoder with a last block of its own, and a connector behind it: `BlockHead`. */
export interface BlockModel extends Tiles {
  readonly kind: 'block';
  readonly shape: EncoderShape;
  /** Of each tile. */
  readonly patches: number;
  /** Of the model's tower; the bench's has two. */
  readonly blocks: number;
}

export type Model = ClipModel | BlockModel;

/** Text tokens: of the question, as the pruner gets it, and behind the visual ones in the prompt. */
export const TEXT = { question: 30, prompt: 40 };

const LLAMA_7B: DecoderShape = { width: 4096, heads: 32, intermediate: 11008 };
const CLIP_LARGE = { patch: 14, width: 1024, heads: 16, intermediate: 4096, layers: 23, languageWidth: 4096 };

/** SigLIP base at 512 pixels, as SmolVLM-256M and 500M have it: 4 x 4 patches in each visual token. */
const SMOL_VLM: EncoderShape = {
  name: 'SmolVLM',
  width: 768,
  heads: 12,
  intermediate: 3072,
  kind: 'siglip',
  channels: 3 * 16 ** 2,
  unit: 16,
  languageWidth: 576,
};

const clip = { kind: 'clip', projectionDim: 768, decoder: LLAMA_7B } as const;
const nextVision = { ...CLIP_LARGE, image: 336 };
const videoVision = { ...CLIP_LARGE, image: 224 };
const block = { kind: 'block', patches: 1024 } as const;

/** Of the blocks' visual tokens one of nine is kept, as LLaVA-NeXT keeps 64 of 576. */
export const MODELS: readonly Model[] = [
  { ...clip, name: 'LLaVA-NeXT', vision: nextVision, tiles: 5, keep: 64, tokens: 2928 },
  { ...clip, name: 'Video-LLaVA', vision: videoVision, tiles: 8, keep: 128, tokens: 2056 },
  { ...block, name: 'SmolVLM', shape: SMOL_VLM, tiles: 13, keep: 7, blocks: 12 },
  { ...block, name: 'Qwen2.5-VL', shape: QWEN, tiles: 4, keep: 28, blocks: 32 },
];

/** The same with fewer and narrower layers, and as many tiles; the prompt of the language model keeps its length. */
export function small(model: Model): Model {
  if (model.kind === 'block')
    return { ...model, patches: 256, keep: 2, shape: { ...model.shape, width: 128, heads: 4, intermediate: 256 } };
  const vision = { ...model.vision, image: 112, width: 128, heads: 4, intermediate: 256, layers: 2, languageWidth: 64 };
  const decoder = { width: 256, heads: 4, intermediate: 688 };
  return { ...model, vision, decoder, projectionDim: 64, keep: 7 };
}

/** Visual tokens of a model, all and kept. */
export function tokensOf(model: Model): { all: number; kept: number } {
  const all = model.kind === 'clip' ? model.tokens : model.tiles * (model.patches / model.shape.unit);
  return { all, kept: model.tiles * model.keep };
}

/** Where a model's graphs lie. */
export const pathsIn = (folder: string) => ({
  encoder: join(folder, 'encoder.onnx'),
  decoder: join(folder, 'decoder.onnx'),
});

/** Writes the encoder, and of a {@link ClipModel} one layer of the decoder. */
export async function writeModel(model: Model, folder: string): Promise<void> {
  const write = async (graph: RandomModel, path: string) => {
    const weights = `${path}.data`;
    await graph.writeWeights(weights);
    await graph.writeModel(path, weights.slice(folder.length + 1));
  };
  const paths = pathsIn(folder);
  if (model.kind === 'block') return write(encoder(model.shape, model.patches, 'nodes'), paths.encoder);
  await write(visionEncoder(model.vision), paths.encoder);
  await write(llamaDecoder(model.decoder, 1), paths.decoder);
}
