/** The methods that DeSAP is compared with, by name. Each works in front of the language model, on one tower, without training. */
import { alternatives, invalid } from '../errors.js';
import { cdpruner } from './cdpruner.js';
import { dart } from './dart.js';
import { divprune } from './divprune.js';
import { fastervlm } from './fastervlm.js';
import { flowcut } from './flowcut.js';
import { hired } from './hired.js';
import { holov } from './holov.js';
import type { Chooser, Method, TapName } from './method.js';
import { prumerge } from './prumerge.js';
import { random } from './random.js';
import { tome } from './tome.js';
import { trim } from './trim.js';
import { uniform } from './uniform.js';
import { visionzip } from './visionzip.js';
import { vscan } from './vscan.js';

const METHODS = {
  ...{ random, uniform, fastervlm, visionzip, prumerge, hired, holov, vscan },
  ...{ cdpruner, divprune, trim, dart, tome, flowcut },
} satisfies Record<string, Method>;

/** A method in place of DeSAP's own. */
export type RivalName = keyof typeof METHODS;
/** What chooses the tokens: `desap`, the pruner itself, or a method that it is compared with. */
export type MethodName = 'desap' | RivalName;
export const METHOD_NAMES: readonly MethodName[] = ['desap', ...(Object.keys(METHODS) as RivalName[])];

/**
 * A method with its options.
 * @throws DesapError `ERR_VALUE` for an unknown name, an unknown option or a bad value
 */
export function chooserOf(name: RivalName, methodOptions?: object): Chooser {
  if (typeof name !== 'string' || !Object.hasOwn(METHODS, name))
    throw invalid('ERR_VALUE', 'method', name, alternatives(METHOD_NAMES));
  return (METHODS[name] as Method)(methodOptions);
}

/**
 * The taps that a method reads of a tower, which a model has to be opened with (`taps`); of an image of tiles too.
 * @throws DesapError `ERR_VALUE` for an unknown name, an unknown option or a bad value
 */
export function tapsOf(name: MethodName, methodOptions?: object): TapName[] {
  if (name === 'desap') return [];
  const { taps, tileTaps = [] } = chooserOf(name, methodOptions);
  return [...taps, ...tileTaps];
}
