/** What the options of a vision model's pruning say beyond those of the pruner. */
import { mismatch } from '../errors.js';
import { oneOf } from '../tensor.js';
import type { Distances, Preset, VisionPruneOptions } from './vision-model.js';

/** What a preset stands for. */
type Choices = Pick<VisionPruneOptions, 'alignment' | 'taskShare' | 'complement' | 'distances'>;

const PRESETS: Readonly<Record<Preset, Choices>> = {
  paper: { alignment: 'fcma', taskShare: 0.5, complement: 'saliency' },
  best: { alignment: 'mean', taskShare: 0.5, complement: 'diversity', distances: 'projected' },
};
/** Their names. */
export const PRESET_NAMES = Object.keys(PRESETS) as readonly Preset[];

/** Whose distances may count. */
export const DISTANCES: readonly Distances[] = ['hidden', 'projected'];

/**
 * Options with their preset in its own words: what is given beside it wins.
 * @throws DesapError `ERR_VALUE` for an unknown preset, and for one beside another method
 */
export function withoutPreset<T extends Choices & Pick<VisionPruneOptions, 'preset' | 'method'>>({
  preset,
  ...given
}: T): Omit<T, 'preset'> {
  if (preset === undefined) return given;
  const { method = 'desap' } = given;
  if (method !== 'desap')
    throw mismatch('ERR_VALUE', 'preset', `'${preset}' beside method: '${method}'`, "none: presets are desap's");
  return over(PRESETS[oneOf('preset', preset, PRESET_NAMES)], given as Omit<T, 'preset'>);
}

/** What is given wins over what is set. Distances that are set for one complement say nothing about another. */
export function over<T extends Choices>(set: Choices, given: T): T {
  const own = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)) as T;
  const isOther = own.complement !== undefined && own.complement !== set.complement;
  return { ...set, ...(isOther && { distances: undefined }), ...own };
}

/** @throws DesapError `ERR_VALUE` for unknown distances, and for distances that nothing asks for */
export function checkDistances({ distances, complement }: Pick<VisionPruneOptions, 'distances' | 'complement'>): void {
  if (distances === undefined) return;
  oneOf('distances', distances, DISTANCES);
  if (complement !== 'diversity')
    throw mismatch('ERR_VALUE', 'distances', `'${distances}' without diversity`, "complement: 'diversity' beside it");
}
