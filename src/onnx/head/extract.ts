import { type Abortable, abortable, signalOf } from '../../abort.js';
import { invalid } from '../../errors.js';
import type { HeadWeights } from '../../head.js';
import { fields, type OptionNames, options } from '../../options.js';
import { nonEmpty, object } from '../../tensor.js';
import type { ModelSource } from '../format/model.js';
import { headFromGraph } from './extract-graph.js';
import { headFromCheckpoint } from './extract-safetensors.js';

/** Where {@link extractHead} takes a head from: a CLIP graph, or a CLIP checkpoint. */
export type HeadSource =
  | {
      /** A CLIP `vision_model.onnx` with float32 or float16 weights, inside or beside the file: path, bytes or model. */
      readonly visionModel: ModelSource;
      /** H, for a graph that does not say it. */
      readonly heads?: number;
    }
  | {
      /** Path of a Hugging Face CLIP `model.safetensors`, or of its `model.safetensors.index.json` when it is sharded. */
      readonly safetensors: string;
      /** `config.json` as an object, or its `vision_config`; default: the file beside the checkpoint. */
      readonly config?: object;
      /** H, where there is no config. */
      readonly heads?: number;
    };

/**
 * Takes the weights that DeSAP needs (last attention, its norm, post norm, visual projection) out of a CLIP export.
 * In a graph they are found by structure; follow with `confirmHead`, which compares numbers. A layer scale behind the output
 * projection (open_clip, timm) is no part of a head: the decoupled attention ends with the projection (eq. 2).
 *
 * @param call `signal` ends it
 * @throws DesapError `ERR_FILE` for an unusable file; `ERR_GRAPH` when the graph lacks a part, or its weights are
 *   quantised; `ERR_VALUE` without a head count; the errors of `checkHead`
 * @see arXiv 2604.11240, section 4.1
 */
export async function extractHead(source: HeadSource, call?: Abortable): Promise<HeadWeights> {
  return abortable(signalOf('call', call), () => headOf(source));
}

async function headOf(source: HeadSource): Promise<HeadWeights> {
  object('source', source, WANTED);
  const chosen = fields<Given>('source', source, ['visionModel', 'safetensors']);
  const names =
    chosen.visionModel !== undefined
      ? GRAPH
      : chosen.safetensors !== undefined
        ? CHECKPOINT
        : { ...GRAPH, ...CHECKPOINT };
  const { visionModel, safetensors, config, heads }: Given = options<HeadSource>('source', source, names);
  if (heads !== undefined && !(Number.isSafeInteger(heads) && heads > 0))
    throw invalid('ERR_VALUE', 'heads', heads, 'a positive integer');
  if (visionModel !== undefined) return headFromGraph(visionModel, heads);
  if (safetensors === undefined) throw invalid('ERR_VALUE', 'source', source, WANTED);
  if (config !== undefined) object('config', config, 'a config.json as an object');
  return headFromCheckpoint(nonEmpty('safetensors', safetensors, 'a path'), config, heads);
}

/** Either source. */
type Given = Partial<Part<'visionModel'> & Part<'safetensors'>>;
type Part<Name extends string> = Extract<HeadSource, Readonly<Record<Name, unknown>>>;
const GRAPH: OptionNames<Part<'visionModel'>> = { visionModel: true, heads: true };
const CHECKPOINT: OptionNames<Part<'safetensors'>> = { safetensors: true, config: true, heads: true };
const WANTED = '{ visionModel } or { safetensors }';
