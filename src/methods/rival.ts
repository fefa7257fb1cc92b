/** Options that ask for a method in place of DeSAP's own. */
import { describe, mismatch } from '../errors.js';
import { oneOf } from '../tensor.js';
import { chooserOf, type MethodName, type RivalName } from './index.js';
import type { Chooser } from './method.js';

/**
 * In which order tokens come out: that of the image (`raster`), or that in which the method's published code feeds them to the language
 * model (`public`).
 */
export type Layout = (typeof LAYOUTS)[number];
export const LAYOUTS = ['raster', 'public'] as const;

/** What is asked of every method, wherever it is asked for. */
export interface MethodRequest {
  method?: MethodName;
  methodOptions?: object;
  layout?: Layout;
  keep?: number;
  keepRatio?: number;
}

/** Options that say nothing to DeSAP itself. */
const OF_METHODS = ['methodOptions', 'layout', 'taps', 'projected', 'grid'] as const;

/**
 * Whether options ask for another method than DeSAP's own.
 * @throws DesapError `ERR_VALUE` for what only such a method reads, without one
 */
export function isRival<O extends MethodRequest>(options: O): options is O & { readonly method: RivalName } {
  const { method = 'desap' } = options;
  if (method !== 'desap') return true;
  for (const name of OF_METHODS) {
    const value = (options as Partial<Record<typeof name, unknown>>)[name];
    if (value !== undefined)
      throw mismatch(
        'ERR_VALUE',
        name,
        `${name === 'methodOptions' ? 'options' : describe(value)} of no method`,
        'the option method beside it, with another than desap',
      );
  }
  return false;
}

/**
 * The method that options ask for. All but those of {@link MethodRequest} have no part in it.
 * @throws DesapError `ERR_VALUE` for an unknown method, for its options, and for what has no part in it
 */
export function rivalOf({
  method,
  methodOptions,
  layout = 'raster',
  keep,
  keepRatio,
  ...own
}: MethodRequest & { readonly method: RivalName }): Chooser {
  const chooser = chooserOf(method, methodOptions);
  oneOf('layout', layout, LAYOUTS);
  const further = chooser.isAdaptive ? { ...own, keep, keepRatio } : own;
  for (const [name, value] of Object.entries(further))
    if (value !== undefined)
      throw mismatch(
        'ERR_VALUE',
        name,
        `${describe(value)} beside method: '${method}'`,
        'none: it has no part in that',
      );
  return chooser;
}
