import { basename, dirname, resolve } from 'node:path';
import { DesapError } from '../../errors.js';
import { requireFolder } from '../../files.js';
import { optional } from '../../optional.js';

export type Transformers = typeof import('@huggingface/transformers');

/** The installed Transformers.js, and a model folder as it names it. */
export interface Client {
  readonly transformers: Transformers;
  readonly id: string;
  /** Runs one of its loaders; what it says of missing files names the folder. */
  load<T>(loading: Promise<T>): Promise<T>;
}

/**
 * Nothing is fetched: a folder is given.
 * @throws DesapError `ERR_FILE` for a missing folder; `ERR_MISSING_PACKAGE`
 */
export async function openClient(folder: string): Promise<Client> {
  await requireFolder(folder, 'a model folder');
  const why = `the model in ${folder}`;
  const transformers = await optional(() => import('@huggingface/transformers'), '@huggingface/transformers', why);
  const whole = resolve(folder);
  Object.assign(transformers.env, { allowRemoteModels: false, localModelPath: dirname(whole) });
  return {
    transformers,
    id: basename(whole),
    load: (loading) =>
      loading.catch((cause: Error) => {
        throw new DesapError('ERR_FILE', `${folder}: Transformers.js cannot load it: ${cause.message}`, { cause });
      }),
  };
}
