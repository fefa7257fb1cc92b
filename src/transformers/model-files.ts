import { isAbsolute, join } from 'node:path';
import { DesapError } from '../errors.js';
import { isFile } from '../files.js';
import { optional } from '../optional.js';
import { nonEmpty } from '../tensor.js';
import { SUFFIX } from '../vision/model-folder.js';
import type { HookedModel } from './model.js';

/** Where a loaded model lies. */
export interface ModelFiles {
  readonly folder: string;
  /** Path of the file that the vision session was opened from. */
  readonly visionEncoder: string;
}

/**
 * Finds the folder of a loaded model, which neither the model nor its sessions remember.
 *
 * @param given a folder or a model id; default: the name in the model's config
 * @throws DesapError `ERR_FILE` with all places that were looked at
 */
export async function locate(model: HookedModel, given: string | undefined): Promise<ModelFiles> {
  if (given !== undefined) nonEmpty('options.model', given, 'a model folder, or the id of a model');
  const name = given ?? model.config._name_or_path;
  const { dtype = 'fp32' } = model.sessions.vision_encoder.config ?? {};
  const file = `vision_encoder${(SUFFIX as Record<string, string>)[dtype] ?? ''}.onnx`;
  const looked: string[] = [];
  // Folders of the library are asked for last: a path that exists needs none.
  for (const roots of name ? [() => [''], () => libraryFolders(name)] : [])
    for (const root of await roots()) {
      const folder = join(root, name as string);
      const visionEncoder = join(folder, 'onnx', file);
      if (await isFile(visionEncoder)) return { folder, visionEncoder };
      looked.push(visionEncoder);
    }
  const got = looked.length > 0 ? `nothing at ${looked.join(', ')}` : 'no name of the model in its config';
  throw new DesapError(
    'ERR_FILE',
    `options.model: got ${got}, wanted the folder that the model was loaded from, which holds onnx/${file}`,
  );
}

/** Where the installed Transformers.js looks for models by their id. */
async function libraryFolders(name: string): Promise<string[]> {
  if (isAbsolute(name)) return [];
  const { env } = await optional(
    () => import('@huggingface/transformers'),
    '@huggingface/transformers',
    'finding a model by its id',
  );
  return [env.localModelPath, env.cacheDir].flatMap((root) => root || []);
}
