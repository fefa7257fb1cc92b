/** Writes model folders, and the parts of language models. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { RandomModel } from '../onnx-models.js';
import { LAYER_KINDS, type LayerKind, layerGraph, logitsGraph } from './decoders.js';
import { encoderGraph } from './encoders.js';
import type { Decoder, Model } from './models.js';

async function writeGraph(graph: RandomModel, folder: string, name: string): Promise<string> {
  await graph.writeWeights(join(folder, `${name}.data`));
  const path = join(folder, `${name}.onnx`);
  await graph.writeModel(path, `${name}.data`);
  return path;
}

/** The folder of a model that `openVisionModel` opens; it holds the vision encoder alone. */
export async function writeEncoder(model: Model, folder: string): Promise<{ folder: string; visionEncoder: string }> {
  const { encoder, modelType, blocks } = model;
  const { image, patch, side } = encoder;
  await mkdir(join(folder, 'onnx'), { recursive: true });
  const config = {
    model_type: modelType,
    downsample_factor: side,
    image_grid_pinpoints: [[2 * image, 2 * image]],
    vision_config: { image_size: image, patch_size: patch, spatial_merge_size: side, depth: blocks },
  };
  await writeFile(join(folder, 'config.json'), JSON.stringify(config));
  return { folder, visionEncoder: await writeGraph(encoderGraph(encoder), join(folder, 'onnx'), 'vision_encoder') };
}

/** One layer of each kind that a language model has, and what gives the logits; paths of their files. */
export async function writeDecoder(decoder: Decoder, folder: string): Promise<DecoderFiles> {
  const kinds = LAYER_KINDS.filter((kind) => decoder.layers[kind] > 0);
  const write = (graph: RandomModel, part: string) => writeGraph(graph, folder, `${decoder.name}-${part}`);
  const layers = [];
  for (const kind of kinds) layers.push({ kind, path: await write(layerGraph(decoder, kind), kind) });
  return { layers, logits: await write(logitsGraph(decoder), 'logits') };
}

export interface DecoderFiles {
  readonly layers: readonly { readonly kind: LayerKind; readonly path: string }[];
  readonly logits: string;
}
