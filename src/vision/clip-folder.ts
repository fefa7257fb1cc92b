import { join } from 'node:path';
import { DesapError } from '../errors.js';
import { isFile } from '../files.js';

/** Where the towers of a CLIP lie: in files of their own (the layout of Transformers.js), or both in one (the layout of Optimum). */
const PLACES = {
  vision: ['onnx/vision_model.onnx', 'vision_model.onnx', 'onnx/model.onnx', 'model.onnx'],
  text: ['onnx/text_model.onnx', 'text_model.onnx', 'onnx/model.onnx', 'model.onnx'],
} as const;

/** The ONNX file of one tower in a CLIP folder, or null. */
export async function findClipFile(folder: string, tower: keyof typeof PLACES): Promise<string | null> {
  for (const place of PLACES[tower]) if (await isFile(join(folder, place))) return join(folder, place);
  return null;
}

/**
 * The ONNX file of one tower in a CLIP folder.
 *
 * @param instead what may be given in its place, for the message
 * @throws DesapError `ERR_FILE` with all places that were looked at
 */
export async function clipFile(folder: string, tower: keyof typeof PLACES, instead = ''): Promise<string> {
  const found = await findClipFile(folder, tower);
  if (found !== null) return found;
  const [first, ...others] = PLACES[tower];
  throw new DesapError(
    'ERR_FILE',
    `${join(folder, first)}: got no such file (nor ${others.join(', ')}), wanted the ${tower} tower of a CLIP${instead}`,
  );
}
