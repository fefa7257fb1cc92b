/** The vector that ends a row of LLaVA-NeXT's patches: a parameter of the checkpoint, not of any graph. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { DesapError, mismatch } from '../errors.js';
import { openSafeTensors, toFloat32 } from '../safetensors.js';
import { type TensorLike, vector } from '../tensor.js';

/**
 * The newline vector of a model: the given one, or the tensor [W] whose name ends in `image_newline` in a safetensors file, or in those of
 * the model's folder. Other tensors are not read.
 *
 * @param given the vector, or the path of a safetensors file
 * @returns null where no file of the folder has one
 * @throws DesapError `ERR_FILE`; `ERR_VALUE` for a file without one; `ERR_SHAPE`, `ERR_DTYPE`
 */
export async function newlineVector(
  given: string | Float32Array | TensorLike | undefined,
  folder: string,
): Promise<Float32Array | null> {
  if (given !== undefined && typeof given !== 'string') return vector('newlineVector', given).slice();
  const files = given === undefined ? await checkpoints(folder) : [given];
  for (const file of files) {
    const { shapes, read } = await openSafeTensors(file);
    // Hugging Face and the original have it under names with this end.
    const [found, ...others] = [...shapes].filter(
      ([name, { length }]) => name.endsWith('image_newline') && length === 1,
    );
    if (others.length > 0)
      throw new DesapError('ERR_FILE', `${file}: looked for one tensor '...image_newline'; found ${others.length + 1}`);
    if (found) return toFloat32(await read(found[0]), `${file}: tensor '${found[0]}'`);
  }
  if (given === undefined) return null;
  throw mismatch('ERR_VALUE', 'newlineVector', `${given}, a file without it`, "one with a tensor '...image_newline'");
}

/** The safetensors files of a folder; none where it cannot be listed. */
async function checkpoints(folder: string): Promise<string[]> {
  const names = await readdir(folder).catch(() => []);
  return names
    .filter((name) => name.endsWith('.safetensors'))
    .sort()
    .map((name) => join(folder, name));
}
